"""A widened, narrowed or longer search takes up every run that still fits; seeds, start points, and spaces that are used up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlab.experiments.space import Distribution, in_order
from starlab.experiments.spec import SearchSpec, load_search
from starlab.platform.errors import UserError
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.journal import Journal
from starlab.platform.runs.records import Result, RunInfo
from starlab.platform.search import ledger as ledger_module
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import Outcome, objectives_of
from starlab.platform.search.proposal import Proposal
from starlab.platform.search.search import check_search
from starlab.platform.search.space import Space, point_text
from starlab.platform.search.storage import open_storage
from starlab.platform.search.trial_folders import TrialFolders

LAYERS = "{model.layers: {int: [1, 4]}, model.encoder: {choice: [FF, FZ]}}"


def search(tmp_path: Path, space: str, *overrides: str) -> SearchSpec:
    file = tmp_path / "s.yaml"
    file.write_text(f"base: demo\nspace: {space}\n")
    return load_search(str(file), ["search.trials=100", "search.start=[]", *overrides])


class Searched:
    """Calls of one search, with runs that are written where a training would write them."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.folder = RunFolder(tmp_path / "search")
        self.folder.path.mkdir()

    def open(self, spec: SearchSpec) -> Ledger:
        self.folders = TrialFolders(self.folder, spec, "f")
        self.ledger = Ledger(self.folders, spec.search, objectives_of(spec))
        return self.ledger

    def train(self, proposal: Proposal, top1: float = 0.5, *, steps: int = 8, loss: float = 1.0) -> Outcome:
        """Write the run of a proposal."""
        run, spec = self.folders.at(proposal.values), self.folders.spec.spec_of(proposal.values)
        run.write_json(SPEC, spec.to_dict())
        run.write(_info(run))
        journal = Journal(run.path / "journal.jsonl")
        for epoch in (2, 4):
            journal.log(10 * epoch, {"epoch": epoch, "val/top1": top1 * epoch / 4, "val/loss": loss})
        journal.close()
        val = {"top1": top1, "loss": loss}
        run.write(Result(steps=steps, total_steps=8, best_step=1, selected_by="validation", classes=("a",), val=val, epochs=8))
        return Outcome(values={"val/top1": top1}, epochs=8, whole=steps == 8)

    def finish(self, count: int, **reached: Any) -> list[dict[str, Any]]:
        points = []
        for _ in range(count):
            if proposal := self.ledger.propose():
                self.ledger.finish(proposal, self.train(proposal, **reached))
                points.append(proposal.values)
        return points


def _info(run: RunFolder) -> RunInfo:
    return RunInfo(
        run_id=run.path.name,
        key=run.path.name,
        experiment="s",
        mlflow_experiment="s",
        tracking_uri="",
        runs="",
        status="FINISHED",
        tags={},
    )


def test_a_wider_a_narrower_and_a_longer_search_take_up_every_run_that_fits(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.open(search(tmp_path, LAYERS))
    assert len(searched.finish(8)) == 8
    wider = searched.open(search(tmp_path, "{model.layers: {int: [1, 6]}, model.encoder: {choice: [FF, FZ, FB]}}"))
    assert len(wider.trials()) == 8
    assert list(wider.curves().values()) == [{2: 0.25, 4: 0.5}] * 8  # what early stopping compares new trials with
    assert len(searched.finish(20)) == 18 - 8
    narrower = searched.open(search(tmp_path, "{model.layers: {int: [2, 3]}, model.encoder: {choice: [FF, FZ]}}"))
    assert {trial.values["model.layers"] for trial in narrower.trials()} == {2, 3}
    assert len(narrower.trials()) == 4
    assert narrower.propose() is None
    fewer_keys = searched.open(search(tmp_path, "{model.layers: {int: [1, 8]}}"))
    assert {trial.values["model.layers"] for trial in fewer_keys.trials()} == {1, 2, 3, 4, 5, 6}  # with the base's encoder
    again = searched.open(search(tmp_path, LAYERS))
    assert len(again.trials()) == 8
    assert again.propose() is None


def test_another_objective_ranks_the_same_runs_anew(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.open(search(tmp_path, LAYERS))
    for top1, loss in ((0.9, 2.0), (0.5, 0.5)):
        searched.finish(1, top1=top1, loss=loss)
    by_loss = searched.open(search(tmp_path, LAYERS, "train.select_by=top1", "search.objectives=[val/loss]"))
    assert [trial.objectives for trial in by_loss.trials()] == [{"val/loss": 0.5}, {"val/loss": 2.0}]
    both = searched.open(search(tmp_path, LAYERS, "search.objectives=[val/top1, flops]"))
    assert [trial.val_top1 for trial in both.trials()] == [0.9, 0.5]
    assert both._study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]


def test_a_run_that_was_under_way_in_another_space_goes_on_first(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.open(search(tmp_path, LAYERS))
    proposal = searched.ledger.propose()
    assert proposal is not None
    searched.train(proposal)
    searched.folders.at(proposal.values).remove(Result)  # killed before its end
    again = searched.open(search(tmp_path, "{model.layers: {int: [1, 8]}, model.encoder: {choice: [FF, FZ]}}")).propose()
    assert again is not None
    assert again.values == proposal.values


def test_a_run_that_ended_between_its_result_and_the_ledger_is_not_trained_again(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.open(search(tmp_path, LAYERS))
    proposal = searched.ledger.propose()
    assert proposal is not None
    searched.train(proposal, 0.75)  # and the driver is killed
    again = searched.open(search(tmp_path, LAYERS))
    assert [(trial.values, trial.val_top1) for trial in again.trials()] == [(proposal.values, 0.75)]
    points = searched.finish(20)
    assert len(points) == 7
    assert proposal.values not in points


def test_a_damaged_run_is_passed_over_and_named(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.open(search(tmp_path, LAYERS))
    [first, _] = searched.finish(2)
    (searched.folders.at(first).path / SPEC).write_text("{")
    said: list[str] = []
    spec = search(tmp_path, "{model.layers: {int: [1, 8]}, model.encoder: {choice: [FF, FZ]}}")
    opened = Ledger(TrialFolders(searched.folder, spec, "f"), spec.search, objectives_of(spec), said.append)
    assert len(opened.trials()) == 1
    assert [line for line in said if "is damaged" in line]


def test_each_point_has_a_run_per_seed_and_the_value_is_their_mean(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    ledger = searched.open(search(tmp_path, LAYERS, "search.seeds=3", "train.seed=5"))
    proposals = [proposal for _ in range(4) if (proposal := ledger.propose())]
    assert [proposal.seed for proposal in proposals] == [5, 6, 7, 5]
    assert [proposal.values["train.seed"] for proposal in proposals] == [5, 6, 7, 5]
    assert len({point_text(searched.folders.point(proposal.values)) for proposal in proposals}) == 2
    for proposal, top1 in zip(proposals[:3], (0.3, 0.6, 0.9), strict=True):
        assert ledger.trials() == []
        ledger.finish(proposal, searched.train(proposal, top1))
    [trial] = ledger.trials()
    assert (trial.val_top1, trial.whole) == (pytest.approx(0.6), True)
    assert trial.runs == tuple(searched.folders.run_id(proposal.values) for proposal in proposals[:3])
    more = searched.open(search(tmp_path, LAYERS, "search.seeds=4", "train.seed=5"))
    first = more.propose()
    assert first is not None  # the first point goes on with its fourth seed, before the second point
    assert (searched.folders.point(first.values), first.seed) == (trial.values, 8)


def test_a_hopeless_point_starts_no_more_seeds_and_one_with_a_failed_seed_fails(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    ledger = searched.open(search(tmp_path, LAYERS, "search.seeds=3"))
    first, second = ledger.propose(), ledger.propose()
    assert first is not None
    assert second is not None
    assert ledger.give_up(first.values) == [first.values, second.values]
    ledger.finish(first, searched.train(first, 0.2, steps=4))
    ledger.finish(second, searched.train(second, 0.4, steps=4))
    [trial] = ledger.trials()
    assert (trial.val_top1, trial.whole, len(trial.runs)) == (pytest.approx(0.3), False, 2)
    third = ledger.propose()
    assert third is not None
    assert third.seed == 0
    ledger.fail(third, "out of memory")
    assert list(ledger.failed().values()) == ["out of memory"]
    following = ledger.propose()
    assert following is not None
    assert searched.folders.point(following.values) != searched.folders.point(third.values)


def test_a_search_begins_at_its_base_and_at_the_given_points(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    base = searched.open(search(tmp_path, LAYERS, "search.start=null")).propose()
    assert base is not None
    assert base.values == {"model.layers": 1, "model.encoder": "FZ"}
    searched.ledger.finish(base, searched.train(base))
    given = searched.open(search(tmp_path, LAYERS, "search.start=[{model.layers: 3}, {model.layers: 4, model.encoder: FF}]"))
    points = searched.finish(2)
    assert points == [{"model.layers": 3, "model.encoder": "FZ"}, {"model.layers": 4, "model.encoder": "FF"}]
    assert len(given.trials()) == 3


def test_the_budget_of_trials_counts_earlier_calls_and_failures_of_this_one(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.open(search(tmp_path, LAYERS, "search.trials=3"))
    assert len(searched.finish(8)) == 3
    longer = searched.open(search(tmp_path, LAYERS, "search.trials=5"))
    failing = longer.propose()
    assert failing is not None
    longer.fail(failing, "out of memory")
    assert len(searched.finish(8)) == 1
    assert longer.is_spent


def test_the_grid_goes_through_the_points_in_order(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    spec = search(tmp_path, LAYERS, "search.sampler=grid", "search.start=[{model.layers: 2, model.encoder: FZ}]")
    searched.open(spec)
    points = searched.finish(3)
    searched.open(spec)  # another call
    points += searched.finish(20)
    order = [(layers, encoder) for layers in (1, 2, 3, 4) for encoder in ("FF", "FZ")]
    order = [(2, "FZ"), *(point for point in order if point != (2, "FZ"))]
    assert [(point["model.layers"], point["model.encoder"]) for point in points] == order


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_a_ledger_goes_on_with_every_sampler(tmp_path: Path, sampler: str) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    space = "{train.lr: {log: [1.0e-4, 1.0e-2]}, model.layers: {int: [1, 4]}}"
    searched = Searched(tmp_path)
    for _ in range(2):
        searched.open(search(tmp_path, space, f"search.sampler={sampler}"))
        searched.finish(6)
    assert len(searched.ledger.trials()) == 12


def test_a_sampler_works_with_several_objectives_and_conditions(tmp_path: Path) -> None:
    space = """
      train.optimizer: {choice: [sgd, adamw]}
      train.momentum: {float: [0.8, 0.95], step: 0.05, when: {train.optimizer: sgd}}
      train.lr: {log: [1.0e-4, 1.0e-2]}"""
    searched = Searched(tmp_path)
    file = f"\n{space}"
    spec = search(tmp_path, file, "search.objectives=[val/top1, parameters]")
    ledger = searched.open(spec)
    for index in range(20):
        proposal = ledger.propose()
        assert proposal is not None
        assert ("train.momentum" in proposal.values) == (proposal.values["train.optimizer"] == "sgd")
        ledger.finish(proposal, Outcome(values={"val/top1": index / 20, "parameters": float(index)}, epochs=1))
    assert len(ledger.trials()) == 20


KEYS = ("train.evaluate_every_epochs", "train.warmup_fraction", "train.log_every_steps")

BASE = load_search("demo_search", ["search.trials=null", "search.start=[]", "space.train.lr={choice: [0.001]}"])


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Distribution]:
    """A discrete space of one to three keys, some with a condition on an earlier one."""
    space: dict[str, Distribution] = {}
    for key in KEYS[: draw(st.integers(1, 3))]:
        size = draw(st.integers(2, 3))
        form: dict[str, Any] = {"int": [2, 2 + size - 1]}
        if key == "train.warmup_fraction":
            form = {"float": [0.1, round(0.1 + 0.05 * (size - 1), 2)], "step": 0.05}
        elif draw(st.booleans()):
            form = {"choice": [2, 4, 8][:size]}
        if space and draw(st.booleans()):
            parent = draw(st.sampled_from(sorted(space)))
            form["when"] = {parent: space[parent].value(draw(st.integers(0, (space[parent].size or 1) - 1)))}
        space[key] = Distribution.from_yaml(form)
    return {key: space[key] for key in in_order(space)}


@pytest.mark.longer
@pytest.mark.timeout(1200)
@given(space=spaces(), seed=st.integers(0, 9), sampler=st.sampled_from(["tpe", "random", "grid"]))
@settings(max_examples=1000)
def test_a_discrete_space_is_used_up_without_a_repeat_in_1000_searches(
    space: dict[str, Distribution], seed: int, sampler: str
) -> None:
    use_up(space, seed, sampler)


@given(space=spaces(), seed=st.integers(0, 9), sampler=st.sampled_from(["tpe", "random", "grid"]))
@settings(max_examples=30)
def test_a_discrete_space_is_used_up_without_a_repeat(space: dict[str, Distribution], seed: int, sampler: str) -> None:
    use_up(space, seed, sampler)


def use_up(space: dict[str, Distribution], seed: int, sampler: str) -> None:
    expected = {point_text(values) for values in Space(space).points()}
    assert len(expected) == Space(space).size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "open_study", lambda *_: optuna.create_study(direction="maximize"))
        spec = replace(BASE, space=space, search=replace(BASE.search, sampler=sampler, seed=seed))
        folders = _FreeFolders(RunFolder(Path("/nowhere")), spec, "f")
        ledger = Ledger(folders, spec.search, objectives_of(spec))
        seen, under_way = [], []
        while proposal := ledger.propose():
            seen.append(point_text(proposal.values))
            under_way.append(proposal)
            if len(under_way) > 2:
                ledger.finish(under_way.pop(0), Outcome(values={"val/top1": len(seen) / 100}, epochs=1))
            assert len(seen) <= len(expected)
    assert sorted(seen) == sorted(expected)


class _FreeFolders(TrialFolders):
    """Of points whose specs are not checked, which would take most of the time."""

    def of_spec(self, spec: Any) -> RunFolder:
        return self.search


def test_a_search_whose_trials_learn_no_actions_is_refused(tmp_path: Path) -> None:
    spec = search(tmp_path, LAYERS, "model.pose=learned", "train.action_loss_weight=0")
    with pytest.raises(UserError, match="would compare actions that no trial learns"):
        check_search(spec)


def test_a_storage_that_cannot_be_opened_is_one_line_without_its_password(tmp_path: Path) -> None:
    for address in (
        "postgresql+psycopg2://me:pa55word@127.0.0.1:1/x",
        "nonsense://me:pa55word@host/x",
        "sqlite:////no/where/x",
    ):
        spec = search(tmp_path, LAYERS, f"search.storage={address}")
        with pytest.raises(UserError, match=r"search\.storage is .* which cannot be opened: ") as caught:
            check_search(spec)
        assert "pa55word" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "ä ö"])
def test_the_database_is_in_the_searchs_folder_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    searched = Searched(tmp_path / name)
    searched.open(search(tmp_path, LAYERS)).propose()
    assert (searched.folder.path / "optuna.db").stat().st_size > 0


def test_proposals_can_be_stored_in_postgresql(
    tmp_path: Path, postgres: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, driver = postgres
    if driver:
        monkeypatch.setattr(sys, "path", [*sys.path, driver])
    searched = Searched(tmp_path)
    for calls in (1, 2):
        searched.open(search(tmp_path, LAYERS, f"search.storage={address}"))
        assert len(searched.finish(2)) == 2
        assert len(searched.ledger.trials()) == 2 * calls
    assert not (searched.folder.path / "optuna.db").exists()
    storage = open_storage(search(tmp_path, LAYERS, f"search.storage={address}").search)
    assert storage is not None
    assert len(storage.get_all_studies()) == 1
    assert not [path for path in searched.folder.path.rglob("*.json") if address in path.read_text()]
