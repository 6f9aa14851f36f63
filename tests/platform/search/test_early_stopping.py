"""Early stopping as starlab does it: it names the hopeless trials, and never has one killed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from starlab.experiments.spec import SearchSpec, load_search
from starlab.platform.errors import UserError
from starlab.platform.search.early_stopping import AskToEnd, Rungs, make_rungs
from starlab.platform.search.objectives import Objective, objectives_of

TOP1, LOSS = Objective("val/top1", True, "top1"), Objective("val/loss", False, "loss")


class FakeTrial:
    def __init__(self, name: str, seed: int = 0) -> None:
        self.trial_id, self.config = f"{name}{seed}", {"train.lr": name, "train.seed": seed}


def place(values: Mapping[str, Any]) -> tuple[str, int]:
    return f"run-{values['train.lr']}", values["train.seed"]


def scheduler(
    asked: list[tuple[str, str]], epochs: int = 4, grace: int = 1, objective: Objective = TOP1
) -> tuple[AskToEnd, list[Trial]]:
    rungs = Rungs(epochs, grace, 2)
    asha = AskToEnd(rungs, objective, place, lambda values, reason: asked.append((values["train.lr"], reason)))
    return asha, [cast(Trial, FakeTrial(f"t{index}")) for index in range(4)]


def test_a_trial_below_the_median_of_its_rung_is_asked_once_and_tune_is_never_told_to_stop_it() -> None:
    asked: list[tuple[str, str]] = []
    asha, (good, bad, *_) = scheduler(asked)
    for epoch in (1, 2, 3, 4):
        for trial, value in ((good, 0.9), (bad, 0.1)):
            assert asha.on_trial_result(None, trial, {"epoch": epoch, "objective": value}) == TrialScheduler.CONTINUE
    assert [name for name, _ in asked] == ["t1"]
    assert "0.1000 after epoch 1" in asked[0][1]


def test_where_lower_is_better_the_trial_with_the_higher_loss_is_asked() -> None:
    asked: list[tuple[str, str]] = []
    asha, (good, bad, *_) = scheduler(asked, objective=LOSS)
    asha.on_trial_result(None, good, {"epoch": 1, "objective": 0.1})
    asha.on_trial_result(None, bad, {"epoch": 1, "objective": 0.9})
    assert asked == [("t1", "val/loss 0.9000 after epoch 1 is behind that of other trials")]


def test_a_trial_in_its_last_epoch_is_left_alone() -> None:
    asked: list[tuple[str, str]] = []
    asha, (good, bad, *_) = scheduler(asked, epochs=1)
    asha.on_trial_result(None, good, {"epoch": 1, "objective": 0.9})
    asha.on_trial_result(None, bad, {"epoch": 1, "objective": 0.1})
    assert asked == []


@pytest.mark.parametrize("grace", [1, 9])
def test_a_grace_longer_than_the_run_is_the_whole_run(grace: int) -> None:
    asked: list[tuple[str, str]] = []
    asha, (trial, *_) = scheduler(asked, epochs=2, grace=grace)
    assert asha.on_trial_result(None, trial, {"epoch": 1, "objective": 0.0}) == TrialScheduler.CONTINUE
    rungs = Rungs(2, 9, 2)
    assert not any(rungs.is_hopeless(name, 0, 1, value) for name, value in (("good", 0.9), ("bad", 0.1)))


def test_a_value_that_is_not_a_number_is_hopeless_and_counts_for_no_other_trial() -> None:
    rungs = Rungs(4, 1, 2)
    assert not rungs.is_hopeless("first", 0, 1, float("nan"))  # alone in its rung
    assert not rungs.is_hopeless("second", 0, 1, 0.1)
    assert rungs.is_hopeless("third", 0, 1, float("nan"))


def test_a_trial_is_judged_at_the_last_rung_that_it_has_reached_and_never_later_at_an_earlier_one() -> None:
    rungs = Rungs(8, 1, 2)
    for epoch in (2, 4, 6):  # evaluated every second epoch, so that nothing is known at the rung of epoch 1
        rungs.is_hopeless("a", 0, epoch, 0.1 * epoch)
    assert rungs.at(1) == {}
    assert rungs.at(2) == {"a": {0: 0.2}}
    assert rungs.at(4) == {"a": {0: 0.4}}


def test_a_resumed_search_stops_a_trial_by_what_earlier_calls_measured() -> None:
    asked: list[tuple[str, str]] = []
    fresh, (trial, *_) = scheduler(asked)
    fresh.on_trial_result(None, trial, {"epoch": 1, "objective": 0.5})
    assert asked == []  # alone in its rung
    resumed, (trial, *_) = scheduler(asked)
    resumed.remember({("run-earlier", 0): {1: 0.8, 2: 0.9}, ("run-other", 0): {1: 0.7}})
    resumed.on_trial_result(None, trial, {"epoch": 1, "objective": 0.5})
    assert [name for name, _ in asked] == ["t0"]


def test_a_trial_that_goes_on_in_a_later_call_takes_one_place_in_a_rung() -> None:
    asked: list[tuple[str, str]] = []
    asha, (trial, other, *_) = scheduler(asked)
    asha.remember({("run-t0", 0): {1: 0.2}})
    asha.on_trial_result(None, trial, {"epoch": 2, "objective": 0.9})
    asha.on_trial_result(None, trial, {"epoch": 1, "objective": 0.9})  # Tune starts it again after its process died
    assert asha._rungs is not None
    assert asha._rungs.at(1) == {"run-t0": {0: 0.2}}
    assert asha.on_trial_result(None, other, {"epoch": 1, "objective": 0.5}) == TrialScheduler.CONTINUE
    assert asked == []


def test_a_point_is_compared_by_the_mean_over_the_same_seeds() -> None:
    """With its lucky first seed alone the second point looks better; over the same two seeds it is worse."""
    rungs = Rungs(4, 1, 2, seeds=(0, 1))
    assert not rungs.is_hopeless("steady", 0, 1, 0.6)
    assert not rungs.is_hopeless("steady", 1, 1, 0.6)
    assert not rungs.is_hopeless("lucky", 0, 1, 0.7)  # compared with the other's first seed
    assert rungs.is_hopeless("lucky", 1, 1, 0.2)  # 0.45 against 0.6
    assert not rungs.is_hopeless("later", 1, 1, 0.0)  # its first seed has not reached the rung
    assert rungs.is_hopeless("later", 0, 1, 0.9)  # 0.45 against 0.6 and 0.45


def test_hyperband_judges_a_share_of_the_points_later_and_always_the_same_ones() -> None:
    rungs = Rungs(8, 1, 2, brackets=3)
    names = [f"run-{index}" for index in range(300)]
    firsts = {name: next(epoch for epoch in range(1, 9) if rungs._rung(name, epoch)) for name in names}
    assert set(firsts.values()) == {1, 2, 4}
    again = Rungs(8, 1, 2, brackets=3)
    assert all(again._rung(name, firsts[name]) == firsts[name] for name in names)
    shares = [sum(first == epoch for first in firsts.values()) for epoch in (1, 2, 4)]
    assert shares[0] > shares[2]  # ⌈3·4/3⌉, ⌈3·2/2⌉, ⌈3·1/1⌉: 4, 3 and 3 in ten


def search(tmp_path: Path, *overrides: str) -> SearchSpec:
    file = tmp_path / "s.yaml"
    file.write_text("base: demo\nspace: {model.layers: {int: [1, 2]}}\n")
    return load_search(str(file), overrides)


def test_what_ends_trials_early_is_chosen_by_name_and_only_where_it_is_fair(tmp_path: Path) -> None:
    def rungs(*overrides: str) -> Rungs | None:
        return make_rungs(spec := search(tmp_path, *overrides), objectives_of(spec))

    default = rungs()
    assert default is not None
    assert default.brackets == 1
    hyperband = rungs("search.early_stopping=hyperband")
    assert hyperband is not None
    assert hyperband.brackets == 4  # 8 epochs: first rungs at 1, 2, 4 and 8
    assert rungs("search.early_stopping=none") is None
    assert rungs("search.objectives=[val/top1, flops]") is None
    assert rungs("search.objectives=[parameters]") is None
    with pytest.raises(UserError, match=r"search.early_stopping is 'asha', which would end trials by val/top1 alone"):
        rungs("search.objectives=[val/top1, flops]", "search.early_stopping=asha")
    with pytest.raises(UserError, match="needs an objective that is measured after every epoch, and parameters is not"):
        rungs("search.objectives=[parameters]", "search.early_stopping=hyperband")
