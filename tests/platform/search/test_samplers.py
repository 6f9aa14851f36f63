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


def needs(package: str, name: str) -> None:
    if name == package:
        pytest.importorskip(package)


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"grid"}))
def test_a_sampler_proposes_the_same_points_for_the_same_seed_and_others_for_another(name: str) -> None:
    needs("cmaes", name)
    points = first_points(make_sampler(name, 0, SPACE))
    assert points == first_points(make_sampler(name, 0, SPACE))
    assert points != first_points(make_sampler(name, 1, SPACE))
    assert len({point["train.lr"] for point in points}) == 6


def test_a_new_sampler_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samplers.SAMPLERS, "qmc", lambda seed, space: optuna.samplers.QMCSampler(seed=seed))
    assert isinstance(make_sampler("qmc", 0, SPACE), optuna.samplers.QMCSampler)
    assert len(first_points(make_sampler("qmc", 0, SPACE))) == 6


def test_an_unknown_sampler_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"search\.sampler is 'tep', which is not a sampler; did you mean 'tpe'"):
        make_sampler("tep", 0, SPACE)


CHOICE = Distribution("choice", ("sgd", "adamw"))
CONDITIONAL = Distribution("float", (0.8, 0.9), None, {"model.layers": (1,)})


@pytest.mark.parametrize(
    ("name", "space", "objectives", "message"),
    [
        ("grid", dict(SPACE.distributions), 1, "needs a finite space of at most 100,000 points; give a step to train.lr"),
        ("cmaes", {"train.optimizer": CHOICE}, 1, "takes numbers only, and train.optimizer is a choice; use tpe"),
        ("cmaes", {**SPACE.distributions, "train.momentum": CONDITIONAL}, 1, "takes no space with conditions"),
        ("cmaes", dict(SPACE.distributions), 2, "takes one objective only"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused_with_the_reason(
    name: str, space: dict[str, Distribution], objectives: int, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_sampler(name, 0, Space(space), objectives)
    assert str(caught.value).startswith(f"search.sampler is {name!r}, which {message}")


def test_tpe_models_the_keys_of_one_condition_together_where_there_are_conditions() -> None:
    assert make_sampler("tpe", 0, Space({**SPACE.distributions, "train.momentum": CONDITIONAL}))._group
    assert not make_sampler("tpe", 0, SPACE)._group
