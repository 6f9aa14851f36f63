"""What attention rollout says over many clips: which frames matter, with intervals, and whether the paper's claim holds.

The paper (§4.4, Fig. 6) says that FAttn looks at the last frames, and that ZAttn and BAttn look at all frames alike. It shows
one video. Here the claim is a statement about the mean over clips, with a bootstrap interval over clips.

Letters: n clips  T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MODEL = "model"
"""Name of the rollout through all attentions of the model, beside those through one pattern (F, Z, B)."""
RESAMPLES = 4000
EVEN_FRAMES = 0.9
"""Share of the frames that the effective number of frames must reach for "all frames alike"."""
LATE_SHARE = 1.5
"""How many times its even share the last quarter must have for "looks at the last frames"."""

Verdict = Literal["holds", "does not hold", "cannot be told"]
Importance = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over clips with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Focus:
    """Where the rollout through some attentions puts its importance, over many clips."""

    pattern: str
    """F, Z, B, or "model" for all attentions of the model."""
    clips: int
    frames: tuple[Estimate, ...]
    """Importance of each frame; the means sum to 1."""
    last_quarter: Estimate
    """Share of importance in the last quarter of the frames."""
    effective_frames: Estimate
    """exp of the entropy of the importance: T if all frames matter alike, 1 if only one does."""
    top3_late: Estimate
    """Share of clips whose three most important frames are all in the last quarter."""


def focus(pattern: str, importance: Importance, seed: int = 0) -> Focus:
    """Summarize (n, T) importance over clips, with percentile bootstrap intervals over clips.

    Raises:
        ValueError: There are no clips.
    """
    clips, frames = importance.shape
    if not clips:
        raise ValueError("no clip has a rollout")
    shares = importance.astype(np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    late = max(1, frames // 4)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1)
    top3 = np.argsort(-shares, axis=1, kind="stable")[:, :3]
    columns = np.column_stack(
        [shares, shares[:, -late:].sum(axis=1), np.exp(entropy), (top3 >= frames - late).all(axis=1).astype(float)]
    )
    rng = np.random.default_rng(seed)
    # A bootstrap sample draws clips with replacement: its mean is a weighted mean, with multinomial counts as weights.
    means = np.concatenate(
        [rng.multinomial(clips, np.full(clips, 1 / clips), size=500) @ columns / clips for _ in range(RESAMPLES // 500)]
    )
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    estimates = [Estimate(*map(float, triple)) for triple in zip(columns.mean(axis=0), low, high, strict=True)]
    return Focus(pattern, clips, tuple(estimates[:frames]), *estimates[frames:])


def verdict(found: Focus) -> tuple[Verdict, str]:
    """Say whether the paper's claim about a pattern holds for a run, and why, in one sentence.

    For F, the claim holds if the whole interval of the last quarter's share is above `LATE_SHARE` times its even share.
    For the other patterns and for mixed models, it holds if the whole interval of the effective number of frames is above
    `EVEN_FRAMES` of the frames. It does not hold if the whole interval is below the limit.
    """
    frames = len(found.frames)
    even = max(1, frames // 4) / frames
    late, effective = found.last_quarter, found.effective_frames
    numbers = (
        f"the last quarter of the frames has {_range(late, 100, '%')} of the importance ({100 * even:.0f} % would be even), "
        f"and {_range(effective, 1, f'of {frames} frames')} count effectively"
    )
    if found.pattern == "F":
        claim, limit = "F looks at the last frames", LATE_SHARE * even
        state = _state(late, limit)
        rule = f"limit: {100 * limit:.0f} % in the last quarter"
    else:
        who = "the model" if found.pattern == MODEL else found.pattern
        claim, limit = f"{who} looks at all frames", EVEN_FRAMES * frames
        state = _state(effective, limit)
        rule = f"limit: {limit:.1f} effective frames"
    return state, f'"{claim}" {state}: {numbers} ({rule}; {found.clips} clips).'


def typical_clip(importance: Importance) -> int:
    """Return the row that is nearest to the mean of all rows: the clip that represents a run best."""
    return int(np.abs(importance - importance.mean(axis=0)).sum(axis=1).argmin())


def _state(estimate: Estimate, limit: float) -> Verdict:
    if estimate.low > limit:
        return "holds"
    return "does not hold" if estimate.high < limit else "cannot be told"


def _range(estimate: Estimate, factor: float, unit: str) -> str:
    return f"{factor * estimate.mean:.1f} {unit} [{factor * estimate.low:.1f}, {factor * estimate.high:.1f}]"
