"""The ledger: what a search remembers, and what it proposes next."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna

from starlab.experiments.spec import SearchSpec, load_search
from starlab.platform.runs.folder import RunFolder
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import Outcome, objectives_of
from starlab.platform.search.proposal import Proposal
from starlab.platform.search.storage import FILE
from starlab.platform.search.trial_folders import TrialFolders

POINT = {"model.layers": 1, "model.encoder": "FF", "model.decoder": "FZ", "train.lr": 0.001}


def small_space(tmp_path: Path, space: str, *overrides: str) -> SearchSpec:
    file = tmp_path / "small.yaml"
    file.write_text(f"base: demo\nspace: {space}\n")
    return load_search(str(file), ["search.start=[]", *overrides])


def ledger(tmp_path: Path, spec: SearchSpec | None = None) -> Ledger:
    """A call of the search: the ledger as it opens it."""
    spec = spec or load_search("demo_search", ["search.trials=100", "search.start=[]"])
    folder = RunFolder(tmp_path / "search")
    folder.path.mkdir(exist_ok=True)
    return Ledger(TrialFolders(folder, spec, "f"), spec.search, objectives_of(spec))


def reached(value: float) -> Outcome:
    return Outcome(values={"val/top1": value}, epochs=4)


def propose(ledger: Ledger, count: int) -> list[tuple[Proposal, dict[str, Any]]]:
    proposals = [ledger.propose() for _ in range(count)]
    return [(proposal, proposal.values) for proposal in proposals if proposal is not None]


def test_a_trial_that_was_under_way_is_proposed_again_at_the_same_point_and_once(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    [(done, _), (_, killed)] = propose(first, 2)
    first.finish(done, reached(0.5))
    for _ in range(2):  # the second time it is still waiting
        again = ledger(tmp_path)
    assert len(again.trials()) == 1
    [(_, point), (_, new)] = propose(again, 2)
    assert point == killed
    assert new != killed


def test_a_failed_trial_is_proposed_again_by_the_next_call_and_not_by_this_one(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    [(number, failed)] = propose(first, 1)
    first.fail(number, "worker 0: out of memory")
    assert list(first.failed().values()) == ["worker 0: out of memory"]
    assert all(point != failed for _, point in propose(first, 3))
    again = ledger(tmp_path)
    proposals = propose(again, 4)
    points = [point for _, point in proposals]
    assert points.count(failed) == 1
    again.finish(next(proposal for proposal, point in proposals if point == failed), reached(0.5))
    assert again.failed() == {}


def test_a_search_that_goes_on_does_not_propose_its_first_points_again(tmp_path: Path) -> None:
    seen: list[str] = []
    for _ in range(3):
        opened = ledger(tmp_path)
        for number, point in propose(opened, 3):
            seen.append(str(point))
            opened.finish(number, reached(0.5))
    assert len(set(seen)) == 9
    left_out = [trial for trial in opened._study.trials if "starlab.left_out" in trial.user_attrs]
    assert left_out == []  # new draws, not the old ones passed over


def test_the_first_points_of_a_new_search_are_those_of_its_seed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    same = [propose(ledger(tmp_path / name), 3) for name in ("a", "b")]
    assert same[0] == same[1]
    assert propose(ledger(tmp_path / "c", load_search("demo_search", ["search.seed=1", "search.start=[]"])), 3) != same[0]


def test_every_point_of_a_small_space_is_proposed_once_and_then_the_space_is_used_up(tmp_path: Path) -> None:
    spec = small_space(tmp_path, "{model.layers: {int: [1, 2]}, model.encoder: {choice: [FF, FZ, FB]}}")
    opened = ledger(tmp_path, spec)
    proposals = propose(opened, 8)
    assert len(proposals) == 6
    assert len({str(point) for _, point in proposals}) == 6
    for number, _ in proposals:
        opened.finish(number, reached(0.5))
    assert len(opened.trials()) == 6  # repeats cost nothing of the budget
    assert ledger(tmp_path, spec).propose() is None


def test_null_list_and_mixed_choices_come_back_as_they_were(tmp_path: Path) -> None:
    space = "{train.ema: {choice: [null, 0.9]}, data.crop_area: {choice: [[0.5, 1.0], [0.7, 1.0]]}, "
    space += "train.clip_norm: {choice: [null, 1]}}"
    spec = small_space(tmp_path, space)
    for number, _ in propose(first := ledger(tmp_path, spec), 8):
        first.finish(number, reached(0.5))
    found = [trial.values for trial in ledger(tmp_path, spec).trials()]
    assert len(found) == 8
    assert {str(values["train.ema"]) for values in found} == {"None", "0.9"}
    assert {tuple(values["data.crop_area"]) for values in found} == {(0.5, 1.0), (0.7, 1.0)}


def test_a_point_that_is_not_a_valid_experiment_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    spec = small_space(tmp_path, "{model.dim: {choice: [32, 48]}, model.heads: {choice: [4, 8, 32]}}")
    said: list[str] = []
    opened = ledger(tmp_path, spec)
    points = [point for _ in range(7) if (proposal := opened.propose(said.append)) for point in [proposal.values]]
    assert {(point["model.dim"], point["model.heads"]) for point in points} >= {(32, 4), (32, 8), (48, 4), (48, 8)}
    assert all(point["model.dim"] % point["model.heads"] == 0 for point in points)
    assert any("heads" in line for line in said)


def test_proposals_made_at_the_same_time_know_of_each_other() -> None:
    """With points under way that the sampler ignores, it proposes near the best one each time."""

    def spread(constant_liar: bool) -> float:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4, constant_liar=constant_liar))
        for index in range(20):
            trial = study.ask()
            study.tell(trial, abs(trial.suggest_float("x", 0, 1) - 0.3) + index * 1e-9)
        waiting = [study.ask().suggest_float("x", 0, 1) for _ in range(12)]
        return max(waiting) - min(waiting)

    assert spread(constant_liar=True) > spread(constant_liar=False)
    from starlab.platform.search.samplers import make_sampler
    from starlab.platform.search.space import Space

    assert make_sampler("tpe", 0, Space({}))._constant_liar


def test_the_ledger_holds_curves_by_run_over_calls(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    [(number, point)] = propose(first, 1)
    first.report(number, 1, 0.25)
    second = ledger(tmp_path)
    [(number, again)] = propose(second, 1)
    assert again == point
    second.report(number, 2, 0.5)
    assert list(ledger(tmp_path).curves().values()) == [{1: 0.25, 2: 0.5}]


def test_a_trial_killed_between_the_suggestions_of_two_values_is_forgotten(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    opened._study.ask().suggest_int("model.layers", 1, 2)
    assert opened.propose() is not None
    again = ledger(tmp_path)
    [(_, first), (_, second)] = propose(again, 2)
    assert first.keys() == second.keys() == POINT.keys()


def test_the_ledger_holds_no_password_and_no_pickle(tmp_path: Path) -> None:
    spec = load_search("demo_search", ["tracking.uri=https://me:pa55word@mlflow.example"])
    opened = ledger(tmp_path, dataclasses.replace(spec).without_password())
    for number, _ in propose(opened, 2):
        opened.finish(number, reached(0.5))
    data = (tmp_path / "search" / FILE).read_bytes()
    assert b"pa55word" not in data
    assert b"\x80\x04\x95" not in data  # how a pickle of protocol 4 begins
    assert spec.without_password().spec_of(POINT).run_id("f") == spec.spec_of(POINT).run_id("f")
