"""Samplers: what proposes the next point of a search. A new one is one entry of `SAMPLERS`."""

from __future__ import annotations

import difflib
import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import optuna

from starlab.platform.errors import UserError
from starlab.platform.search.space import Space

GRID = "grid"
"""The sampler whose points the ledger takes in order."""
Maker = Callable[[int, Space], optuna.samplers.BaseSampler]

SAMPLERS: dict[str, Maker] = {
    # constant_liar: points that are under way count as bad ones, so that proposals made at the same time stay apart.
    # group: keys with the same condition are modelled together; it costs nothing to leave out where there is no condition.
    "tpe": lambda seed, space: optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=space.is_conditional, n_startup_trials=4, constant_liar=True
    ),
    # Keys with a condition are drawn at random: a Gaussian process needs all of them.
    "gp": lambda seed, _: optuna.samplers.GPSampler(seed=seed, n_startup_trials=4, warn_independent_sampling=False),
    "cmaes": lambda seed, _: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "random": lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
    GRID: lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
}
"""How to make a sampler from a seed, by its name in `search.sampler`."""


def make_sampler(name: str, seed: int, space: Space, num_objectives: int = 1) -> optuna.samplers.BaseSampler:
    """Make the sampler `name`.

    Raises:
        UserError: there is no such sampler, which names the nearest one, or it cannot search this space.
    """
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"samplers: {', '.join(SAMPLERS)}"
        raise UserError(f"search.sampler is {name!r}, which is not a sampler; {hint}")
    if reason := _why_not(name, space, num_objectives):
        raise UserError(f"search.sampler is {name!r}, which {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed, space)


def seed_of_call(seed: int, proposals: int) -> int:
    """The sampler's seed: the search's own at its start, another one each time it goes on, so that it draws new points."""
    return seed if proposals == 0 else int(np.random.SeedSequence([seed, proposals]).generate_state(1)[0])


def _why_not(name: str, space: Space, num_objectives: int) -> str | None:
    if name == GRID and space.size is None:
        endless = [key for key, distribution in space.distributions.items() if distribution.size is None]
        return f"needs a finite space of at most 100,000 points; give a step to {', '.join(endless) or 'its ranges'}"
    if name == "cmaes":
        choices = [key for key, distribution in space.distributions.items() if distribution.kind == "choice"]
        if choices:
            return f"takes numbers only, and {', '.join(choices)} is a choice; use tpe"
        if space.is_conditional:
            return "takes no space with conditions; use tpe"
        if num_objectives > 1:
            return "takes one objective only; use tpe"
        if importlib.util.find_spec("cmaes") is None:
            return "needs the package cmaes; install it: pip install 'starlab[cmaes]'"
    return None
