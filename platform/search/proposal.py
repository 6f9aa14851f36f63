"""What the ledger hands out: runs to train, each of a point that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlab.platform.search.objectives import Outcome


@dataclass(frozen=True, slots=True)
class Proposal:
    """A run to train."""

    number: int
    """Of its point in the study."""
    values: dict[str, Any]
    """By dotted key: its point of the space, and "train.seed" where each point has several seeds."""
    seed: int


@dataclass(slots=True)
class PointUnderWay:
    """A point with runs that have not ended."""

    values: dict[str, Any]
    waiting: list[int]
    """Seeds whose runs have not started."""
    running: set[int] = field(default_factory=set)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    curves: dict[int, dict[int, float]] = field(default_factory=dict)
    problem: str | None = None
    is_paused: bool = False


def by_seed(values: Mapping[int, Any]) -> dict[str, Any]:
    """Values by seed as a database keeps them: in JSON keys are text."""
    return {str(seed): value for seed, value in values.items()}


def outcomes_by_seed(stored: Mapping[str, Any]) -> dict[int, Outcome]:
    """Read what `by_seed` made of outcomes."""
    return {int(seed): Outcome(**outcome) for seed, outcome in stored.items()}
