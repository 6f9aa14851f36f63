"""The result of a comparison: rows with mean and spread, the difference of each to the base, and what they mean in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from starlab.platform.reports.results import Results, RunRow

ALPHA = 0.05
EXACT_TEST_SEEDS = 6
"""Fewest paired seeds with which a sign-flip test can reach 0.05: 2 / 2^6 = 0.03."""

Verdict = Literal["better", "worse", "equivalent", "no difference shown", "one seed, no verdict", "not compared"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A row minus the base, on the seeds and clips that both have. Values are in the unit of the comparison."""

    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p_value: float
    p_adjusted: float
    """`p_value` after Holm's adjustment over the rows of the comparison."""
    p_equivalent: float
    """P-value of "as far apart as the region of practical equivalence, or farther", after Holm's adjustment. 1 without one."""
    p_sign_flip: float | None
    """P-value of the exact test over seeds. None for fewer than six paired seeds, where it cannot reach 0.05."""
    seeds: int
    """Number of paired seeds."""
    settings: int
    """Number of settings of other keys over which the value of each seed is averaged. 1 unless `by` leaves keys open."""
    clips: int
    subjects: int | None
    """Number of subjects of the clips, None where clip ids do not name them. Then clips are the sample."""
    mcnemar: tuple[tuple[int, int, float], ...]
    """For each paired seed: clips that only the row has right, clips that only the base has right, exact p-value. Empty for a
    metric that does not count hits, and for means over several settings."""
    detectable: float | None
    """True difference that so many seeds find with a probability of 80 %. None for one seed."""
    seeds_for_one: int | None
    """Number of seeds that find a true difference of 1 point. None for one seed, if no number does, or for other units."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a comparison. Values are in the unit of the comparison."""

    name: str
    values: dict[str, Any]
    """Value of each key that differs between the rows."""
    runs: tuple[RunRow, ...]
    is_base: bool
    seeds: tuple[int, ...]
    """Seeds that count: those of the tested runs, on equal clips and in equal settings."""
    settings: int
    """Number of settings of other keys over which the value of each seed is averaged. 1 unless `by` leaves keys open."""
    by_seed: tuple[float, ...]
    """Value of the test metric at each of these seeds."""
    left_out: tuple[str, ...] = ()
    """Tested runs that do not count."""
    mean: float | None
    """Mean of the test metric over the seeds. None if no run of the row was tested."""
    sd: float | None
    """Standard deviation over seeds. None for one seed."""
    low: float | None
    """Lower end of the 95 % interval of the mean. None without predictions."""
    high: float | None
    val: float | None
    """Mean of the same metric on the selection part, over the same runs. Over all runs if none was tested."""
    paper: float | None
    """The paper's number."""
    difference: Difference | None = None
    reason: str = ""
    """Why a row that was tested has no difference to the base."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Versions of the code that made the runs."""
        return tuple(sorted({run.code for run in self.runs}))

    @property
    def verdict(self) -> Verdict | Literal["base", ""]:
        """Verdict against the base."""
        if self.is_base:
            return "base"
        return self.difference.verdict if self.difference else "not compared" if self.reason else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Rows side by side, best first."""

    metric: str
    unit: Literal["%", "nats"]
    rows: tuple[Row, ...]
    base: str | None
    """Name of the base row."""
    keys: tuple[str, ...]
    """Keys of the spec that differ between the rows."""
    rope: float
    """Half of the width of the region of practical equivalence, in points (or nats). 0 if there is none."""
    claim: str
    """What the rows of an ablation are to show; empty for other runs."""
    notes: tuple[str, ...]
    """What a reader must know to trust the table."""
    sentences: tuple[str, ...]
    """Every difference to the base in words."""


def sentence(row: Row, base: str, unit: str) -> str:
    """Say a row's difference to the base in words."""
    found = row.difference
    if found is None:
        return f"{row.name} is not compared with {base}: {row.reason}."
    word = "points" if unit == "%" else unit
    seeds = "1 seed" if found.seeds == 1 else f"{found.seeds} paired seeds"
    over = f", each the mean over {found.settings} settings" if found.settings > 1 else ""
    sample = f"{found.clips:,} clips" + (f" of {found.subjects} subjects" if found.subjects else "")
    level = f"{abs(found.value):.2f} {word} {'above' if found.value > 0 else 'below'}" if found.value else "level with"
    text = (
        f"{row.name} is {level} {base} "
        f"(95 % interval {found.low:+.2f} to {found.high:+.2f}; {seeds}{over}, {sample}): {found.verdict}"
    )
    low = sum(p_value <= ALPHA for _, _, p_value in found.mcnemar)
    exact = f" McNemar's exact test on the clips has p ≤ {ALPHA} at {low} of {seeds}." if found.mcnemar else ""
    if found.seeds == 1:
        return f"{text}. The interval covers the choice of test clips only; another seed may give another sign.{exact}"
    if found.p_sign_flip is not None:
        exact += f" The sign-flip test over seeds has p = {_p(found.p_sign_flip)}."
    text += f", p = {_p(found.p_adjusted)}.{exact} It can see {found.detectable:.2g} {word}"
    if unit == "%":
        enough = "no number of seeds is enough, because the test part is too small"
        text += f"; for 1 point {enough if found.seeds_for_one is None else f'run {found.seeds_for_one} seeds'}"
    return f"{text}."


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def reader_notes(results: Results, rows: Sequence[Row], rope: float, unit: str) -> list[str]:
    """Say what a reader must know to trust these rows: code versions, seeds, tests that cannot succeed, optimistic values."""
    return [*_about_runs(rows), *_about_searches(results), *_about_seeds(rows, rope, unit)]


def _about_runs(rows: Sequence[Row]) -> list[str]:
    runs = [run for row in rows for run in row.runs]
    notes = []
    codes: dict[str, list[str]] = {}
    for run in runs:
        codes.setdefault(run.code, []).append(run.run)
    if len(codes) > 1:
        versions = ", ".join(f"{code} ({_some(made)})" for code, made in codes.items())
        notes.append(
            f"warning: {len(codes)} versions of the code made these runs, so rows may differ for that reason: {versions}"
        )
    owners: dict[str, list[str]] = {}
    for row in rows:
        for run in row.runs:
            owners.setdefault(str(run.folder), []).append(row.name)
    for names in dict.fromkeys(tuple(names) for names in owners.values() if len(names) > 1):
        notes.append(f"{' and '.join(names)} are the same runs, so no difference between them can be seen")
    if incomplete := [run for row in rows for run in row.left_out]:
        why = "they have no predictions, other test clips, or settings that not every seed has"
        notes.append(f"tested, but not part of the mean of their row, because {why}: {_some(incomplete)}")
    for says, named in (
        ("not finished, or not tested, so without a test value", [run for run in runs if not run.test]),
        ("ended early, before the last epoch", [run for run in runs if run.ended_early]),
        (
            "the test part chose the checkpoint, so these values are optimistic",
            [run for run in runs if run.selected_by == "test"],
        ),
        ("looked at the test part more than once", [run for run in runs if run.looks > 1]),
    ):
        if named:
            notes.append(f"{says}: {_some([run.run for run in named])}")
    return notes


def _about_searches(results: Results) -> list[str]:
    notes = []
    for search in results.searches:
        best = f", {search.best}," if search.best else ""
        looks = f"; {search.looks} looks at the test part in this search" if search.looks > 1 else ""
        notes.append(
            f"{search.name} is a search of {search.runs} runs: its trials are not replicates of each other, and the validation "
            f"value of the best one{best} is optimistic, because it was chosen by that value{looks}"
        )
    return notes


def _about_seeds(rows: Sequence[Row], rope: float, unit: str) -> list[str]:
    found = [row.difference for row in rows if row.difference]
    if not found:
        return []
    notes = []
    word = "points" if unit == "%" else unit
    if any(difference.seeds == 1 for difference in found):
        notes.append(
            "one paired seed: the interval covers the choice of test clips only and says nothing about another training"
        )
    few = [difference for difference in found if 1 < difference.seeds < EXACT_TEST_SEEDS]
    if few:
        seeds = min(difference.seeds for difference in few)
        notes.append(
            f"with {seeds} paired seeds no exact test over seeds can reach p = {ALPHA} (its smallest is {2 / 2**seeds:.2g}; "
            f"six seeds reach {2 / 2**EXACT_TEST_SEEDS:.2g}); p-values here assume that seed effects are normally distributed"
        )
    seen = [difference.detectable for difference in found if difference.detectable is not None]
    if seen:
        notes.append(
            f"power: these comparisons can see {median(seen):.2g} {word} (median), at 80 % and after Holm's adjustment over "
            f"{len(seen)} comparison{'s' if len(seen) > 1 else ''}; with few seeds this is rough"
        )
    if rope:
        notes.append(f"equivalent means: the 90 % interval is within ±{rope:g} {word}, the region of practical equivalence")
    seeds, settings = max(len(row.seeds) for row in rows), max(row.settings for row in rows)
    if any(difference.seeds < seeds for difference in found):
        notes.append("rows have different seeds; each is paired with the base by the seeds that both have")
    if any(difference.settings < settings for difference in found):
        notes.append("rows have different settings; each is paired with the base by the settings that both have")
    return notes


def _some(names: Sequence[str], limit: int = 6) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
