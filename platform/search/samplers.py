"""Samplers: what proposes the next point of a search. A new one is one entry of `SAMPLERS`."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable

import optuna

from starlab.platform.errors import UserError

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    # constant_liar: points that are under way count as bad ones, so that proposals made at the same time stay apart.
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=4, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
"""How to make a sampler from a seed, by its name in `search.sampler`."""


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Make the sampler `name`.

    Raises:
        UserError: there is no such sampler; names the nearest one.
    """
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"samplers: {', '.join(SAMPLERS)}"
        raise UserError(f"search.sampler is {name!r}, which is not a sampler; {hint}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)
