"""Figures of a run and of a search, and the artifacts that each leaves when it is finished."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from starlab.experiments.space import Distribution
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.journal import FILE, Point, read_points
from starlab.platform.runs.metric_names import TRAIN, VAL
from starlab.platform.runs.records import Result, plain
from starlab.platform.runs.search_records import Trial


def write_artifacts(folder: RunFolder) -> list[Path]:
    """Write spec.yaml, result.json, confusion.png and curves.png of a finished run; returns their paths."""
    folder.artifacts.mkdir(exist_ok=True)
    result = folder.require(Result)
    paths = [folder.artifacts / name for name in ("spec.yaml", "result.json", "curves.png")]
    paths[0].write_text(yaml.safe_dump(folder.read_json(SPEC), sort_keys=False))
    paths[1].write_text(json.dumps(plain(result), indent=1))
    curves_figure(list(read_points(folder.path / FILE))).savefig(paths[2], dpi=120)
    if result.confusion is not None:
        paths.append(folder.artifacts / "confusion.png")
        confusion_figure(np.array(result.confusion), result.classes).savefig(paths[-1], dpi=120)
    return paths


def write_search_artifacts(
    folder: RunFolder, trials: Sequence[Trial], space: Mapping[str, Distribution], objective: str = "val/top1"
) -> None:
    """Write trials.csv, best first, and trials.png: the objective of every trial against each dimension of the space."""
    folder.artifacts.mkdir(exist_ok=True)
    keys = sorted(space)
    with (folder.artifacts / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        others = sorted({name for trial in trials for name in trial.objectives} - {"val/top1"})
        table.writerow(["run", *keys, "val_top1", *others, "epochs", "whole"])
        for trial in trials:
            values = [trial.values.get(key, "") for key in keys]
            values += [trial.val_top1, *(trial.value_of(name) for name in others)]
            table.writerow([trial.run, *values, trial.epochs, trial.whole])
    search_figure(trials, space, objective).savefig(folder.artifacts / "trials.png", dpi=120)


def search_figure(trials: Sequence[Trial], space: Mapping[str, Distribution], objective: str = "val/top1") -> Figure:
    """Draw one panel per dimension of the space; a filled dot is a trial that reached its end, a hollow one ended early."""
    figure = Figure(figsize=(3.2 * len(space), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(space), sharey=True))
    for axes, (key, distribution) in zip(panels, sorted(space.items()), strict=True):
        is_choice = distribution.kind == "choice"
        for trial in trials:
            if key not in trial.values:  # its condition does not hold
                continue
            value = trial.values[key]
            place = distribution.values.index(value) if is_choice else value
            axes.plot(place, trial.value_of(objective), "o", color="C0", fillstyle="full" if trial.whole else "none")
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
        if is_choice:
            axes.set_xticks(range(len(distribution.values)), [str(value) for value in distribution.values])
            axes.set_xlim(-0.5, len(distribution.values) - 0.5)
        elif distribution.kind in ("log", "log_int"):
            axes.set_xscale("log")
        elif distribution.kind == "int":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].set_ylabel("validation top-1" if objective == "val/top1" else objective)
    return figure


def confusion_figure(confusion: np.ndarray[Any, Any], classes: Sequence[str], part: str = "test") -> Figure:
    """Draw a confusion matrix: rows are true classes, columns predictions; shades are shares of a row, numbers are clips."""
    size = 2.5 + 0.42 * len(classes)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    share = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    top1 = np.diag(confusion).sum() / max(1, confusion.sum())
    axes.set_title(f"{part} part, top-1 {top1:.3f} ({confusion.sum()} clips)")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def curves_figure(points: Sequence[Point]) -> Figure:
    """Draw loss and top-1 over steps, of training and validation."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = (("loss (nats)", "loss"), ("top-1", "top1"))
    for axes, (title, name) in zip(figure.subplots(1, 2), panels, strict=True):
        for key, label, style in ((f"{TRAIN}{name}", "train", "-"), (f"{VAL}{name}", "validation", "o-")):
            curve = sorted((point.step, point.value) for point in points if point.key == key)
            if curve:
                steps, values = zip(*curve, strict=True)
                axes.plot(steps, values, style, label=label, linewidth=1, markersize=4)
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
