"""One trial of a search: a run of the trainer, in a process of its own that Ray Tune starts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from starlab.experiments.spec import SearchSpec, Spec
from starlab.pipelines.clip import ClipSource
from starlab.platform.cluster.connect import connect
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.preflight import split_parts
from starlab.platform.runs.checkpoint import prune_checkpoints
from starlab.platform.runs.end_request import read_request
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lease import RunTakenError
from starlab.platform.search.objectives import Objective, outcome_of
from starlab.platform.search.room import runs_that_fit
from starlab.platform.trainer import RunRequest, RunResult, run_training

METRIC = "objective"
"""The value of the first objective, which trials report after every evaluation and at their end."""
OUTCOME, FAILED = "outcome", "failed"
"""Keys of a trial's last report: its `Outcome`, or why it failed. Reports between have "epoch"."""
_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Study:
    """What every trial needs; it reaches the trials once, through Ray's object store."""

    spec: SearchSpec
    source: ClipSource
    objectives: tuple[Objective, ...]
    runs: Path
    folder: RunFolder
    """The search's."""

    def request(self, values: Mapping[str, Any], *, is_trial: bool) -> RunRequest:
        """The training of the run with these values; without `is_trial` it evaluates the test part too."""
        spec, cluster = self.spec.spec_of(values), connect()
        return RunRequest(
            spec=spec,
            source=self.source,
            parts=split_parts(spec, self.source),
            runs=self.runs,
            cluster=cluster,
            share=1 / (self.spec.search.concurrent or runs_that_fit(self.spec, cluster)) if is_trial else 1.0,
            parent=self.folder,
            is_trial=is_trial,
            callbacks=(_Report(self.objectives[0]),) if is_trial else (),
        )


def run_trial(values: dict[str, Any], study: Study) -> None:
    """Train the spec with these values, from its newest checkpoint if it has one, and report what it reached.

    Nothing is reported at the end when the run was asked to end: it goes on when the search does.
    """
    if read_request(study.folder):
        return
    try:
        folder, spec = _train(values, study)
    except RunPreemptedError:
        if read_request(study.folder) or read_request(_folder(values, study)):
            return
        raise  # its nodes go away: Tune starts it again, on others
    except RunFailedError as error:  # its workers were restarted already, so starting it again would end the same way
        tune.report({METRIC: math.nan, FAILED: " ".join(str(error).split())})
        return
    keep_best_checkpoint(folder)
    # Reported once more at the end, because a trial with nothing left to train must have a value too.
    outcome = outcome_of(folder, spec, study.objectives)
    if outcome is None or outcome.problem:
        problem = outcome.problem if outcome else "it has no result"
        tune.report({METRIC: math.nan, FAILED: f"{folder.path.name}: {problem}"})
    else:
        tune.report({METRIC: outcome.values[study.objectives[0].name], OUTCOME: outcome.text})


def keep_best_checkpoint(folder: RunFolder) -> None:
    """Delete an ended trial's checkpoints but the best one, and the last one of a whole trial that may still be tested.

    With its last checkpoint a trial is evaluated on the test part without training again.
    """
    result = folder.result
    if result is not None:
        may_be_tested = not result.ended_early and result.test is None
        prune_checkpoints(folder.stored_checkpoints, {result.best_step}, newest=int(may_be_tested))


class _Report(TuneReportCallback):
    """Reports the value of the first objective to Tune after every evaluation, if it is known then."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self._metric = objective.metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if self._metric is not None:
            report = {"epoch": metrics[0]["epoch"], METRIC: metrics[0][self._metric]}
            super().after_report(run_context, [report], checkpoint)


def _train(values: dict[str, Any], study: Study) -> tuple[RunFolder, Spec]:
    while True:
        request = study.request(values, is_trial=True)
        try:
            result: RunResult = run_training(request)
        except RunTakenError:  # a process of an earlier call still ends; its lease is over soon
            time.sleep(_POLL_SECONDS)
        else:
            return RunFolder(result.folder), request.spec


def _folder(values: dict[str, Any], study: Study) -> RunFolder:
    name = study.spec.spec_of(values).run_id(study.source.fingerprint)
    return RunFolder(study.folder.path / "trials" / name)
