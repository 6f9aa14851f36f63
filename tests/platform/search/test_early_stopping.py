"""ASHA as starlab uses it: it names the hopeless trials, and never has one killed."""

from typing import Any, cast

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from starlab.platform.search.early_stopping import AskingASHA


class FakeTrial:
    def __init__(self, name: str) -> None:
        self.trial_id, self.config = name, {"train.lr": name}


def run_id(values: dict[str, Any]) -> str:
    return f"run-{values['train.lr']}"


def scheduler(asked: list[tuple[str, str]], epochs: int = 4, trials: int = 4) -> tuple[AskingASHA, list[Trial]]:
    asha = AskingASHA("val_top1", epochs, 1, 2, lambda values, reason: asked.append((values["train.lr"], reason)), run_id)
    made = [cast(Trial, FakeTrial(f"t{index}")) for index in range(trials)]
    for trial in made:
        asha.on_trial_add(cast(Any, None), trial)
    return asha, made


def test_a_trial_below_the_median_of_its_rung_is_asked_once_and_tune_is_never_told_to_stop_it() -> None:
    asked: list[tuple[str, str]] = []
    asha, (good, bad, *_) = scheduler(asked)
    for epoch in (1, 2, 3, 4):
        for trial, value in ((good, 0.9), (bad, 0.1)):
            assert asha.on_trial_result(None, trial, {"epoch": epoch, "val_top1": value}) == TrialScheduler.CONTINUE
    assert [name for name, _ in asked] == ["t1"]
    assert "0.1000 after epoch 1" in asked[0][1]


def test_a_trial_in_its_last_epoch_is_left_alone() -> None:
    asked: list[tuple[str, str]] = []
    asha, (good, bad, *_) = scheduler(asked, epochs=1)
    asha.on_trial_result(None, good, {"epoch": 1, "val_top1": 0.9})
    asha.on_trial_result(None, bad, {"epoch": 1, "val_top1": 0.1})
    assert asked == []


@pytest.mark.parametrize("grace", [1, 9])
def test_a_grace_longer_than_the_run_is_the_whole_run(grace: int) -> None:
    asked: list[str] = []
    asha = AskingASHA("val_top1", 2, grace, 2, lambda values, reason: asked.append(reason), run_id)
    trial = cast(Trial, FakeTrial("t"))
    asha.on_trial_add(cast(Any, None), trial)
    assert asha.on_trial_result(None, trial, {"epoch": 1, "val_top1": 0.0}) == TrialScheduler.CONTINUE


def test_a_resumed_search_stops_a_trial_by_what_earlier_calls_measured() -> None:
    asked: list[tuple[str, str]] = []
    fresh, (trial, *_) = scheduler(asked)
    fresh.on_trial_result(None, trial, {"epoch": 1, "val_top1": 0.5})
    assert asked == []  # alone in its rung
    resumed, (trial, *_) = scheduler(asked)
    resumed.remember({"run-earlier": {1: 0.8, 2: 0.9}, "run-other": {1: 0.7}})
    resumed.on_trial_result(None, trial, {"epoch": 1, "val_top1": 0.5})
    assert [name for name, _ in asked] == ["t0"]


def test_a_trial_that_goes_on_in_a_later_call_takes_one_place_in_a_rung() -> None:
    asked: list[tuple[str, str]] = []
    asha, (trial, other, *_) = scheduler(asked)
    asha.remember({"run-t0": {1: 0.2}})
    asha.on_trial_add(cast(Any, None), trial)
    asha.on_trial_result(None, trial, {"epoch": 2, "val_top1": 0.9})
    assert dict(asha._brackets[0]._rungs)[1] == {"run-t0": 0.2}
    asha.on_trial_complete(cast(Any, None), trial, {"epoch": 2, "val_top1": 0.9})
    asha.on_trial_add(cast(Any, None), trial)  # Tune starts it again after its process died
    assert asha.on_trial_result(None, other, {"epoch": 1, "val_top1": 0.5}) == TrialScheduler.CONTINUE
    assert asked == []
