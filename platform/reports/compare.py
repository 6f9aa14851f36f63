"""Compares rows of runs: mean and spread over seeds, the paired difference to a base row, and a verdict in words.

    results = read_results(find_runs(runs_folder(), "table4", print))
    comparison = compare(results, metric="top1", rope=0.5)
    print(*comparison.sentences, sep="\\n")

docs/comparing.md says what an interval and a verdict mean, and how often they are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from starlab.platform.errors import UserError
from starlab.platform.recipe.metrics import METRICS
from starlab.platform.reports.blocks import largest_block
from starlab.platform.reports.comparison import (
    ALPHA,
    EXACT_TEST_SEEDS,
    Comparison,
    Difference,
    Row,
    Verdict,
    reader_notes,
    sentence,
)
from starlab.platform.reports.grouping import Group, find_base, group_runs
from starlab.platform.reports.paired import Pairing, ScoreTable, read_tables
from starlab.platform.reports.paper import paper_result
from starlab.platform.reports.results import Results
from starlab.platform.reports.scores import BOUNDED, SCORES
from starlab.platform.reports.statistics import Spread, holm, sign_flip

_ROPE_POINTS = 0.5
"""Half of the width of the region of practical equivalence, unless another one is given."""


def compare(
    results: Results, *, metric: str | None = None, by: Sequence[str] = (), base: str | None = None, rope: float | None = None
) -> Comparison:
    """Compare runs by a metric of the test part.

    Args:
        results: The runs, by `read_results`.
        metric: Name of a metric in METRICS. None takes the ablation's, else top1.
        by: Keys of the spec whose values make the rows. Empty: rows of the ablation, or everything but the seed.
        base: Row to compare with, by its name or by the id of one of its runs. None takes the ablation's reference, or the
            first row.
        rope: Differences below this count as equivalent in practice, in points for metrics in percent and else in the metric's
            unit. 0 never calls rows equivalent. None takes 0.5 points, and 0 for other units.

    Raises:
        UserError: There are no runs, or no run has the metric; the base or a key is unknown; a row is named twice.
    """
    metric = _metric(results, metric)
    if rope is None:
        rope = _ROPE_POINTS if metric in BOUNDED else 0.0
    if not 0 <= rope < math.inf:
        raise UserError(f"--rope is {rope:g}; it must be 0 or more, and finite")
    grouping = group_runs(results, by)
    chosen = find_base(grouping, base)
    scale = 100.0 if metric in BOUNDED else 1.0
    tables, notes = read_tables(grouping.groups, metric)
    differences = {}
    rows = []
    for group in grouping.groups:
        row = _row(group, tables.get(group.name), metric, scale, is_base=group is chosen)
        if chosen is not None and group is not chosen:
            pairing, reason = Pairing.of(tables.get(group.name), tables.get(chosen.name))
            row = replace(row, reason=reason if row.mean is not None else "")
            if pairing is not None:
                differences[group.name] = pairing
        rows.append(row)
    rows = _with_differences(rows, differences, metric, scale, rope)
    better = METRICS[metric].higher_is_better
    rows.sort(key=lambda row: math.inf if row.mean is None or math.isnan(row.mean) else -row.mean if better else row.mean)
    claims = list(dict.fromkeys(ablation.record.claim for ablation in results.ablations))
    unit: Literal["%", "nats"] = "%" if metric in BOUNDED else "nats"
    return Comparison(
        metric=metric,
        unit=unit,
        rows=tuple(rows),
        base=chosen.name if chosen else None,
        keys=grouping.keys,
        rope=rope,
        claim=" ".join(claims),
        notes=(*grouping.notes, *notes, *reader_notes(results, rows, rope, unit)),
        sentences=tuple(
            sentence(row, chosen.name, unit) for row in rows if chosen is not None and not row.is_base and row.verdict
        ),
    )


def _metric(results: Results, metric: str | None) -> str:
    asked = {ablation.record.metric for ablation in results.ablations}
    name = metric or (asked.pop() if len(asked) == 1 else "top1")
    if name not in SCORES:
        raise UserError(f"--metric {name}: there is no such metric of test clips; choose one of: {', '.join(SCORES)}")
    tested = [run for run in results.runs if run.test]
    if tested and not any(name in run.test for run in tested):
        had = sorted({known for run in tested for known in run.test})
        raise UserError(f"--metric {name}: none of the {len(tested)} tested runs has it; they have: {', '.join(had)}")
    return name


def _row(group: Group, table: ScoreTable | None, metric: str, scale: float, *, is_base: bool) -> Row:
    runs = tuple(group.replicates.values())
    tested = {key: scale * run.test[metric] for key, run in group.replicates.items() if metric in run.test}
    if table:  # where some runs have predictions of the same clips, these alone count, so that the interval is about the mean
        tested = {key: value for key, value in tested.items() if key in table.replicates}
    block = largest_block(tested)
    by_seed = block.by_seed(tested).tolist() if block.seeds else []
    spread = table.spread() if table else None
    low, high = spread.interval(ALPHA) if spread else (None, None)
    if metric in BOUNDED and low is not None and high is not None:
        low, high = max(0.0, low), min(1.0, high)
    record = group.ablation.record if group.ablation else None
    paper = group.ablation.row(str(runs[0].row)).paper if group.ablation and record and record.metric == metric else None
    if paper is None and metric == "top1":
        published = paper_result(runs[0].spec)
        paper = published.top1 if published else None
    counted = [run for key, run in group.replicates.items() if key in block.keys] or runs
    val = [scale * run.val[metric] for run in counted if metric in run.val]
    return Row(
        name=group.name,
        values=group.values,
        runs=runs,
        is_base=is_base,
        seeds=block.seeds,
        settings=len(block.settings),
        by_seed=tuple(by_seed),
        left_out=tuple(run.run for key, run in group.replicates.items() if metric in run.test and key not in block.keys),
        mean=float(np.mean(by_seed)) if by_seed else None,
        sd=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        low=None if low is None else scale * low,
        high=None if high is None else scale * high,
        val=float(np.mean(val)) if val else None,
        paper=paper,
    )


def _with_differences(rows: Sequence[Row], pairings: dict[str, Pairing], metric: str, scale: float, rope: float) -> list[Row]:
    spreads = {name: pairing.spread() for name, pairing in pairings.items()}
    judged_names = [name for name, spread in spreads.items() if spread.seeds > 1]  # one seed gets no verdict to adjust
    comparisons = len(judged_names)
    adjusted = dict(zip(judged_names, holm([spreads[name].p_value() for name in judged_names]), strict=True))
    outside = [spreads[name].p_value_outside(rope / scale) if rope else 1.0 for name in judged_names]
    equivalent = dict(zip(judged_names, holm(outside), strict=True))
    judged = []
    for row in rows:
        if row.name in spreads:
            spread, pairing = spreads[row.name], pairings[row.name]
            low, high = spread.interval(ALPHA)
            p_value, p_equivalent = adjusted.get(row.name, spread.p_value()), equivalent.get(row.name, 1.0)
            several = spread.seeds > 1
            exact = spread.seeds >= EXACT_TEST_SEEDS
            difference = Difference(
                value=scale * spread.mean,
                low=scale * (max(-1.0, low) if metric in BOUNDED else low),
                high=scale * (min(1.0, high) if metric in BOUNDED else high),
                p_value=spread.p_value(),
                p_adjusted=p_value,
                p_equivalent=p_equivalent,
                p_sign_flip=sign_flip(spread.by_seed) if exact else None,
                seeds=spread.seeds,
                settings=len(pairing.block.settings),
                clips=len(pairing.clip_ids),
                subjects=pairing.subjects,
                mcnemar=pairing.mcnemar() if metric in BOUNDED else (),
                detectable=_detectable(spread, comparisons, metric, scale) if several else None,
                seeds_for_one=spread.seeds_for(1 / scale, comparisons=comparisons) if several and metric in BOUNDED else None,
                verdict=_verdict(spread, p_value, p_equivalent, METRICS[metric].higher_is_better),
            )
            row = replace(row, difference=difference)
        judged.append(row)
    return judged


def _detectable(spread: Spread, comparisons: int, metric: str, scale: float) -> float:
    found = spread.detectable(spread.seeds, comparisons=comparisons)
    return scale * (min(1.0, found) if metric in BOUNDED else found)  # with two clips, it would be some hundred points


def _verdict(spread: Spread, p_adjusted: float, p_equivalent: float, higher_is_better: bool) -> Verdict:
    if spread.seeds == 1:
        return "one seed, no verdict"
    if p_equivalent <= ALPHA:
        return "equivalent"
    if p_adjusted <= ALPHA:
        return "better" if (spread.mean > 0) == higher_is_better else "worse"
    return "no difference shown"
