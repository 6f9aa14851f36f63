"""`starlab submit -- train demo` on a real head: the job makes its data, trains, records and ends with its exit code."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient
from tiny import TINY

from starlab.platform import cli

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Head

SMALL = [*TINY, "train.epochs=1"]


def test_a_submitted_training_ends_with_its_result_in_the_shared_runs_folder(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ray_head.folder / "shared"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    options = ["--address", ray_head.dashboard, "--runs", str(shared)]
    monkeypatch.setattr(sys, "argv", ["starlab", "submit", *options, "--", "train", "demo", *SMALL])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    log = capsys.readouterr().out
    assert ended.value.code == 0, log
    assert "test top-1" in log
    assert f"starlab ui --runs {shared}" in log
    (result,) = shared.glob("demo-*/result.json")
    assert str(result.parent) in log
    assert (shared / "mlflow.db").is_file()
    assert len(list(shared.glob("data/synthetic-*/labels/*.mat"))) == 60


@pytest.mark.longer
def test_a_job_that_is_stopped_has_time_for_its_checkpoint_and_is_marked(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ray_head.folder / "stopped"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    options = ["--address", ray_head.dashboard, "--runs", str(shared), "--id", "stopped", "--no-follow"]
    long = [*SMALL, "train.epochs=1000", "train.evaluate_every_epochs=1000", "train.log_every_steps=1"]
    monkeypatch.setattr(sys, "argv", ["starlab", "submit", *options, "--", "train", "demo", *long])
    with pytest.raises(SystemExit):
        cli.main()
    client = JobSubmissionClient(ray_head.dashboard, headers={"Authorization": f"Bearer {ray_head.token}"})
    until(lambda: any(journal.stat().st_size for journal in shared.glob("demo-*/journal.jsonl")))
    client.stop_job("stopped")
    until(lambda: client.get_job_status("stopped") is JobStatus.STOPPED)
    [run] = [json.loads(path.read_text()) for path in shared.glob("demo-*/run.json")]
    assert run["status"] == "KILLED"
    assert "the driver got SIGTERM; the checkpoint of step" in run["tags"]["starlab.preempted"]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 250
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
