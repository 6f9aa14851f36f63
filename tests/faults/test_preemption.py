"""A run that is asked to end writes a checkpoint and its status; the same command resumes. Row 17 of docs/reliability.md."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from starlab.platform.runs.events import read_events
from starlab.platform.runs.journal import read_points

pytestmark = pytest.mark.timeout(900)  # a hang guard for a busy machine; a quiet one needs a tenth of it

LONG = ["train.epochs=100", "train.evaluate_every_epochs=100", "train.checkpoint_every_steps=null"]
"""Long enough that it writes no checkpoint before it is asked to."""

DRAINED = """
import threading, time

def drain():
    import pathlib, os, ray
    from ray.core.generated import autoscaler_pb2
    while not [p for p in pathlib.Path(os.environ["STARLAB_RUNS"]).glob("demo-*/journal.jsonl") if p.stat().st_size]:
        time.sleep(0.05)
    node = ray.nodes()[0]["NodeID"]
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    client = ray._private.worker.global_worker.gcs_client
    print("drained:", client.drain_node(node, reason, "a test", int(1000 * (time.time() + 90))), flush=True)
threading.Thread(target=drain, daemon=True).start()
"""


@pytest.mark.slow_fault
@pytest.mark.parametrize("fault", ["SIGTERM", "SIGINT", "node preemption"])
def test_a_run_that_is_asked_to_end_checkpoints_says_so_and_goes_on_from_that_very_step(
    training, until, tmp_path: Path, fault: str
) -> None:
    process = training.start(tmp_path, *LONG, script=DRAINED if fault == "node preemption" else None)
    until(lambda: list(tmp_path.glob("demo-*/journal.jsonl")) and any(map(_steps, tmp_path.glob("demo-*"))), process)
    [folder] = tmp_path.glob("demo-*")
    until(lambda: _steps(folder) >= 3, process)
    injected = time.time()
    number = signal.SIGINT if fault == "SIGINT" else signal.SIGTERM
    if fault != "node preemption":
        process.send_signal(number)
    said, _ = process.communicate(timeout=600)
    ended = time.time()
    assert process.returncode == 128 + number, said
    assert "the same command goes on from there" in said
    assert not (folder / "result.json").exists()
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "KILLED"
    client = MlflowClient(run["tracking_uri"])
    [tracked] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert tracked.info.status == "KILLED"
    [preempted] = [event for event in read_events(folder) if event.kind == "preempted"]
    assert f"the checkpoint of step {preempted.step} is complete" in preempted.says
    training.note(f"17 {fault}", f"{fault}: seconds to the end of the process, checkpoint included", ended - injected, 0)

    again = training.start(tmp_path, *LONG)
    until(lambda: _steps(folder) > preempted.step, again)
    [resumed] = [event for event in read_events(folder) if event.kind == "resumed"]
    assert resumed.step == preempted.step
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=600)
    keys = [(p.key, p.step) for p in read_points(folder / "journal.jsonl")]
    assert len(keys) == len(set(keys))
    steps = {step for key, step in keys if key == "train/loss"}
    assert steps == set(range(1, max(steps) + 1))


def _steps(folder: Path) -> int:
    return max((point.step for point in read_points(folder / "journal.jsonl")), default=0)
