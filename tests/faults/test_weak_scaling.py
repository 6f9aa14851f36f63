"""The stream and a trivial model over one to four nodes of one machine. Decoding sleeps: the nodes share no cores by it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
import ray
import ray.train
from many_nodes import ONE_CPU, join, nodes_on_this_machine
from ray.train import RunConfig
from ray.train.torch import TorchTrainer

from starlab.experiments.spec import load_spec
from starlab.platform.cluster.connect import describe_cluster
from starlab.platform.cluster.network import NodeAddressTorchConfig
from starlab.platform.cluster.placement import Placement, place, worker_group

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(900)]
CLIPS_PER_NODE, DECODE_SECONDS = 4, 0.25
PERIOD_STEPS = 16
"""A rank has two decode tasks, and a task decodes eight batches: batches come in bursts, which repeat after so many steps."""
PERIODS = 3
"""Periods that are measured, after as many that are not. Decode processes import for many seconds of processor
time, so the first periods are slower."""


def measure(nodes: int, folder: Path, monkeypatch: pytest.MonkeyPatch, periods: int = PERIODS) -> dict[str, float]:
    """Clips per second of all nodes, and processor time of the head's processes per clip."""
    folder.mkdir()
    spec = load_spec(
        "demo", [f"resources.workers={nodes}", f"train.global_batch={CLIPS_PER_NODE * nodes}", "resources.cpus_per_worker=1"]
    )
    with nodes_on_this_machine([ONE_CPU | {"num_cpus": 2}] * nodes, monkeypatch) as cluster:
        join(cluster)
        placement = place(spec, describe_cluster())
        head = [one.process.pid for kind in cluster.head_node.all_processes.values() for one in kind]
        TorchTrainer(
            _loop(placement, head, folder, periods),
            torch_config=NodeAddressTorchConfig(),
            scaling_config=worker_group(spec, placement),
            run_config=RunConfig(name="scaling", storage_path=str(folder)),
        ).fit()
    return json.loads((folder / "measured.json").read_text())  # type: ignore[no-any-return]


def _loop(placement: Placement, head: list[int], folder: Path, periods: int):  # type: ignore[no-untyped-def]
    """Return the training function, which Ray sends to the workers by value."""
    warm_up, steps, per_node, decode_seconds = periods * PERIOD_STEPS, periods * PERIOD_STEPS, CLIPS_PER_NODE, DECODE_SECONDS

    def loop() -> None:
        import numpy as np
        import torch
        import torch.distributed as dist

        from starlab.pipelines.clip import ClipRow, DecodedClip
        from starlab.pipelines.schedule import Schedule, TrainPlan
        from starlab.pipelines.skeletons import PENN_ACTION
        from starlab.pipelines.sources import DataConfig
        from starlab.pipelines.stream import train_batches

        class Sleeping:
            """Clips whose decoding takes time and no core."""

            def __init__(self) -> None:
                self.classes, self.skeleton, self.max_bodies, self.fingerprint = ("a", "b"), PENN_ACTION, 1, "sleeping"
                self.clips, self.skipped = tuple(map(self._row, range(64))), ()

            def _row(self, at: int) -> ClipRow:
                return ClipRow(clip_id=f"{at:04d}", label=at % 2, split="train", subject=None, num_frames=9)

            def read(self, row: ClipRow, frame_indices: list[int], min_side_px: int) -> DecodedClip:
                (folder / f"decoded-{ray.get_runtime_context().get_node_id()}").touch()
                time.sleep(decode_seconds)
                frames = [np.zeros((20, 24, 3), np.uint8) for _ in frame_indices]
                return DecodedClip(frames, np.full((len(frame_indices), 1, 13, 3), 0.5, np.float32))

        def head_seconds() -> float:
            family = [p for pid in head for p in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
            return sum(sum(process.cpu_times()[:2]) for process in {p.pid: p for p in family}.values())

        rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
        (folder / f"rank-{rank}").write_text(ray.get_runtime_context().get_node_id())
        plan = TrainPlan(Schedule(0, 64), tuple(range(64)), per_node * world, rank, world, 0)
        config = DataConfig(dataset="synthetic_penn_action", frames=4, size=16)
        batches = train_batches(Sleeping(), config, plan, warm_up + steps + 20, placement.limits)
        began, used = 0.0, 0.0
        for step in range(warm_up + steps):
            if step == warm_up:
                began, used = time.monotonic(), head_seconds()
            mean = torch.from_numpy(next(batches).frames).float().mean()
            if world > 1:
                dist.all_reduce(mean)
        seconds, clips = time.monotonic() - began, steps * per_node * world
        if rank == 0:
            (folder / "measured.json").write_text(
                json.dumps({"clips_per_second": clips / seconds, "head_seconds_per_clip": (head_seconds() - used) / clips})
            )
        batches.close()

    return loop


def test_four_nodes_do_nearly_four_times_the_work_of_one_and_the_head_no_more_per_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add_to_table
) -> None:
    measured = {nodes: measure(nodes, tmp_path / str(nodes), monkeypatch) for nodes in (1, 2, 4)}
    add_to_table({"weak scaling": {str(nodes): row for nodes, row in measured.items()}})
    per_node = {nodes: row["clips_per_second"] / nodes for nodes, row in measured.items()}
    assert per_node[2] >= 0.9 * per_node[1], measured
    assert per_node[4] >= 0.9 * per_node[1], measured
    assert measured[4]["head_seconds_per_clip"] <= 1.5 * measured[1]["head_seconds_per_clip"], measured


def test_ranks_fill_the_v100s_that_were_asked_for_and_clips_are_decoded_on_the_cpu_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["resources.workers=4", "resources.gpus_per_worker=1", "resources.accelerator=V100", "resources.cpus_per_worker=1"]
    v100s = ONE_CPU | {
        "num_cpus": 2,
        "num_gpus": 2,
        "resources": {"accelerator_type:V100": 1},
    }  # two ranks leave no CPU to decode with
    others = ONE_CPU | {"num_cpus": 0, "num_gpus": 4, "resources": {"accelerator_type:T4": 1}}
    spec = load_spec("demo", [*asked, "train.global_batch=16"])
    with nodes_on_this_machine([v100s, others, ONE_CPU | {"num_cpus": 4}, v100s], monkeypatch) as cluster:
        join(cluster)
        kinds = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
        placement = place(spec, describe_cluster())
        TorchTrainer(
            _loop(placement, [], tmp_path, 1),
            torch_config=NodeAddressTorchConfig(backend="gloo"),
            scaling_config=worker_group(spec, placement),
            run_config=RunConfig(name="placed", storage_path=str(tmp_path)),
        ).fit()
    ranks = [kinds[(tmp_path / f"rank-{rank}").read_text()] for rank in range(4)]
    assert all("accelerator_type:V100" in resources for resources in ranks)
    assert (tmp_path / "rank-0").read_text() == (tmp_path / "rank-1").read_text() != (tmp_path / "rank-2").read_text()
    decoders = {path.name.removeprefix("decoded-") for path in tmp_path.glob("decoded-*")}
    assert [kinds[node].get("GPU") for node in decoders] == [None]


def test_ranks_on_cpus_go_to_different_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(2, tmp_path / "two", monkeypatch, periods=1)
    assert (tmp_path / "two" / "rank-0").read_text() != (tmp_path / "two" / "rank-1").read_text()
