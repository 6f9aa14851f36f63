"""Tests slow storage, little shared memory, clock jumps and bucket storage. Rows 18, 21, 22 of docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from starlab.pipelines.clip import ClipRow, ClipSource
from starlab.pipelines.penn_action import PennActionSource
from starlab.platform import preflight
from starlab.platform.cluster.connect import Cluster
from starlab.platform.runs.journal import FILE, Journal, read_points
from starlab.platform.trainer import RunResult

pytestmark = pytest.mark.timeout(900)  # a hang guard for a busy machine; a quiet one needs a tenth of it


@pytest.mark.slow_fault
def test_a_slow_disk_shows_as_waiting_for_data_and_not_as_a_stuck_worker(
    training, local_ray: Cluster, events_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = preflight.open_source

    def open_slowly(*arguments: object) -> ClipSource:
        source = opened(*arguments)  # type: ignore[arg-type]
        assert isinstance(source, PennActionSource)
        read = type(source).read

        class Slow(type(source)):  # type: ignore[misc]
            def read(self, row: ClipRow, frame_indices: list[int], min_side_px: int) -> object:
                time.sleep(1)
                return read(self, row, frame_indices, min_side_px)

        source.__class__ = Slow
        return source

    monkeypatch.setattr(preflight, "open_source", open_slowly)
    result = training.run(tmp_path, "train.epochs=0.5", "resources.stuck_after_seconds=60", "resources.max_failures=0")
    waits = [p.value for p in read_points(result.folder / FILE) if p.key == "system/data_wait"]
    assert max(waits) > 0.5
    assert events_of(result.folder, "stuck") == []


def test_points_stay_in_the_order_of_their_steps_if_the_clock_jumps_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the clock of the process is replaced, and the machine's clock is not changed."""
    journal = Journal(tmp_path / FILE)
    for step in range(4):
        monkeypatch.setattr(time, "time_ns", lambda step=step: (1_000_000 - 100_000 * step) * 1_000_000)
        journal.log(step, {"train/loss": float(step)})
    journal.close()
    points = list(read_points(tmp_path / FILE))
    assert [point.step for point in points] == [0, 1, 2, 3]
    assert [point.time_ms for point in points] == [1_000_000, 900_000, 800_000, 700_000]


LITTLE_MEMORY = """
import sys
from starlab.experiments.spec import load_spec
from starlab.platform.cluster.connect import connect
from starlab.platform.trainer import train

connect(num_cpus=2, object_store_bytes=80_000_000)
print(train(load_spec("demo", sys.argv[2:]), runs=sys.argv[1]).metrics["test/top1"])
"""


@pytest.mark.slow_fault
def test_eighty_megabytes_of_shared_memory_only_slow_the_stream(training, tmp_path: Path) -> None:
    overrides = training.spec().to_dict()  # the same people, in clips of 0.8 MB
    words = [
        f"data.store={training.store}",
        "data.frames=16",
        "data.size=128",
        "train.epochs=0.3",
        "model.dim=16",
        "model.heads=2",
        "resources.max_failures=0",
    ]
    words += [f"data.synthetic.{key}={overrides['data']['synthetic'][key]}" for key in ("train_clips_per_class", "size_px")]
    words += [f"data.synthetic.test_clips_per_class={overrides['data']['synthetic']['test_clips_per_class']}"]
    command = [sys.executable, "-c", LITTLE_MEMORY, str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.split()[-1]) <= 1


@pytest.mark.slow_fault
def test_checkpoints_under_a_uri_give_the_same_run(training, undisturbed: RunResult, same_as, tmp_path: Path) -> None:
    result = training.run(tmp_path / "runs", f"resources.checkpoints=file://{tmp_path}/bucket")
    assert not (result.folder / "checkpoints").exists()
    (result.folder / "checkpoints").symlink_to(
        next((tmp_path / "bucket").glob(f"{result.run_id}-*"))
    )  # where the comparison looks for checkpoints
    same_as(result, undisturbed)
