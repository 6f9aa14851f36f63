"""Late fusion: one prediction from several models that were trained apart, such as one of pixels and one of joints.

The class probabilities of the models are averaged with equal weights (Simonyan and Zisserman's two-stream networks,
arXiv:1406.2199, 2014). Nothing is trained, and no weight is chosen on the test part.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from starlab.platform.errors import UserError
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.reports.costs import RunCost
from starlab.platform.reports.grouping import Group, group_runs
from starlab.platform.reports.results import Results, RunRow
from starlab.platform.worker.predictions import read_predictions, write_predictions_of

_SMALLEST = float(np.finfo(np.float32).tiny)
"""Probabilities below are raised to this, so that their logarithm is finite."""


def with_fusion(results: Results, names: Sequence[str], folder: Path) -> Results:
    """Add a row to a comparison whose predictions are the mean of those of other rows, at each seed that all of them have.

    Args:
        results: The runs.
        names: Rows to fuse, two or more, each once.
        folder: Receives the predictions of the fused runs. Keep it until the comparison is made.

    Raises:
        UserError: A name is unknown or there twice, the rows have no seed in common, or they were tested on other classes.
    """
    groups = {group.name: group for group in group_runs(results).groups}
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"--fuse {','.join(names)}: name two rows or more, each once, with a comma between them")
    for name in names:
        if name not in groups:
            near = difflib.get_close_matches(name, groups, 3, 0.4) or list(groups)
            raise UserError(f"--fuse: no row is called {name!r}. Rows: {', '.join(map(repr, near[:8]))}")
    chosen = [groups[name] for name in names]
    keys = [key for key in chosen[0].replicates if all(key in group.replicates for group in chosen)]
    if not keys:
        raise UserError(f"--fuse {','.join(names)}: these rows have no seed in common")
    fused = [_fused(chosen, [group.replicates[key] for group in chosen], folder) for key in keys]
    return replace(results, runs=(*results.runs, *fused))


def fuse(evaluations: Sequence[tuple[list[str], Evaluation]]) -> tuple[list[str], Evaluation]:
    """Average the class probabilities of several models.

    Args:
        evaluations: Clip ids and predictions of each model, over the same classes.

    Returns:
        The clips that all models predicted, in the order of the first, and their predictions. The logits are the logarithms of
        the mean probabilities.
    """
    places = [{clip: place for place, clip in enumerate(clips)} for clips, _ in evaluations]
    common = [clip for clip in evaluations[0][0] if all(clip in place for place in places)]
    rows = [np.array([place[clip] for clip in common], np.int64) for place in places]
    mean = np.mean([one.probabilities()[row] for (_, one), row in zip(evaluations, rows, strict=True)], axis=0)
    unreadable = {clip: reason for _, one in evaluations for clip, reason in one.unreadable}
    logits = np.log(np.maximum(mean, _SMALLEST)).astype(np.float32)
    labels = evaluations[0][1].labels[rows[0]]
    return common, Evaluation(np.arange(len(common)), labels, logits, tuple(sorted(unreadable.items())))


def _fused(groups: Sequence[Group], runs: Sequence[RunRow], folder: Path) -> RunRow:
    name = " + ".join(group.name for group in groups)
    read = []
    for run in runs:
        if run.predictions is None:
            raise UserError(f"--fuse: {run.run} has no predictions of the test part; its training must end first")
        read.append(read_predictions(run.predictions))
    classes = read[0][2]
    if any(other != classes for _, _, other in read):
        raise UserError(
            f"--fuse: {', '.join(run.run for run in runs)} were tested on other classes, so they cannot be averaged"
        )
    clips, evaluation = fuse([(ids, one) for ids, one, _ in read])
    at = folder / f"fused-{'-'.join(run.run for run in runs)}"
    write_predictions_of(at / "predictions.parquet", evaluation, clips, classes)
    return replace(
        runs[0],
        run=" + ".join(run.run for run in runs),
        folder=at,
        kind="run",
        group=None,
        row=name,
        spec={key: _joined([run.spec.get(key) for run in runs]) for key in runs[0].spec},
        val={},
        test=evaluation.metrics(),
        test_clips=len(clips),
        unreadable=len(evaluation.unreadable),
        looks=max(run.looks for run in runs),
        predictions=at / "predictions.parquet",
        cost=RunCost(),
    )


def _joined(values: Sequence[object]) -> object:
    """The value that all runs have, or the values of all, as in "rgb + pose"."""
    return values[0] if all(value == values[0] for value in values) else " + ".join(map(str, values))
