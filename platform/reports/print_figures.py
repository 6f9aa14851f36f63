"""The paper's figures for print: the embedding (Fig. 1), accuracy over layers (Fig. 5), frame importance (Fig. 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from starlab.platform.reports.attention import MODEL, Focus
from starlab.platform.reports.attention_section import focuses
from starlab.platform.reports.explain_files import Embedding, read_embedding
from starlab.platform.reports.report import report_runs
from starlab.platform.reports.report_runs import METRIC_NAMES, ReportRun
from starlab.platform.runs.folder import RunFolder

COLORS = ("#0063a6", "#c44500", "#00795a", "#a8467f", "#7a6200", "#4b4fb5")
"""Colours that can be told apart with any colour vision, those of the HTML report."""
_MARKS = "os^Dv"
_COLUMN_INCHES = 3.4
_FULL_INCHES = 7.0


def write_print_figures(folder: RunFolder, complain: Callable[[str], None] = lambda _: None) -> tuple[list[Path], list[str]]:
    """Write the figures that the data allow into a run's artifacts, as vector graphics.

    Returns:
        Paths of the figures, and for each one that is left out a line that says why.
    """
    runs, metric = report_runs(folder, complain)
    made, left_out = [], []
    embedded = next((found for run in runs if (found := read_embedding(run.folder.artifacts))), None)
    explained = [(run, measured) for run in runs if (measured := focuses(run.folder))]
    several = {run.depth for run in runs if run.accuracy(metric) is not None}
    if embedded:
        made.append((embedding_figure(embedded), "figure1.pdf"))
    else:
        left_out.append("Figure 1: no run has an embedding; starlab explain RUN --embedding makes it")
    if len(several) > 1:
        made.append((layers_figure(runs, metric), "figure5.pdf"))
    else:
        left_out.append("Figure 5: all runs have the same number of layers")
    if explained:
        made.append(
            (importance_figure([(run.row, focus) for run, measured in explained[:4] for focus in measured]), "figure6.pdf")
        )
    else:
        left_out.append("Figure 6: no run was explained; starlab explain RUN measures it")
    folder.artifacts.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure, name in made:
        paths.append(folder.artifacts / name)
        figure.savefig(paths[-1])
    return paths, left_out


def layers_figure(runs: Sequence[ReportRun], metric: str) -> Figure:
    """Draw accuracy over the number of layers, a line per pairing with the range over seeds (Fig. 5)."""
    figure = Figure(figsize=(_COLUMN_INCHES, 2.5), layout="constrained")
    axes = figure.add_subplot()
    pairings = sorted({run.pairing for run in runs})
    for number, pairing in enumerate(pairings):
        found: dict[float, list[float]] = {}
        for run in runs:
            value = run.accuracy(metric)
            if run.pairing == pairing and run.depth is not None and value is not None:
                found.setdefault(run.depth, []).append(100 * value)
        depths = sorted(found)
        mean = [float(np.mean(found[depth])) for depth in depths]
        below = [value - min(found[depth]) for value, depth in zip(mean, depths, strict=True)]
        above = [max(found[depth]) - value for value, depth in zip(mean, depths, strict=True)]
        axes.errorbar(
            depths,
            mean,
            [below, above],
            label=pairing,
            color=COLORS[number % len(COLORS)],
            marker=_MARKS[number % len(_MARKS)],
            markersize=4,
            capsize=2,
            linewidth=1.2,
        )
    axes.set_xticks(sorted({run.depth for run in runs if run.depth is not None}))
    axes.set_xlabel("layers")
    axes.set_ylabel(f"{METRIC_NAMES.get(metric, metric)} (%)")
    axes.grid(alpha=0.3)
    if len(pairings) > 1:
        axes.legend(fontsize=7)
    return figure


def importance_figure(rows: Sequence[tuple[str, Focus]]) -> Figure:
    """Draw the mean importance of each frame with its interval, a panel per run and pattern (Fig. 6)."""
    lines = -(-len(rows) // 4)
    figure = Figure(figsize=(_FULL_INCHES, 1.9 * lines), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, min(4, len(rows)), sharey=True)).ravel()
    for axes, (row, focus) in zip(panels, rows, strict=False):
        frames = np.arange(1, len(focus.frames) + 1)
        mean = np.array([100 * one.mean for one in focus.frames])
        ends = np.array([[100 * one.low, 100 * one.high] for one in focus.frames]).T
        axes.bar(frames, mean, color=COLORS[0], width=0.75)
        axes.errorbar(frames, mean, np.maximum(0, [mean - ends[0], ends[1] - mean]), fmt="none", ecolor="black", linewidth=0.8)
        axes.axhline(100 / len(frames), color="black", linewidth=0.7, linestyle="--")
        axes.set_title(f"{row}, {'whole model' if focus.pattern == MODEL else focus.pattern}", fontsize=8)
        axes.set_xlabel("frame", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("importance (%)", fontsize=8)
    return figure


def embedding_figure(found: Embedding) -> Figure:
    """Draw the clips in two dimensions, a panel per method, a colour and a mark per class (Fig. 1)."""
    figure = Figure(figsize=(_COLUMN_INCHES * len(found.points), 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(found.points)))
    true = np.array(found.true)
    for axes, (method, points) in zip(panels, found.points.items(), strict=True):
        for number, name in enumerate(sorted(set(found.true))):
            chosen = points[true == name]
            mark = _MARKS[(number // len(COLORS)) % len(_MARKS)]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=8, color=COLORS[number % len(COLORS)], marker=mark, label=name)
        axes.set_title(method, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    if len(set(found.true)) <= 20:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=6)
    return figure
