"""Ray Tune under a search, with trials that train nothing: signals, lost processes, failures, and what Tune writes to disk."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from optuna.exceptions import StorageInternalError
from ray import tune
from ray.exceptions import OutOfMemoryError

from starlab.experiments.spec import SearchSpec, load_search
from starlab.pipelines.clip import ClipSource
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EndRequest
from starlab.platform.search import tuning
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import objectives_of
from starlab.platform.search.trial import Study
from starlab.platform.search.trial_folders import TrialFolders
from starlab.platform.search.tuning import run_trials

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(600)]
PASSWORD = "pa55wordpa55word"


def spec_of(*overrides: str) -> SearchSpec:
    return load_search("demo_search", [f"tracking.uri=https://me:{PASSWORD}@mlflow.example", *overrides])


class Tried:
    """A search's folder, and calls of it with a trial of the test's own."""

    def __init__(self, path: Path, spec: SearchSpec) -> None:
        self.folder = RunFolder(path / "search")
        self.folder.path.mkdir(exist_ok=True)
        self.folders = TrialFolders(self.folder, spec.without_password(), "f")
        self.study = Study(spec, cast(ClipSource, None), objectives_of(spec), path, self.folder)
        self.said: list[str] = []

    def run(self, trials: int, concurrent: int = 2) -> Ledger:
        spec = replace(self.study.spec, search=replace(self.study.spec.search, trials=trials))
        self.study = replace(self.study, spec=spec)
        self.ledger = Ledger(self.folders, spec.search, self.study.objectives)
        run_trials(self.study, self.ledger, self.folders, lambda: concurrent, self.said.append)
        return self.ledger


def plain_trial(values: dict[str, Any], study: Study) -> None:
    import json

    for epoch in (1, 2):
        tune.report({"objective": values["train.lr"] * epoch, "epoch": epoch})
    value = values["train.lr"] * 2
    tune.report({"objective": value, "outcome": json.dumps({"values": {"val/top1": value}, "epochs": 2})})


def by_value(trial: Callable[..., None]) -> Callable[..., None]:
    """The same function as one that Ray's workers need not import: they do not see the tests."""
    trial.__module__ = "__main__"
    return trial


def test_tune_writes_no_password_into_the_searchs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "run_trial", by_value(plain_trial))
    tried = Tried(tmp_path, spec_of())
    ledger = tried.run(3)
    assert len(ledger.trials()) == 3
    assert {tuple(curve) for curve in ledger.curves().values()} == {(1, 2)}
    assert [trial.epochs for trial in ledger.trials()] == [2, 2, 2]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "tuner.pkl" for path in files)
    for path in files:  # Tune's state holds pickles as hexadecimal text, too
        data = path.read_bytes().lower()
        assert PASSWORD.encode() not in data, path
        assert PASSWORD.encode().hex().encode() not in data, path


def test_what_tune_pickles_does_not_reach_the_password_of_the_storage(tmp_path: Path) -> None:
    from ray import cloudpickle

    from starlab.platform.search.early_stopping import AskToEnd
    from starlab.platform.search.trial_lines import TrialLines

    def ask(values: dict[str, Any], reason: str, secret: str = PASSWORD) -> None:
        """Reaches the ledger, as in `run_trials`, and with it the database's address."""

    def say(line: str, secret: str = PASSWORD) -> None:
        """Prints."""

    tried = Tried(tmp_path, spec_of())
    [objective] = tried.study.objectives
    scheduler = AskToEnd(None, objective, tried.folders.place, ask)
    lines = TrialLines(None, objective, say, tried.folders)
    assert PASSWORD.encode() in cloudpickle.dumps(say)
    assert PASSWORD.encode() not in cloudpickle.dumps((scheduler, lines))


def test_what_tune_writes_does_not_grow_with_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "run_trial", by_value(plain_trial))
    tried = Tried(tmp_path, spec_of())
    object.__setattr__(tried.study, "source", os.urandom(3_000_000))
    tried.run(1)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1_000_000


def test_a_trial_whose_process_dies_is_started_again_and_a_failed_one_is_named_and_tried_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def trial(values: dict[str, Any], study: Any) -> None:
        import json
        import os

        from ray import tune

        died, failed = study.folder.path / "died", study.folder.path / "failed"
        if not died.exists():
            died.touch()
            os._exit(1)
        if not failed.exists():
            failed.touch()
            tune.report({"objective": float("nan"), "failed": "worker 0: out of memory"})
            return
        value = values["train.lr"]
        tune.report({"objective": value, "outcome": json.dumps({"values": {"val/top1": value}, "epochs": 1})})

    monkeypatch.setattr(tuning, "run_trial", trial)
    tried = Tried(tmp_path, spec_of())
    ledger = tried.run(3, concurrent=1)
    assert len(ledger.trials()) == 2
    assert list(ledger.failed().values()) == ["worker 0: out of memory"]
    assert len([line for line in tried.said if "starts again" in line]) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert [line for line in tried.said if "failed: worker 0: out of memory" in line]
    [failed] = ledger.failed()
    again = tried.run(3)
    assert failed in {trial.run for trial in again.trials()}
    assert again.failed() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_trials_and_the_search_and_the_next_call_goes_on_with_the_same_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def waits(values: dict[str, Any], study: Any) -> None:
        """Trains until its run's folder asks it to end, as `run_trial` does."""
        import time

        from ray import tune

        run = study.folder.path / "trials" / study.spec.spec_of(values).run_id("f")
        run.mkdir(parents=True, exist_ok=True)
        tune.report({"objective": 0.5, "epoch": 1})
        (study.folder.path / "started").touch()
        while not (run / "preempt.json").exists():
            time.sleep(0.05)

    def interrupt() -> None:
        while not (tmp_path / "search" / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(tuning, "run_trial", waits)
    tried = Tried(tmp_path, spec_of("resources.grace_seconds=120"))
    before = signal.getsignal(number)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(RunPreemptedError, match=f"the driver got {number.name}; 0 of 6 trials are finished") as caught:
        tried.run(6)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert "TUNE_DISABLE_SIGINT_HANDLER" not in os.environ
    started = [line.partition("starts: ")[2] for line in tried.said if "starts:" in line]
    assert len(started) <= 2  # nothing new was proposed
    assert [line for line in tried.said if "pauses with a checkpoint" in line]
    assert tried.ledger.trials() == []
    asked = [RunFolder(path).require(EndRequest) for path in (tmp_path / "search" / "trials").iterdir()]
    assert {request.signal for request in asked} == {number}

    tried.said.clear()
    monkeypatch.setattr(tuning, "run_trial", by_value(plain_trial))
    assert len(tried.run(3).trials()) == 3
    again = [line.partition("starts: ")[2] for line in tried.said if "starts:" in line]
    assert set(started) <= set(again)
    assert len(set(again)) == 3


def test_a_search_whose_space_is_used_up_ends_before_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "run_trial", by_value(plain_trial))
    one_point = ["space.model.layers={choice: [1]}", "space.model.encoder={choice: [FF]}", "space.model.decoder={choice: [FZ]}"]
    tried = Tried(tmp_path, spec_of(*one_point, "space.train.lr={choice: [0.001, 0.002]}"))
    assert len(tried.run(5).trials()) == 2
    assert "search   every point of the space has been tried" in tried.said


def test_a_trials_driver_sits_beside_the_search_and_takes_no_cpu(local_ray: Cluster) -> None:
    import ray

    wanted = tuning._beside_this_process()
    assert wanted.pop("CPU") == 0
    [(name, share)] = wanted.items()
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    assert here["Resources"][name] >= 1000 * share


def test_a_failure_of_tune_itself_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reports_no_metric(values: dict[str, Any], study: Any) -> None:
        from ray import tune

        tune.report({"epoch": 1})

    monkeypatch.setattr(tuning, "run_trial", reports_no_metric)
    with pytest.raises(RunFailedError, match=r"^search search failed; the same command goes on\. .*objective") as caught:
        Tried(tmp_path, spec_of()).run(1)
    assert "\n" not in str(caught.value)


def test_a_search_whose_hours_are_used_up_has_its_trials_write_checkpoints_and_ends_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(values: dict[str, Any], study: Any) -> None:
        import time

        from ray import tune

        run = study.folder.path / "trials" / study.spec.spec_of(values).run_id("f")
        run.mkdir(parents=True, exist_ok=True)
        tune.report({"objective": 0.5, "epoch": 1})
        while not (run / "preempt.json").exists():
            time.sleep(0.05)

    monkeypatch.setattr(tuning, "run_trial", waits)
    tried = Tried(tmp_path, spec_of("search.hours=0.001"))
    assert tried.run(6).trials() == []
    assert [line for line in tried.said if line.startswith("search   its 0.001 hours (search.hours) are used up; with more")]
    assert [line for line in tried.said if "pauses with a checkpoint" in line]
    started = {line.partition("starts: ")[2] for line in tried.said if "starts:" in line}
    tried.said.clear()
    tried.study = replace(tried.study, spec=spec_of("search.hours=100"))
    monkeypatch.setattr(tuning, "run_trial", by_value(plain_trial))
    assert len(tried.run(3).trials()) == 3
    assert started <= {line.partition("starts: ")[2] for line in tried.said if "starts:" in line}


def test_what_ray_throws_at_a_search_is_one_line_with_the_cause_and_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(_: tune.Tuner) -> None:
        raise OutOfMemoryError(
            "1 worker(s) were killed due to the node running low on memory. Memory on the node was 21.22GB / 23.54GB (0.90)\n"
            "OOM kill reason: Memory usage exceeded threshold\nEviction Stats:\n..."
        )

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    with pytest.raises(RunFailedError, match="its machine ran out of memory") as failed:
        Tried(tmp_path, spec_of()).run(1)
    assert "\n" not in str(failed.value)
    assert "the same command goes on" in str(failed.value)


@pytest.mark.parametrize(
    "thrown",
    [OSError(28, "No space left on device"), StorageInternalError(f"postgresql://me:{PASSWORD}@host\nis away")],
    ids=["disk", "database"],
)
def test_a_full_disk_or_a_database_that_is_away_is_one_line_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thrown: Exception
) -> None:
    monkeypatch.setattr(tuning, "run_trial", by_value(plain_trial))
    propose, calls = Ledger.propose, iter(range(100))

    def fails_at_the_third(ledger: Ledger, *arguments: Any) -> Any:
        if next(calls) == 2:
            raise thrown
        return propose(ledger, *arguments)

    tried = Tried(tmp_path, spec_of())
    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "propose", fails_at_the_third)
        with pytest.raises(RunFailedError, match="the same command goes on") as failed:
            tried.run(4)
    assert "\n" not in str(failed.value)
    assert PASSWORD not in str(failed.value)
    assert len(tried.run(4).trials()) == 4
