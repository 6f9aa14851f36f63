"""Samplers go by name; a new one is one entry."""

import optuna
import pytest

from starlab.experiments.space import Distribution
from starlab.platform.errors import UserError
from starlab.platform.search import samplers
from starlab.platform.search.samplers import SAMPLERS, make_sampler
from starlab.platform.search.space import Space

SPACE = Space({"train.lr": Distribution("log", (1e-4, 1e-2)), "model.layers": Distribution("int", (1, 4))})


def first_points(sampler: optuna.samplers.BaseSampler, count: int = 6) -> list[dict[str, object]]:
    study = optuna.create_study(sampler=sampler)
    for _ in range(count):
        trial = study.ask()
        SPACE.suggest(trial)
        study.tell(trial, 0.0)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_proposes_the_same_points_for_the_same_seed_and_others_for_another(name: str) -> None:
    points = first_points(make_sampler(name, 0))
    assert points == first_points(make_sampler(name, 0))
    assert points != first_points(make_sampler(name, 1))
    assert len({point["train.lr"] for point in points}) == 6


def test_a_new_sampler_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samplers.SAMPLERS, "qmc", lambda seed: optuna.samplers.QMCSampler(seed=seed))
    assert isinstance(make_sampler("qmc", 0), optuna.samplers.QMCSampler)
    assert len(first_points(make_sampler("qmc", 0))) == 6


def test_an_unknown_sampler_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"search\.sampler is 'tep', which is not a sampler; did you mean 'tpe'"):
        make_sampler("tep", 0)
