"""Importance of searched keys, where it is known which key matters."""

from dataclasses import replace

import numpy as np

from starlab.experiments.space import Distribution
from starlab.platform.runs.search_records import Trial
from starlab.platform.search.importance import importances
from starlab.platform.search.objectives import Objective

TOP1 = Objective("val/top1", higher_is_better=True, metric="top1")
SPACE = {
    "train.lr": Distribution.from_yaml({"log": [1e-4, 1e-2]}),
    "model.layers": Distribution.from_yaml({"int": [1, 4]}),
    "model.encoder": Distribution.from_yaml({"choice": ["FF", "FZ"]}),
}


def trials(count: int) -> list[Trial]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        values = {
            "train.lr": float(10 ** rng.uniform(-4, -2)),
            "model.layers": int(rng.integers(1, 5)),
            "model.encoder": str(rng.choice(["FF", "FZ"])),
        }
        accuracy = 0.9 - 0.3 * abs(np.log10(values["train.lr"]) + 3)  # type: ignore[call-overload]
        found.append(Trial(run=str(number), values=values, val_top1=float(accuracy), epochs=1, whole=True))
    return found


def test_the_key_that_decides_is_the_most_important_one_and_shares_sum_to_1() -> None:
    found = importances(trials(100), SPACE, TOP1)
    assert max(found, key=lambda key: found[key]) == "train.lr"
    assert found["train.lr"] > 0.5
    assert abs(sum(found.values()) - 1) < 1e-6


def test_few_trials_have_no_importance_and_trials_outside_of_the_space_do_not_count() -> None:
    assert importances(trials(9), SPACE, TOP1) == {}
    narrow = SPACE | {"model.layers": Distribution.from_yaml({"int": [1, 2]})}
    inside = [trial for trial in trials(60) if trial.values["model.layers"] <= 2]
    assert importances(trials(60), narrow, TOP1) == importances(inside, narrow, TOP1) != {}


def test_the_objective_of_the_search_decides_and_its_direction_counts() -> None:
    by_loss = [replace(trial, val_top1=0.5, objectives={"val/loss": 1 - trial.val_top1}) for trial in trials(100)]
    loss = Objective("val/loss", higher_is_better=False, metric="loss")
    assert importances(by_loss, SPACE, loss) == importances(trials(100), SPACE, TOP1)
    assert importances(by_loss, SPACE, replace(loss, name="flops", metric=None)) == {}  # no trial has a value of it
