"""The control for what attention rollout says of a trained run: untrained models with the same wiring.

That importance is spread over all frames can follow from the wiring alone: each frame has class tokens of its own, and the
residual keeps importance where it is. What training did is the difference to models that were never trained.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from starlab.platform.reports.attention import Estimate, Focus

Change = Literal["more", "less", "no change shown"]


@dataclass(frozen=True, slots=True)
class Untrained:
    """Measures of several untrained models, each a mean over the same clips."""

    clips: int
    late: Mapping[str, tuple[float, ...]]
    """Share of importance in the last quarter of the frames of each model, by pattern."""
    effective: Mapping[str, tuple[float, ...]]
    """Effective number of frames of each model, by pattern."""


def untrained_of(models: Sequence[Mapping[str, Focus]]) -> Untrained:
    """Collect the measures of untrained models, each by pattern."""
    first = models[0]
    return Untrained(
        clips=next(iter(first.values())).clips,
        late={pattern: tuple(found[pattern].last_quarter.mean for found in models) for pattern in first},
        effective={pattern: tuple(found[pattern].effective_frames.mean for found in models) for pattern in first},
    )


def range_of(values: Sequence[float]) -> Estimate:
    """The mean over untrained models, and the range in which one more of them is in 95 of 100 cases (normal distribution).

    Raises:
        StatisticsError: There are fewer than two models.
    """
    mean, count = statistics.fmean(values), len(values)
    reach = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(values) * math.sqrt(1 + 1 / count)
    return Estimate(mean, mean - reach, mean + reach)


def change(trained: Estimate, untrained: Estimate) -> Change:
    """Say whether a run differs from untrained models: its interval is wholly outside of their range."""
    if trained.low > untrained.high:
        return "more"
    return "less" if trained.high < untrained.low else "no change shown"


def changes(found: Focus, control: Untrained) -> tuple[Change, Change]:
    """How training changed a pattern: importance of the last quarter, and the effective number of frames."""
    late, effective = range_of(control.late[found.pattern]), range_of(control.effective[found.pattern])
    return change(found.last_quarter, late), change(found.effective_frames, effective)


def against_untrained(found: Focus, control: Untrained) -> str:
    """Say in a sentence what of a pattern's attention training has made, and what untrained models have too."""
    late, effective = range_of(control.late[found.pattern]), range_of(control.effective[found.pattern])
    later, evener = changes(found, control)
    moved = {
        "more": "training moved importance to the last frames",
        "less": "training moved importance away from the last frames",
        "no change shown": "no shift to or from the last frames is shown",
    }[later]
    spread = {
        "more": "training spread it over more frames",
        "less": "training concentrated it on fewer frames",
        "no change shown": "its spread over the frames is that of an untrained model",
    }[evener]
    return (
        f"Untrained ({len(control.late[found.pattern])} models): {100 * late.mean:.1f} % [{100 * late.low:.1f}, "
        f"{100 * late.high:.1f}] in the last quarter and {effective.mean:.2f} [{effective.low:.2f}, {effective.high:.2f}] "
        f"effective frames: {moved}, and {spread}."
    )
