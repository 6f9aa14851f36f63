"""One trial: what it reports however its run ends, and which checkpoints it keeps."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from starlab.experiments.spec import load_search
from starlab.pipelines.clip import ClipSource
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.runs.checkpoint import checkpoint_steps, write_checkpoint
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EndRequest, Result
from starlab.platform.search import trial
from starlab.platform.search.objectives import objectives_of
from starlab.platform.search.trial import Study, keep_best_checkpoint, run_trial


class Stage:
    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        folder = RunFolder(path)
        spec = load_search("demo_search")
        self.study = Study(spec, cast(ClipSource, SimpleNamespace(fingerprint="f")), objectives_of(spec), path, folder)
        self.reported: list[dict[str, Any]] = []
        self.trained = 0

        def train(values: dict[str, Any], study: Study) -> None:
            self.trained += 1
            raise error

        monkeypatch.setattr(trial, "_train", train)
        monkeypatch.setattr(trial.tune, "report", self.reported.append)


def test_a_trial_that_starts_after_its_search_was_asked_to_end_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, RuntimeError())
    stage.study.folder.write(EndRequest(reason="the driver got SIGINT", signal=2))
    run_trial({"model.layers": 1}, stage.study)
    assert (stage.trained, stage.reported) == (0, [])


def test_a_trial_that_its_search_ends_reports_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch, RunPreemptedError("asked to end"))
    monkeypatch.setattr(trial, "_train", _asked_meanwhile(stage))
    run_trial({"model.layers": 1}, stage.study)
    assert stage.reported == []


def _asked_meanwhile(stage: Stage) -> Any:
    def train(values: dict[str, Any], study: Study) -> None:
        study.folder.write(EndRequest(reason="the driver got SIGINT", signal=2))
        raise RunPreemptedError("asked to end")

    return train


def test_a_trial_whose_nodes_go_away_fails_so_that_tune_starts_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, RunPreemptedError("its nodes go away"))
    with pytest.raises(RunPreemptedError):
        run_trial({"model.layers": 1}, stage.study)


def test_a_failed_run_is_reported_with_its_reason_and_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, RunFailedError("run x failed; it goes on.\nworker 0: out of memory"))
    run_trial({"model.layers": 1}, stage.study)
    [report] = stage.reported
    assert math.isnan(report["objective"])
    assert report["failed"] == "run x failed; it goes on. worker 0: out of memory"


@pytest.mark.parametrize(
    ("steps", "test", "kept"),
    [(6, None, [2]), (8, None, [2, 8]), (8, {"top1": 1.0}, [2])],
    ids=["ended early", "whole, may still be tested", "tested"],
)
def test_an_ended_trial_keeps_its_best_checkpoint_and_the_last_while_it_may_be_tested(
    tmp_path: Path, steps: int, test: dict[str, float] | None, kept: list[int]
) -> None:
    folder = RunFolder(tmp_path)
    for step in (2, 4, steps):
        write_checkpoint(folder.stored_checkpoints, step, {}, {})
    result = Result(
        steps=steps, total_steps=8, best_step=2, selected_by="validation", classes=("a",), val={"top1": 1.0}, test=test
    )
    keep_best_checkpoint(folder)  # no result yet: it may go on
    assert checkpoint_steps(folder.stored_checkpoints) == [2, 4, steps]
    folder.write(result)
    keep_best_checkpoint(folder)
    assert checkpoint_steps(folder.stored_checkpoints) == kept
