"""Search: Ray Tune runs trials, Optuna proposes them, hopeless ones end early, MLflow nests them under one parent run.

    runs/demo_search-5e6f7a8b/
      spec.json  run.json      the search as asked (the MLflow parent run)
      optuna.db                every proposal and its values (storage.py)
      usage.json               hours used (budget.py)
      trials/demo_search-…/    a run folder per trial and seed
      search.json              the end: trials, best first

An interrupted search goes on: a trial that was under way is proposed again; it has the same spec, so it goes on from its own
checkpoint. A search is known by its base, the data, its sampler and the sampler's seed. With another space or budget it is the
same search, and takes up every run that still fits. Trials are compared on the validation part. Only the best one is evaluated
on the test part, once, at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from starlab.experiments.spec import SearchSpec
from starlab.pipelines.clip import DataError
from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.package import code_hash, package_root
from starlab.platform.preemption import close_unfinished
from starlab.platform.preflight import check_spec, join_cluster, open_data, split_parts
from starlab.platform.reports.figures import write_search_artifacts
from starlab.platform.reports.report import report_at_end
from starlab.platform.runs.folder import SPEC, RunFolder, runs_folder
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.lifecycle import close_run, open_run
from starlab.platform.runs.metric_names import TEST_TOP1
from starlab.platform.runs.records import MlflowState
from starlab.platform.runs.search_records import SearchSummary, Trial
from starlab.platform.search.best_so_far import record_winner
from starlab.platform.search.budget import Budget
from starlab.platform.search.early_stopping import make_rungs
from starlab.platform.search.importance import importances
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import Objective, objectives_of, pareto_front
from starlab.platform.search.room import watch_room
from starlab.platform.search.samplers import make_sampler
from starlab.platform.search.space import Space, values_text
from starlab.platform.search.storage import dashboard_command, open_storage
from starlab.platform.search.takeup import runs_of_other_code
from starlab.platform.search.trial import Study, keep_best_checkpoint
from starlab.platform.search.trial_folders import TrialFolders
from starlab.platform.search.tuning import run_trials
from starlab.platform.serving.initial_weights import with_digest
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.sender import Sender
from starlab.platform.tracking.unsent import send_rest_of_trials
from starlab.platform.trainer import RunResult, run_training


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A finished search."""

    folder: Path
    trials: list[Trial]
    """Best first."""
    objectives: tuple[Objective, ...]
    """What the trials are judged by, the one that decides about the best first."""
    pareto_front: list[Trial]
    """The whole trials that no other one beats in every objective, best first; empty with one objective."""
    failed: dict[str, str]
    """Why each trial failed that has no value, by run id."""
    best: RunResult
    """The best trial, with the test part evaluated."""
    looks_at_test: int
    """Evaluations of the test part by all trials of the search; an extended search with another best trial is a second one."""
    dashboard: str
    """The command that shows the proposals in the browser."""
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
    for point in ({}, *spec.edges()):
        check_spec(spec.spec_of(point))
    objectives = check_search(spec)
    spec = replace(spec, base=with_digest(spec.base, root))
    source, _ = open_data(spec.base, root, say)
    for point in spec.edges():
        if not split_parts(spec.spec_of(point), source).train:
            raise DataError(f"at {values_text(point)} there is no clip to train on")
    folder = RunFolder(root / search_id(spec, source.fingerprint))
    if fresh and folder.path.exists():
        with Lease.claim(folder.path):  # not while another process runs it
            kept = folder.set_aside()
        say(f"fresh    the earlier search is kept as {kept}")
    close_abandoned_everywhere(root)
    join_cluster(spec.base, spec.search.concurrent or 1, say)
    folders = TrialFolders(folder, spec.without_password(), source.fingerprint)
    study = Study(spec, source, objectives, root, folder)
    with Lease.claim(folder.path, wait=say) as lease:
        open_run(folder, spec.base, source, root, parent=None, resolved=spec.to_dict())
        folder.write_json(SPEC, spec.to_dict())  # its space and budget may be others than in an earlier call
        with Sender(folder, spec.base.tracking.address(root)) as sender:
            sender.send_now()  # the parent run must be there before its children
            try:
                ledger = _try_points(study, folders, say)
                trials = ledger.trials()
                best = _test_best(study, trials, say)
            except BaseException as error:
                if lease.holds():
                    close_unfinished(folder, error)
                raise
            looks = sum(run.looks_at_test() for run in folder.trials())
            front = pareto_front(trials, objectives) if len(objectives) > 1 else []
            folder.write(
                SearchSummary(
                    trials=tuple(trials),
                    best=best.run_id,
                    test_top1=best.metrics[TEST_TOP1],
                    objectives={objective.name: objective.direction for objective in objectives},
                    pareto_front=tuple(trial.run for trial in front),
                    seeds=spec.seeds,
                    importance=importances(trials, spec.space, objectives[0]),
                )
            )
            record_winner(folder, next(trial for trial in trials if trial.run == best.run_id), best.metrics)
            write_search_artifacts(folder, trials, spec.space, objectives[0].name)
            for run in folder.trials():
                keep_best_checkpoint(run)
            report_at_end(folder, say)
            close_run(folder, "FINISHED", {"starlab.test_looks": str(looks)} if looks > 1 else {})
    problem = sender.problem or send_rest_of_trials(folder)
    failed = ledger.failed()
    if not failed:  # the log of a failed trial stays
        shutil.rmtree(folder.path / "ray", ignore_errors=True)
    tracked = folder.read(MlflowState)
    return SearchResult(
        folder=folder.path,
        trials=trials,
        objectives=objectives,
        pareto_front=front,
        failed=failed,
        best=best,
        looks_at_test=looks,
        dashboard=dashboard_command(spec.search, folder.path),
        seconds=time.monotonic() - began,
        mlflow_run_id=tracked.run_id if tracked else None,
        tracking_problem=problem,
    )


def check_search(spec: SearchSpec) -> tuple[Objective, ...]:
    """Check what the types of a search cannot check, before anything is started. Returns its objectives.

    Raises:
        UserError: no such sampler, objective or storage, or one that does not fit the others; or no actions are learned.
    """
    if not spec.base.train.learns_actions:
        raise UserError("train.action_loss_weight is 0, so a search would compare actions that no trial learns; use 1")
    objectives = objectives_of(spec)
    make_sampler(spec.search.sampler, spec.search.seed, Space(spec.space), len(objectives))
    make_rungs(spec, objectives)
    open_storage(spec.search)
    return objectives


def _try_points(study: Study, folders: TrialFolders, say: Callable[[str], None]) -> Ledger:
    """Run the trials that are left of the search's budget."""
    config, folder = study.spec.search, study.folder
    others = runs_of_other_code(folder.trials(), code_hash(package_root()))
    ledger, room, budget = Ledger(folders, config, study.objectives, say), watch_room(study.spec), Budget(folder, study.spec)
    done, wanted = len(ledger.trials()), "as many trials as fit" if config.trials is None else f"{config.trials} trials"
    say(f"search   {folder.path}: {wanted}, {done} done before; {room()} at once")
    for code, runs in others.items():
        say(f"note     {runs} earlier runs were made by other code ({code[:12]}) and count; --fresh starts without them")
    if not ledger.is_spent and not budget.spent:
        run_trials(study, ledger, folders, room, say)
        close_abandoned_everywhere(study.runs)  # a trial whose process was killed could not close its own run
    return ledger


def _test_best(study: Study, trials: Sequence[Trial], say: Callable[[str], None]) -> RunResult:
    """Evaluate the best trial that reached its end on the test part, once. Of several seeds, the first one's run.

    Raises:
        RunFailedError: no trial reached its end.
    """
    folder, whole = study.folder, [trial for trial in trials if trial.whole]
    if not whole:
        hint = "; give the search more time" if trials or study.spec.search.hours else ""
        raise RunFailedError(f"no trial of {folder.path.name} reached its end; see {folder.path / 'trials'}{hint}")
    say(f"best     {whole[0].run}: {values_text(whole[0].values)}; it alone is evaluated on the test part")
    earlier = [run.path.name for run in folder.trials() if run.looks_at_test() and run.path.name != whole[0].run]
    if earlier:
        say(f"note     the test part was evaluated before, with {', '.join(earlier)}: this is another look at it")
    # Silently: it only evaluates, and goes on from the trial's last checkpoint to do so.
    return run_training(study.request(whole[0].values, is_trial=False))


def search_id(spec: SearchSpec, fingerprint: str) -> str:
    """Name + 8 hex digits over the base, the sampler and its seed; with another space or budget it is the same search."""
    text = json.dumps([spec.base.run_id(fingerprint), spec.search.sampler, spec.search.seed])
    return f"{spec.base.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
