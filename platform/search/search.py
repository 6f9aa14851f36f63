"""Search: Ray Tune runs trials, Optuna proposes them, ASHA ends the hopeless, MLflow nests them under one parent run.

    runs/demo_search-5e6f7a8b/
      spec.json  run.json      the search as asked (the MLflow parent run)
      optuna.db                every proposal and its value
      trials/demo_search-…/    a run folder per trial
      search.json              the end: trials, best first

An interrupted search goes on: finished trials are remembered in optuna.db, one that was under way is proposed again and,
being the same spec, goes on from its own checkpoint. Trials are judged by the validation part; the best one alone looks at
the test part, once, at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch

from starlab.experiments.spec import SearchSpec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.platform.cluster.connect import Cluster, connect
from starlab.platform.errors import RunFailedError
from starlab.platform.preflight import check_spec, join_cluster, open_data
from starlab.platform.reports.figures import write_search_artifacts
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.lease import Lease, RunTakenError
from starlab.platform.runs.lifecycle import close_run, open_run
from starlab.platform.runs.metric_names import EPOCH, TEST_TOP1, VAL_TOP1
from starlab.platform.runs.records import MlflowState, SearchSummary, Trial
from starlab.platform.search.early_stopping import AskingASHA
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.sender import Sender, is_sent
from starlab.platform.trainer import RunRequest, RunResult, run_training

_METRIC = "val_top1"
_SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A finished search."""

    folder: Path
    trials: list[Trial]
    """Best first."""
    best: RunResult
    """The best trial, with the test part evaluated."""
    seconds: float
    mlflow_run_id: str | None
    """The parent of the trials' runs; None while MLflow has not been reached."""
    tracking_problem: str | None


@dataclass(frozen=True, slots=True)
class _Study:
    """What every trial needs; travels to the trials once, through Ray's object store."""

    spec: SearchSpec
    source: ClipSource
    parts: Parts
    runs: Path
    folder: RunFolder
    share: float

    def ask_to_end(self, values: Mapping[str, Any], reason: str) -> None:
        """Ask the trial at this point of the space to end itself."""
        trial_folder(self.folder, self.spec, values, self.source.fingerprint).ask_to_end(reason)


def search(
    spec: SearchSpec,
    *,
    runs: str | Path | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Run trials until `search.trials` are finished, earlier calls' included, then test the best one.

    Raises:
        DataError, UserError: as `trainer.train`.
        RunFailedError: no trial finished.
    """
    began = time.monotonic()
    root = runs_folder(runs)
    check_spec(spec.base)
    source, parts = open_data(spec.base, root, say)
    folder = RunFolder(root / search_id(spec, source.fingerprint))
    if fresh and folder.path.exists():
        with Lease.claim(folder.path):  # not while somebody runs it
            kept = folder.set_aside()
        say(f"fresh    the earlier search is kept as {kept}")
    close_abandoned_everywhere(root)
    cluster = join_cluster(spec.base, spec.search.concurrent or 1, say)
    concurrent = spec.search.concurrent or trials_at_once(spec, cluster)
    lease = Lease.claim(folder.path)
    open_run(folder, spec.base, source, root, parent=None, resolved=spec.to_dict())
    with lease, Sender(folder, spec.base.tracking.address(root)) as sender:
        sender.send_now()  # the parent run must be there before its children
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder.path / 'optuna.db'}")
        done = _take_up(folder.path.name, storage)
        left = max(0, spec.search.trials - done)
        say(f"search   {folder.path}: {spec.search.trials} trials, {done} done before; {concurrent} at once")
        study = _Study(spec, source, parts, root, folder, 1 / concurrent)
        if left:
            _tune(study, storage, left, concurrent, say)
        trials = _trials(spec, source.fingerprint, folder, storage)
        whole = [trial for trial in trials if trial.whole]
        if not whole:
            close_run(folder, "FAILED")
            raise RunFailedError(f"no trial of {folder.path.name} reached its end; see {folder.path / 'trials'}")
        say(f"best     {whole[0].run}: {values_text(whole[0].values)}; it alone looks at the test part")
        request = RunRequest(
            spec=spec.spec_of(whole[0].values), source=source, parts=parts, runs=root, cluster=cluster, parent=folder
        )
        best = run_training(request, say=say)
        folder.write(SearchSummary(trials=tuple(trials), best=best.run_id, test_top1=best.metrics[TEST_TOP1]))
        write_search_artifacts(folder, trials)
        close_run(folder, "FINISHED")
    problem = sender.problem or _send_trials(folder)
    if len(trials) >= spec.search.trials:  # a failed trial's log stays
        shutil.rmtree(folder.path / "ray", ignore_errors=True)
    tracked = folder.read(MlflowState)
    seconds = time.monotonic() - began
    return SearchResult(folder.path, trials, best, seconds, tracked.run_id if tracked else None, problem)


def search_id(spec: SearchSpec, fingerprint: str) -> str:
    """Name + 8 hex digits over the base, the space and the sampler's seed; more trials are the same search."""
    text = json.dumps([spec.base.run_id(fingerprint), spec.to_dict()["space"], spec.search.seed], sort_keys=True)
    return f"{spec.base.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def trials_at_once(spec: SearchSpec, cluster: Cluster) -> int:
    """How many trials the cluster holds: by its GPUs where a trial needs them, else one per CPU and worker."""
    resources = spec.base.resources
    if resources.gpus_per_worker:
        return max(1, int(cluster.gpus // (resources.workers * resources.gpus_per_worker)))
    return max(1, int(cluster.cpus // resources.workers))


def _tune(study: _Study, storage: optuna.storages.BaseStorage, left: int, concurrent: int, say: Callable[[str], None]) -> None:
    spec = study.spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=spec.search.seed, multivariate=True, n_startup_trials=4)
    searcher = OptunaSearch(
        space=_Space(spec.space),
        metric=_METRIC,
        mode="max",
        sampler=sampler,
        study_name=study.folder.path.name,
        storage=storage,
    )
    epochs = max(1, int(spec.base.train.epochs))
    scheduler = AskingASHA(_METRIC, epochs, spec.search.grace_epochs, spec.search.reduction, study.ask_to_end)
    tuner = tune.Tuner(
        # Almost no CPU for the trial's driver: it waits while its workers work.
        tune.with_resources(tune.with_parameters(_trial, study=study), {"CPU": 0.01}),
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=scheduler, num_samples=left, max_concurrent_trials=concurrent
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(study.folder.path / "ray"), verbose=0, callbacks=[_Reporter(left, say)]
        ),
    )
    tuner.fit()


def _trial(values: dict[str, Any], study: _Study) -> None:
    """One trial, in a process of its own."""
    spec = study.spec.spec_of(values)
    while True:
        try:
            result = run_training(
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
            break
        except RunTakenError:  # the same point, proposed twice, is under way: its end is this trial's too
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    # Once more at the end: a trial that had nothing left to train must still have a value.
    tune.report({_METRIC: result.metrics[VAL_TOP1], "epoch": _epochs_reached(RunFolder(result.folder)), "run": result.run_id})


@dataclass(frozen=True)
class _Space:
    """The space as Optuna's define-by-run function."""

    space: Mapping[str, Mapping[str, Any]]

    def __call__(self, trial: optuna.Trial) -> None:
        for key, distribution in self.space.items():
            kind, bounds = next(iter(distribution.items()))
            if kind == "choice":
                trial.suggest_categorical(key, bounds)
            elif kind == "int":
                trial.suggest_int(key, *bounds)
            else:
                trial.suggest_float(key, *bounds, log=kind == "log")


class _Reporter(Callback):
    """Says a line per finished trial."""

    def __init__(self, trials: int, say: Callable[[str], None]) -> None:
        self._trials, self._say, self._ended = trials, say, 0
        self._best = float("-inf")

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Name what is tried."""
        self._say(f"trial    {trial.trial_id} starts: {values_text(trial.config)}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Its value, and the best so far."""
        self._ended += 1
        value = trial.last_result.get(_METRIC, float("nan"))
        self._best = max(self._best, value)
        epoch = trial.last_result.get("epoch")
        done = f"{self._ended}/{self._trials}"
        self._say(f"trial    {trial.trial_id} ends after epoch {epoch}: val {value:.3f}, best {self._best:.3f} ({done})")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A failed trial does not end the search."""
        self._ended += 1
        self._say(f"trial    {trial.trial_id} failed; see {trial.local_path} ({self._ended}/{self._trials})")


def _take_up(name: str, storage: optuna.storages.BaseStorage) -> int:
    """Count what earlier calls finished; propose again what they left half-way."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, skip_if_exists=False)
    return len(study.get_trials(states=(TrialState.COMPLETE,)))


def _trials(spec: SearchSpec, fingerprint: str, folder: RunFolder, storage: optuna.storages.BaseStorage) -> list[Trial]:
    study = optuna.load_study(study_name=folder.path.name, storage=storage)
    rows = []
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        run = trial_folder(folder, spec, trial.params, fingerprint)
        rows.append(
            Trial(
                run=run.path.name,
                values=trial.params,
                val_top1=trial.value,
                epochs=_epochs_reached(run),
                whole=run.result is not None and not run.ended_early,
            )
        )
    return sorted(rows, key=lambda trial: (-trial.val_top1, trial.run))


def _send_trials(search: RunFolder) -> str | None:
    """Send what trials could not send themselves, while the server was away; why something is left, if it is."""
    for trial in search.trials():
        if not is_sent(trial):
            sender = Sender(trial)
            sender.send_now()
            if sender.problem:
                return sender.problem
    return None


def trial_folder(search: RunFolder, spec: SearchSpec, values: Mapping[str, Any], fingerprint: str) -> RunFolder:
    """Where the trial at this point of the space keeps its run."""
    return RunFolder(search.path / "trials" / spec.spec_of(values).run_id(fingerprint))


def _epochs_reached(run: RunFolder) -> int:
    return int(max((point.value for point in read_points(run.path / FILE) if point.key == EPOCH), default=0))


def values_text(values: Mapping[str, Any]) -> str:
    """A point of the space as the overrides that a command line takes."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in sorted(values.items())
    )
