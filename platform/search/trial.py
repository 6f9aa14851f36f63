"""One trial of a search: a run of the trainer, in a process of its own that Ray Tune starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from starlab.experiments.spec import SearchSpec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.platform.cluster.connect import connect
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.runs.checkpoint import prune_checkpoints
from starlab.platform.runs.end_request import read_request
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lease import RunTakenError
from starlab.platform.runs.metric_names import VAL_TOP1
from starlab.platform.search.ledger import epochs_reached
from starlab.platform.trainer import RunRequest, RunResult, run_training

METRIC = "val_top1"
"""What trials report after every evaluation and at their end."""
EPOCHS, FAILED = "epochs", "failed"
"""Keys of a trial's last report: how many epochs it reached, or why it failed. Reports between have "epoch"."""
_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Study:
    """What every trial needs; it reaches the trials once, through Ray's object store."""

    spec: SearchSpec
    source: ClipSource
    parts: Parts
    runs: Path
    folder: RunFolder
    """The search's."""
    share: float
    """The part of the cluster that a trial may take."""


def run_trial(values: dict[str, Any], study: Study) -> None:
    """Train the spec at this point of the space, from its newest checkpoint if it has one, and report its value.

    Nothing is reported at the end when the search was asked to end: the trial goes on when the search does.
    """
    if read_request(study.folder):
        return
    try:
        result = _train(values, study)
    except RunPreemptedError:
        if read_request(study.folder):
            return
        raise  # its nodes go away: Tune starts it again, on others
    except RunFailedError as error:  # its workers were restarted already, so starting it again would end the same way
        tune.report({METRIC: math.nan, FAILED: " ".join(str(error).split())})
        return
    folder = RunFolder(result.folder)
    keep_best_checkpoint(folder)
    # Reported once more at the end, because a trial with nothing left to train must have a value too.
    tune.report({METRIC: result.metrics[VAL_TOP1], EPOCHS: epochs_reached(folder)})


def keep_best_checkpoint(folder: RunFolder) -> None:
    """Delete an ended trial's checkpoints but the best one, and the last one of a whole trial that may still be tested.

    With its last checkpoint a trial is evaluated on the test part without training again.
    """
    result = folder.result
    if result is not None:
        may_be_tested = not result.ended_early and result.test is None
        prune_checkpoints(folder.stored_checkpoints, {result.best_step}, newest=int(may_be_tested))


def _train(values: dict[str, Any], study: Study) -> RunResult:
    spec = study.spec.spec_of(values)
    while True:
        try:
            return run_training(
                RunRequest(
                    spec=spec,
                    source=study.source,
                    parts=study.parts,
                    runs=study.runs,
                    cluster=connect(),
                    share=study.share,
                    parent=study.folder,
                    is_trial=True,
                    callbacks=(TuneReportCallback(),),
                )
            )
        except RunTakenError:  # a process of an earlier call still ends; its lease is over soon
            time.sleep(_POLL_SECONDS)
