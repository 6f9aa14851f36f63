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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlab.experiments.sections import SearchConfig
from starlab.experiments.spec import SearchSpec
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.preflight import check_spec, join_cluster, open_data
from starlab.platform.reports.figures import write_search_artifacts
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.lifecycle import close_run, open_run
from starlab.platform.runs.metric_names import TEST_TOP1
from starlab.platform.runs.records import MlflowState
from starlab.platform.runs.search_records import SearchSummary, Trial
from starlab.platform.search.best_so_far import record_winner
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.samplers import make_sampler
from starlab.platform.search.space import values_text
from starlab.platform.search.trial import Study, keep_best_checkpoint
from starlab.platform.search.trial_folders import TrialFolders
from starlab.platform.search.tuning import run_trials
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.sender import Sender, is_sent
from starlab.platform.trainer import RunRequest, RunResult, run_training


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A finished search."""

    folder: Path
    trials: list[Trial]
    """Best first."""
    failed: dict[str, str]
    """Why each trial failed that has no value, by run id."""
    best: RunResult
    """The best trial, with the test part evaluated."""
    looks_at_test: int
    """Evaluations of the test part by all trials of the search; an extended search with another best trial is a second one."""
    seconds: float
    """Of this call."""
    mlflow_run_id: str | None
    """The parent of the trials' runs; None while MLflow has not been reached."""
    tracking_problem: str | None


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
        RunPreemptedError: it was asked to end; the same call goes on.
    """
    began = time.monotonic()
    root = runs_folder(runs)
    for point in ({}, *({key: value} for key, kind in spec.space.items() for value in kind.edges)):
        check_spec(spec.spec_of(point))
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
    folders = TrialFolders(folder, spec.without_password(), source.fingerprint)
    study = Study(spec, source, parts, root, folder, 1 / concurrent)
    with Lease.claim(folder.path) as lease:
        open_run(folder, spec.base, source, root, parent=None, resolved=spec.to_dict())
        with Sender(folder, spec.base.tracking.address(root)) as sender:
            sender.send_now()  # the parent run must be there before its children
            try:
                ledger = _try_points(study, folders, concurrent, say)
                trials = ledger.trials()
                best = _test_best(study, trials, cluster, say)
            except BaseException as error:
                if lease.holds():
                    _close_unfinished(folder, error)
                raise
            looks = sum(run.looks_at_test() for run in folder.trials())
            folder.write(SearchSummary(trials=tuple(trials), best=best.run_id, test_top1=best.metrics[TEST_TOP1]))
            record_winner(folder, next(trial for trial in trials if trial.run == best.run_id), best.metrics)
            write_search_artifacts(folder, trials, spec.space)
            for run in folder.trials():
                keep_best_checkpoint(run)
            close_run(folder, "FINISHED", {"starlab.test_looks": str(looks)} if looks > 1 else {})
    problem = sender.problem or _send_trials(folder)
    failed = ledger.failed()
    if not failed:  # the log of a failed trial stays
        shutil.rmtree(folder.path / "ray", ignore_errors=True)
    tracked = folder.read(MlflowState)
    return SearchResult(
        folder=folder.path,
        trials=trials,
        failed=failed,
        best=best,
        looks_at_test=looks,
        seconds=time.monotonic() - began,
        mlflow_run_id=tracked.run_id if tracked else None,
        tracking_problem=problem,
    )


def _try_points(study: Study, folders: TrialFolders, concurrent: int, say: Callable[[str], None]) -> Ledger:
    """Run the trials that are left of the search's budget."""
    wanted, folder = study.spec.search.trials, study.folder
    ledger = Ledger(folders, study.spec.search)
    done = len(ledger.trials())
    say(f"search   {folder.path}: {wanted} trials, {done} done before; {concurrent} at once")
    if wanted > done:
        run_trials(study, ledger, folders, wanted - done, concurrent, say)
        close_abandoned_everywhere(study.runs)  # a trial whose process was killed could not close its own run
    return ledger


def _test_best(study: Study, trials: Sequence[Trial], cluster: Cluster, say: Callable[[str], None]) -> RunResult:
    """Evaluate the best trial that reached its end on the test part, once.

    Raises:
        RunFailedError: no trial reached its end.
    """
    folder, whole = study.folder, [trial for trial in trials if trial.whole]
    if not whole:
        raise RunFailedError(f"no trial of {folder.path.name} reached its end; see {folder.path / 'trials'}")
    say(f"best     {whole[0].run}: {values_text(whole[0].values)}; it alone is evaluated on the test part")
    earlier = [run.path.name for run in folder.trials() if run.looks_at_test() and run.path.name != whole[0].run]
    if earlier:
        say(f"note     the test part was evaluated before, with {', '.join(earlier)}: this is another look at it")
    spec = study.spec.spec_of(whole[0].values)
    request = RunRequest(spec=spec, source=study.source, parts=study.parts, runs=study.runs, cluster=cluster, parent=folder)
    return run_training(request)  # silently: it only evaluates, and goes on from the trial's last checkpoint to do so


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


def _close_unfinished(folder: RunFolder, error: BaseException) -> None:
    if isinstance(error, RunPreemptedError | KeyboardInterrupt):
        close_run(folder, "KILLED", {"starlab.preempted": str(error) or "Ctrl-C"})
    else:
        close_run(folder, "FAILED")


def _send_trials(search: RunFolder) -> str | None:
    """Send what trials could not send while the server was away. Returns why something is left, or None."""
    for trial in search.trials():
        if not is_sent(trial):
            sender = Sender(trial)
            sender.send_now()
            if sender.problem:
                return sender.problem
    return None
