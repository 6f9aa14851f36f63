"""Search: Ray Tune runs trials, Optuna proposes them, ASHA ends hopeless ones, MLflow nests them under one parent run.

    runs/demo_search-5e6f7a8b/
      spec.json  run.json      the search as asked (the MLflow parent run)
      optuna.db                every proposal and its value
      trials/demo_search-…/    a run folder per trial
      search.json              the end: trials, best first

An interrupted search goes on: optuna.db (ledger.py) remembers finished trials. A trial that was under way is proposed again;
it has the same spec, so it goes on from its own checkpoint. Trials are compared on the validation part. Only the best one is
evaluated on the test part, once, at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch

from starlab.experiments.sections import SearchConfig
from starlab.experiments.spec import SearchSpec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.platform.cluster.connect import Cluster, connect
from starlab.platform.errors import RunFailedError
from starlab.platform.preflight import check_spec, join_cluster, open_data
from starlab.platform.reports.figures import write_search_artifacts
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.lease import Lease, RunTakenError
from starlab.platform.runs.lifecycle import close_run, open_run
from starlab.platform.runs.metric_names import TEST_TOP1, VAL_TOP1
from starlab.platform.runs.records import MlflowState, SearchSummary, Trial
from starlab.platform.search.early_stopping import AskingASHA
from starlab.platform.search.ledger import epochs_reached, finished_trials, open_ledger, take_up, trial_folder
from starlab.platform.search.samplers import make_sampler
from starlab.platform.search.space import Space, values_text
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.sender import Sender, is_sent
from starlab.platform.trainer import RunRequest, RunResult, run_training

_METRIC = "val_top1"
_POLL_SECONDS = 2.0


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
    """What every trial needs; it reaches the trials once, through Ray's object store."""

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
    make_sampler(spec.search.sampler, spec.search.seed)  # an unknown name is refused before anything starts
    source, parts = open_data(spec.base, root, say)
    folder = RunFolder(root / search_id(spec, source.fingerprint))
    if fresh and folder.path.exists():
        with Lease.claim(folder.path):  # not while another process runs it
            kept = folder.set_aside()
        say(f"fresh    the earlier search is kept as {kept}")
    close_abandoned_everywhere(root)
    cluster = join_cluster(spec.base, spec.search.concurrent or 1, say)
    concurrent = spec.search.concurrent or trials_at_once(spec, cluster)
    lease = Lease.claim(folder.path)
    open_run(folder, spec.base, source, root, parent=None, resolved=spec.to_dict())
    with lease, Sender(folder, spec.base.tracking.address(root)) as sender:
        sender.send_now()  # the parent run must be there before its children
        storage = open_ledger(folder.path)
        done = take_up(folder.path.name, storage)
        left = max(0, spec.search.trials - done)
        say(f"search   {folder.path}: {spec.search.trials} trials, {done} done before; {concurrent} at once")
        study = _Study(spec, source, parts, root, folder, 1 / concurrent)
        if left:
            _tune(study, storage, left, concurrent, say)
        trials = finished_trials(spec, source.fingerprint, folder, storage)
        whole = [trial for trial in trials if trial.whole]
        if not whole:
            close_run(folder, "FAILED")
            raise RunFailedError(f"no trial of {folder.path.name} reached its end; see {folder.path / 'trials'}")
        say(f"best     {whole[0].run}: {values_text(whole[0].values)}; it alone is evaluated on the test part")
        request = RunRequest(
            spec=spec.spec_of(whole[0].values), source=source, parts=parts, runs=root, cluster=cluster, parent=folder
        )
        best = run_training(request, say=say)
        folder.write(SearchSummary(trials=tuple(trials), best=best.run_id, test_top1=best.metrics[TEST_TOP1]))
        write_search_artifacts(folder, trials, spec.space)
        close_run(folder, "FINISHED")
    problem = sender.problem or _send_trials(folder)
    if len(trials) >= spec.search.trials:  # a failed trial's log stays
        shutil.rmtree(folder.path / "ray", ignore_errors=True)
    tracked = folder.read(MlflowState)
    seconds = time.monotonic() - began
    return SearchResult(folder.path, trials, best, seconds, tracked.run_id if tracked else None, problem)


def search_id(spec: SearchSpec, fingerprint: str) -> str:
    """Name + 8 hex digits over the base, the space, the sampler and its seed; more trials are the same search."""
    identity = [spec.base.run_id(fingerprint), spec.to_dict()["space"], spec.search.seed]
    if spec.search.sampler != SearchConfig().sampler:  # at the default, searches keep the ids they had without this key
        identity.append(spec.search.sampler)
    text = json.dumps(identity, sort_keys=True)
    return f"{spec.base.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def trials_at_once(spec: SearchSpec, cluster: Cluster) -> int:
    """How many trials fit on the cluster: by its GPUs where a trial needs them, else one per CPU and worker."""
    resources = spec.base.resources
    if resources.gpus_per_worker:
        return max(1, int(cluster.gpus // (resources.workers * resources.gpus_per_worker)))
    return max(1, int(cluster.cpus // resources.workers))


def _tune(study: _Study, storage: optuna.storages.BaseStorage, left: int, concurrent: int, say: Callable[[str], None]) -> None:
    spec = study.spec
    searcher = OptunaSearch(
        space=Space(spec.space),
        metric=_METRIC,
        mode="max",
        sampler=make_sampler(spec.search.sampler, spec.search.seed),
        study_name=study.folder.path.name,
        storage=storage,
    )
    epochs = max(1, int(spec.base.train.epochs))
    scheduler = AskingASHA(_METRIC, epochs, spec.search.grace_epochs, spec.search.reduction, study.ask_to_end)
    tuner = tune.Tuner(
        # The trial's driver only waits while its workers compute, so it takes almost no CPU.
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
        except RunTakenError:  # the same point was proposed twice and is under way: share its result
            time.sleep(_POLL_SECONDS)
    # Reported once more at the end, because a trial with nothing left to train must have a value too.
    tune.report({_METRIC: result.metrics[VAL_TOP1], "epoch": epochs_reached(RunFolder(result.folder)), "run": result.run_id})


class _Reporter(Callback):
    """Prints a line per trial that starts or ends."""

    def __init__(self, trials: int, say: Callable[[str], None]) -> None:
        self._trials, self._say, self._ended = trials, say, 0
        self._best = float("-inf")

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print the trial's point of the space."""
        self._say(f"trial    {trial.trial_id} starts: {values_text(trial.config)}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print its value and the best so far."""
        self._ended += 1
        value = trial.last_result.get(_METRIC, float("nan"))
        self._best = max(self._best, value)
        epoch = trial.last_result.get("epoch")
        done = f"{self._ended}/{self._trials}"
        self._say(f"trial    {trial.trial_id} ends after epoch {epoch}: val {value:.3f}, best {self._best:.3f} ({done})")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print where its log is; the search goes on."""
        self._ended += 1
        self._say(f"trial    {trial.trial_id} failed; see {trial.local_path} ({self._ended}/{self._trials})")


def _send_trials(search: RunFolder) -> str | None:
    """Send what trials could not send while the server was away. Returns why something is left, or None."""
    for trial in search.trials():
        if not is_sent(trial):
            sender = Sender(trial)
            sender.send_now()
            if sender.problem:
                return sender.problem
    return None
