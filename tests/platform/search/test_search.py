"""A search in small: trials nested in MLflow, the best alone tested, an interrupted one taken up."""

import json

import pytest
from mlflow import MlflowClient

from starlab.experiments.spec import SearchSpec, load_search
from starlab.platform.cluster.connect import Cluster
from starlab.platform.runs.checkpoint import checkpoint_steps
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import Result
from starlab.platform.search.room import runs_at_once, runs_that_fit
from starlab.platform.search.search import SearchResult, search, search_id
from starlab.platform.summary import search_lines

SMALL = [
    "data.synthetic.train_clips_per_class=4",
    "data.synthetic.test_clips_per_class=2",
    "data.synthetic.size_px=48",
    "data.frames=4",
    "data.size=24",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=2",
    "search.grace_epochs=1",
]


def spec(trials: int, *overrides: str) -> SearchSpec:
    return load_search("demo_search", [*SMALL, f"search.trials={trials}", *overrides])


@pytest.fixture(scope="module")
def searched(local_ray: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, list[str]]:
    said: list[str] = []
    return search(spec(3), runs=tmp_path_factory.mktemp("runs"), say=said.append), said


def test_every_trial_is_a_child_run_with_its_point_of_the_space(searched: tuple[SearchResult, list[str]]) -> None:
    result, _ = searched
    assert len(result.trials) == 3
    client = MlflowClient(result.best.tracking_uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.data.tags["starlab.run_id"] for run in parents] == [result.folder.name]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id} == {result.mlflow_run_id}
    assert f"compare    starlab compare {result.folder.name}" in search_lines(result)
    assert search_lines(result)[-2].startswith(f"MLflow     run {result.mlflow_run_id} in sqlite:")
    by_id = {run.data.tags["starlab.run_id"]: run for run in children}
    assert by_id.keys() == {trial.run for trial in result.trials}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for trial in result.trials:
        for key, value in trial.values.items():
            assert by_id[trial.run].data.params[key] == str(value)
            assert f"{key.rpartition('.')[2]}=" in by_id[trial.run].info.run_name  # named by its point of the space
    assert parents[0].data.metrics["best/val_top1"] == max(trial.val_top1 for trial in result.trials)
    assert parents[0].data.metrics["test/top1"] == result.best.metrics["test/top1"]
    assert parents[0].data.tags["starlab.best_trial"].startswith(f"{result.best.run_id}: ")
    assert {file.path for file in client.list_artifacts(parents[0].info.run_id)} == {
        "report.html",
        "trials.csv",
        "trials.png",
    }


def test_only_the_best_whole_trial_has_looked_at_the_test_part(searched: tuple[SearchResult, list[str]]) -> None:
    result, _ = searched
    tested = [path.parent.name for path in result.folder.glob("trials/*/result.json") if "test" in json.loads(path.read_text())]
    assert tested == [result.best.run_id]
    best = next(trial for trial in result.trials if trial.whole)
    assert best.run == result.best.run_id
    assert [trial.val_top1 for trial in result.trials] == sorted((trial.val_top1 for trial in result.trials), reverse=True)


def test_trials_keep_their_best_checkpoint_alone(searched: tuple[SearchResult, list[str]]) -> None:
    result, _ = searched
    for trial in result.trials:
        folder = RunFolder(result.folder / "trials" / trial.run)
        assert checkpoint_steps(folder.stored_checkpoints) == [folder.require(Result).best_step]


def test_the_same_search_again_tries_nothing_new_and_more_trials_only_the_rest(
    searched: tuple[SearchResult, list[str]],
) -> None:
    result, _ = searched
    said: list[str] = []
    again = search(spec(3), runs=result.folder.parent, say=said.append)
    assert again.trials == result.trials
    assert not [line for line in said if line.startswith("trial ")]
    more = search(spec(4), runs=result.folder.parent, say=said.append)
    assert more.folder == result.folder
    assert len(more.trials) == 4
    assert len([line for line in said if "starts:" in line]) == 1
    looks = len([path for path in result.folder.glob("trials/*/result.json") if "test" in json.loads(path.read_text())])
    assert more.looks_at_test == looks  # another best trial is a second look at the test part
    assert (looks > 1) == any("another look" in line for line in said)
    info = RunFolder(more.folder).info
    assert info.tags.get("starlab.test_looks") == (str(looks) if looks > 1 else None)


def test_the_packaged_search_keeps_its_id() -> None:
    """Golden: a search that changes its id starts from nothing. If it changes on purpose, CHANGELOG.md says so."""
    assert search_id(load_search("demo_search"), "x") == "demo_search-544a37c4"


def test_another_space_or_budget_is_the_same_search_and_another_base_or_sampler_is_another() -> None:
    same = (
        ["space.train.lr={log: [0.001, 0.1]}"],
        ["search.hours=2"],
        ["search.seeds=3"],
        ["search.objectives=[val/loss, flops]"],
        ["search.early_stopping=none"],
    )
    assert {search_id(spec(30), "f"), *(search_id(spec(3, *more), "f") for more in same)} == {search_id(spec(3), "f")}
    others = ([], ["train.seed=1"], ["search.seed=1"], ["search.sampler=random"])
    assert len({search_id(spec(3, *more), "f") for more in others}) == 4
    assert search_id(spec(3), "other data") != search_id(spec(3), "f")


def test_a_cluster_that_can_grow_gets_one_run_more_than_fit_and_a_full_one_does_not() -> None:
    cluster = Cluster(local=False, nodes=2, cpus=16, gpus=8, accelerators=("V100",))
    four_each = spec(3, "resources.gpus_per_worker=1", "resources.workers=4")
    assert runs_at_once(four_each, cluster, None) == 2
    assert runs_at_once(four_each, cluster, {"CPU": 64, "GPU": 16}) == 3
    assert runs_at_once(four_each, cluster, {"CPU": 64, "GPU": 8}) == 2
    fixed = spec(3, "resources.gpus_per_worker=1", "resources.workers=4", "search.concurrent=5")
    assert runs_at_once(fixed, cluster, {"CPU": 64, "GPU": 16}) == 5


def test_the_number_of_runs_at_once_follows_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlab.platform.search import room

    seen, now = iter([4.0, 6.0]), 0.0
    monkeypatch.setattr(
        room, "describe_cluster", lambda: Cluster(local=True, nodes=1, cpus=next(seen), gpus=0, accelerators=())
    )
    monkeypatch.setattr(room, "most_resources", lambda: None)
    watched = room.watch_room(spec(3, "resources.workers=2"), lambda: now)
    assert [watched(), watched()] == [2, 2]
    now = 6.0
    assert watched() == 3


@pytest.mark.parametrize(("gpus_per_worker", "workers", "expected"), [(1, 4, 2), (1, 1, 8), (0, 2, 8)])
def test_as_many_trials_run_at_once_as_the_cluster_holds(gpus_per_worker: int, workers: int, expected: int) -> None:
    cluster = Cluster(local=False, nodes=2, cpus=16, gpus=8, accelerators=("V100",))
    resources = [f"resources.gpus_per_worker={gpus_per_worker}", f"resources.workers={workers}"]
    assert runs_that_fit(spec(3, *resources), cluster) == expected
