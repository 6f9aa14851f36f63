"""The ledger of a search: `optuna.db`, which holds every proposed point and the value of every finished one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from starlab.experiments.spec import SearchSpec
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.metric_names import EPOCH
from starlab.platform.runs.records import Trial


def open_ledger(path: Path) -> optuna.storages.BaseStorage:
    """Open the ledger in a search's folder; made if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.RDBStorage(f"sqlite:///{path / 'optuna.db'}")


def take_up(name: str, storage: optuna.storages.BaseStorage) -> int:
    """Propose again what earlier calls left unfinished. Returns how many trials they finished."""
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, skip_if_exists=False)
    return len(study.get_trials(states=(TrialState.COMPLETE,)))


def finished_trials(spec: SearchSpec, fingerprint: str, folder: RunFolder, storage: optuna.storages.BaseStorage) -> list[Trial]:
    """The finished trials, best first; trials of equal value by their run's name."""
    study = optuna.load_study(study_name=folder.path.name, storage=storage)
    rows = []
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        run = trial_folder(folder, spec, trial.params, fingerprint)
        rows.append(
            Trial(
                run=run.path.name,
                values=trial.params,
                val_top1=trial.value,
                epochs=epochs_reached(run),
                whole=run.result is not None and not run.ended_early,
            )
        )
    return sorted(rows, key=lambda trial: (-trial.val_top1, trial.run))


def trial_folder(search: RunFolder, spec: SearchSpec, values: Mapping[str, Any], fingerprint: str) -> RunFolder:
    """Where the trial at this point of the space keeps its run."""
    return RunFolder(search.path / "trials" / spec.spec_of(values).run_id(fingerprint))


def epochs_reached(run: RunFolder) -> int:
    """The last epoch that a run evaluated; 0 before its first."""
    return int(max((point.value for point in read_points(run.path / FILE) if point.key == EPOCH), default=0))
