"""Validate the statistics of `starlab compare` on simulated runs whose truth is known. Prints the tables of docs/comparing.md.

    .venv/bin/python tests/benchmarks/bench_statistics.py                     # 2,000 comparisons of each setting, minutes
    .venv/bin/python tests/benchmarks/bench_statistics.py --comparisons 200   # a quick look

Every setting compares a row with a base, at the same seeds and on the same clips. "null" means that the two have the same
accuracy over all seeds and clips. Columns: the share of 95 % intervals that hold the true difference, in %; the same of the
plain two-level bootstrap; the share of null comparisons with the verdict better and with the verdict worse, in %; the median
of half the width of the interval, in points. The second table is about four rows that all equal their base: the share of such
tables with a wrong verdict anywhere, with and without Holm's adjustment. The third is about rows whose true difference is just
the region of practical equivalence, 0.5 points: the share that is wrongly called equivalent.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from starlab.platform.reports.bootstrap import two_level_bootstrap
from starlab.platform.reports.simulated import Effects, hits, subjects_of
from starlab.platform.reports.statistics import Spread, holm, spread

SEEDS = (2, 3, 5, 10)
BOOTSTRAPS = 300
"""Of so many comparisons of a setting, because a bootstrap takes longer than all the rest."""


@dataclass(frozen=True)
class Setting:
    name: str
    clips: int
    accuracies: tuple[float, float]
    effects: Effects


SETTINGS = (
    Setting("160 clips, seeds alike", 160, (0.90, 0.90), Effects(seed=0.0)),
    Setting("160 clips, seeds differ", 160, (0.90, 0.90), Effects(seed=0.2)),
    Setting("160 clips, seeds differ much", 160, (0.90, 0.90), Effects(seed=0.5)),
    Setting("160 clips, 7 points better", 160, (0.90, 0.97), Effects(seed=0.2)),
    Setting("1,068 clips (Penn), seeds alike", 1068, (0.95, 0.95), Effects(seed=0.0)),
    Setting("1,068 clips, seeds differ", 1068, (0.95, 0.95), Effects(seed=0.1)),
    Setting("1,068 clips, seeds differ much", 1068, (0.95, 0.95), Effects(seed=0.3)),
    Setting("1,068 clips, rows differ on clips", 1068, (0.95, 0.95), Effects(seed=0.1, row=1.5)),
    Setting("1,068 clips, 97.3 against 98.7", 1068, (0.973, 0.987), Effects(seed=0.2)),
    Setting("3,000 clips of 20 subjects (NTU)", 3000, (0.90, 0.90), Effects(seed=0.1, subject=0.2, subjects=20)),
)


def compare(setting: Setting, seeds: int, draw: int, bootstrap: bool) -> tuple[Spread, tuple[float, float] | None]:
    random = np.random.default_rng((seeds, draw))
    base, row = hits(setting.accuracies, seeds, setting.clips, setting.effects, random)
    units = subjects_of(setting.clips, setting.effects.subjects) if setting.effects.subjects else None
    difference = row.astype(float) - base
    return spread(difference, units=units), two_level_bootstrap(difference, units=units, draws=400) if bootstrap else None


def measure(setting: Setting, seeds: int, comparisons: int) -> list[str]:
    true = setting.accuracies[1] - setting.accuracies[0]
    found = [compare(setting, seeds, draw, draw < BOOTSTRAPS) for draw in range(comparisons)]
    held = [low <= true <= high for low, high in (one.interval() for one, _ in found)]
    plain = [low <= true <= high for _, interval in found if interval for low, high in [interval]]
    wrong = [np.sign(one.mean) * (one.p_value() <= 0.05) for one, _ in found]
    better, worse = (f"{100 * np.mean(np.equal(wrong, sign)):.1f}" if true == 0 else "" for sign in (1, -1))
    width = 100 * np.median([one.half_width() for one, _ in found])
    return [
        setting.name,
        str(seeds),
        f"{100 * np.mean(held):.1f}",
        f"{100 * np.mean(plain):.0f}",
        better,
        worse,
        f"{width:.2f}",
    ]


def tables_with_a_wrong_verdict(seeds: int, tables: int) -> tuple[float, float]:
    """Four rows that equal their base: the share of tables in which any p-value is 0.05 or less, plain and adjusted."""
    plain = adjusted = 0
    for draw in range(tables):
        base, *rows = hits([0.95] * 5, seeds, 1068, Effects(seed=0.1), np.random.default_rng((77, seeds, draw)))
        p_values = [spread(row.astype(float) - base).p_value() for row in rows]
        plain += min(p_values) <= 0.05
        adjusted += min(holm(p_values)) <= 0.05
    return 100 * plain / tables, 100 * adjusted / tables


def called_equivalent(seeds: int, clips: int, comparisons: int, true: float, effects: Effects) -> float:
    """The share of comparisons, in %, with the verdict equivalent for a region of 0.5 points."""
    found = 0
    for draw in range(comparisons):
        base, row = hits((0.95, 0.95 + true), seeds, clips, effects, np.random.default_rng((99, seeds, draw)))
        found += spread(row.astype(float) - base).p_value_outside(0.005) <= 0.05
    return 100 * found / comparisons


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--comparisons", type=int, default=2000)
    comparisons = parser.parse_args().comparisons
    began = time.monotonic()
    print("| setting | seeds | coverage | plain bootstrap | false better | false worse | ± points |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for setting in SETTINGS:
        for seeds in SEEDS:
            print("| " + " | ".join(measure(setting, seeds, comparisons)) + " |", flush=True)
    print("\n| seeds | tables with a wrong verdict, plain | with Holm |\n| ---: | ---: | ---: |")
    for seeds in SEEDS:
        plain, adjusted = tables_with_a_wrong_verdict(seeds, comparisons)
        print(f"| {seeds} | {plain:.1f} | {adjusted:.1f} |", flush=True)
    print("\n| seeds | clips | truly 0.5 points apart | truly equal |\n| ---: | ---: | ---: | ---: |")
    few, effects = max(10, comparisons // 4), Effects(seed=0.03, row=0.2)
    for seeds in (3, 5, 10):
        for clips in (1068, 5000):
            apart, equal = (called_equivalent(seeds, clips, few, true, effects) for true in (0.005, 0.0))
            print(f"| {seeds} | {clips:,} | {apart:.1f} | {equal:.1f} |", flush=True)
    print(f"\n{comparisons} comparisons of each setting, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
