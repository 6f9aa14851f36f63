"""Is TPE with ASHA cheaper than the grid? `make bench-search`, or `python tests/benchmarks/bench_search.py`.

First every cell of a grid is trained at three seeds on the generated people, one thread each, and its learning curve is kept in
`runs/bench_search_curves.json`; a call that is interrupted goes on. Then searches with the same seeds are replayed against the
curves: the search's own ledger, sampler and early stopping propose and end trials, two at a time, and an epoch of a trial is
read where a run would train it. A search may use a third of the training steps of its grid.

A search sees one seed, as a user's does; then it sees the mean of all three, as one with `search.seeds: 3`, and may use a
third of the steps of the grid at three seeds. It has succeeded if the cell that it names is, in the mean over all seeds,
within the seed noise of the grid's best cell: one standard deviation over seeds, pooled over the grid's better half. What a
seed does to all cells alike is left out of the noise, because it does not blur which cell is better.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from starlab.experiments.spec import SearchSpec, Spec, load_search
from starlab.models.star import StarTransformer
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.pipelines.stream import StreamLimits, train_batches
from starlab.platform.preflight import open_data
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.train_step import TrainStep
from starlab.platform.recipe.training_state import TrainingState
from starlab.platform.runs.folder import RunFolder
from starlab.platform.search.early_stopping import make_rungs
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import Outcome, objectives_of
from starlab.platform.search.proposal import Proposal
from starlab.platform.search.space import point_text
from starlab.platform.search.trial_folders import TrialFolders
from starlab.platform.worker.evaluate import Predictor
from starlab.platform.worker.tasks import TrainTask

Curves = dict[str, dict[int, list[float]]]
"""Validation top-1 after each epoch, by point and seed."""
SEEDS = (0, 1, 2)
SHARE = 1 / 3
"""Part of the grid's training steps that a search may use."""
AT_ONCE = 2
SPACE = [
    "space.model.layers={choice: [1, 2]}",
    "space.model.encoder={choice: [FF, FZ, FB]}",
    "space.model.decoder={choice: [FB]}",
    "space.train.lr={choice: [5.0e-4, 1.5e-3, 5.0e-3]}",
]
SETTINGS = [
    "data.train_fraction=0.15",
    "data.size=32",
    "data.decode=worker",
    "train.epochs=12",
    "train.evaluate_every_epochs=1",
    "search.trials=null",
    "search.hours=1000",
]
STRATEGIES = {
    "TPE + ASHA": ("tpe", "asha"),
    "random + ASHA": ("random", "asha"),
    "random, no early stopping": ("random", "none"),
}
LIMITS = StreamLimits(cpus=1.0, cpus_per_task=0.5, object_store_bytes=0, threads=1)


def make_spec(sampler: str = "tpe", early_stopping: str = "asha", seed: int = 0) -> SearchSpec:
    """The search of this benchmark."""
    chosen = [f"search.sampler={sampler}", f"search.early_stopping={early_stopping}", f"search.seed={seed}"]
    return load_search("demo_search", [*SPACE, *SETTINGS, *chosen, "search.grace_epochs=3", "search.reduction=3"])


def grid_of(spec: SearchSpec) -> list[dict[str, Any]]:
    """Every point of a finite space."""
    keys = list(spec.space)
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(spec.space[key].values for key in keys))]


def train_curve(spec: Spec, source: ClipSource, parts: Parts) -> list[float]:
    """Train a run in this process. Returns its validation top-1 after each epoch."""
    device, ranks = torch.device("cpu"), Ranks(0, 1)
    task = TrainTask(spec, source, parts, RunFolder(Path("unused")), LIMITS)
    torch.manual_seed(spec.train.seed)
    model = StarTransformer(spec.model)
    state = TrainingState(model, spec.train, device, "fp32")
    step = TrainStep(state, spec.train, ranks, device, task.steps.schedule_steps)
    predictor = Predictor.of(task, ranks, device, "fp32")
    evaluations, curve = task.steps.evaluations(), []
    batches = train_batches(source, spec.data, task.plan(0, 1, 0), task.steps.total_steps, LIMITS)
    rows = iter(batches)
    try:
        while state.step < task.steps.total_steps:
            step.gradients(next(rows))
            step.apply()
            if state.step in evaluations:
                curve.append(predictor.predict(model, parts.validation).metrics()["top1"])
    finally:
        batches.close()
    return curve


def read_curves(path: Path) -> Curves:
    """Curves of earlier calls."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {point: {int(seed): curve for seed, curve in by_seed.items()} for point, by_seed in stored.items()}


Cell = tuple[dict[str, Any], int]
"""A point of the grid and a seed."""


def train_cell(cell: Cell, source: ClipSource, parts: Parts) -> tuple[Cell, list[float]]:
    """Train a cell. Returns it with its curve."""
    torch.set_num_threads(1)
    point, seed = cell
    return cell, train_curve(make_spec().spec_of({**point, "train.seed": seed}), source, parts)


def train_grid(path: Path, minutes: float, processes: int) -> Curves:
    """Train the cells that have no curve yet, for at most so many minutes."""
    spec, curves, began = make_spec(), read_curves(path), time.monotonic()
    source, parts = open_data(spec.base, path.parent, print)
    cells = [(point, seed) for seed in SEEDS for point in grid_of(spec)]
    missing = [(point, seed) for point, seed in cells if seed not in curves.get(point_text(point), {})]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        train = functools.partial(train_cell, source=source, parts=parts)
        for (point, seed), curve in pool.imap_unordered(train, missing):
            curves.setdefault(point_text(point), {})[seed] = curve
            path.write_text(json.dumps(curves))
            done = sum(map(len, curves.values()))
            print(f"{done}/{len(cells)} {point_text(point)} seed {seed}: best {max(curve):.3f}", flush=True)
            if time.monotonic() - began > 60 * minutes:
                break
    return curves


@dataclass(slots=True)
class Replayed:
    """A search replayed against recorded curves."""

    chosen: str
    """The point that it names."""
    epochs: int
    """Epochs that its trials trained."""
    trials: int


def replay(spec: SearchSpec, curves: Mapping[str, list[float]], most_epochs: int, folder: Path) -> Replayed:
    """Run a search with the real ledger, sampler and early stopping; a trial's epochs are those of its curve."""
    objectives = objectives_of(spec)
    [objective] = objectives
    folders = TrialFolders(RunFolder(folder), spec, "f")
    ledger, rungs = Ledger(folders, replace(spec.search, storage=None), objectives), make_rungs(spec, objectives)
    running: list[tuple[Proposal, int]] = []
    used = trials = 0
    best: tuple[float, str] = (-1.0, "")
    while True:
        while len(running) < AT_ONCE and used < most_epochs and (proposal := ledger.propose()) is not None:
            running.append((proposal, 0))
            trials += 1
        if not running or used >= most_epochs:
            whole = [trial for trial in ledger.trials() if trial.whole]  # as a search, which tests a whole trial only
            return Replayed(point_text(whole[0].values) if whole else best[1], used, trials)
        proposal, done = running.pop(0)  # the trials take turns, an epoch each
        name, used, done = point_text(proposal.values), used + 1, done + 1
        curve = curves[name]
        value = curve[done - 1]
        ledger.report(proposal, done, value)
        best = max(best, (value, name))
        ends = rungs is not None and rungs.is_hopeless(name, 0, done, objective.score(value)) and done < len(curve)
        if ends or done == len(curve):
            reached = max(curve[:done])
            ledger.finish(proposal, Outcome(values={"val/top1": reached}, epochs=done, whole=not ends))
        else:
            running.append((proposal, done))


def judge(curves: Curves) -> tuple[dict[str, float], float]:
    """The mean over seeds of each cell's best value, and the seed noise: what is left of the values of the better half without
    the means of cells and of seeds, as a standard deviation.
    """
    reached = {point: [max(by_seed[seed]) for seed in SEEDS] for point, by_seed in curves.items()}
    means = {point: statistics.fmean(values) for point, values in reached.items()}
    better = sorted(means, key=lambda point: -means[point])[: max(2, len(means) // 2)]
    table = np.array([reached[point] for point in better])
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return means, math.sqrt((rest**2).sum() / ((len(better) - 1) * (len(SEEDS) - 1)))


def mean_curves(curves: Curves) -> dict[str, list[float]]:
    """The mean learning curve of every cell over the seeds."""
    return {
        point: [statistics.fmean(values) for values in zip(*(by_seed[seed] for seed in SEEDS), strict=True)]
        for point, by_seed in curves.items()
    }


def best_at(curves: Curves, seed: int) -> str:
    """The cell that reaches most at one seed."""
    return max(curves, key=lambda point: max(curves[point][seed]))


def compare_strategies(curves: Curves, sampler_seeds: Sequence[int]) -> dict[str, Any]:
    """Replay every strategy at every training seed with every seed of its sampler."""
    means, noise = judge(curves)
    best = max(means.values())
    epochs = len(next(iter(curves.values()))[SEEDS[0]])
    most = int(SHARE * epochs * len(curves))
    report: dict[str, Any] = {
        "cells": len(curves),
        "epochs a cell": epochs,
        "best cell": max(means, key=lambda point: means[point]),
        "best": best,
        "median": statistics.median(means.values()),
        "worst": min(means.values()),
        "seed noise": noise,
        "cells within it": sum(mean >= best - noise for mean in means.values()),
        "the whole grid at each seed": [means[best_at(curves, seed)] for seed in SEEDS],
        "strategies": {},
    }
    for name, (sampler, stopping) in STRATEGIES.items():
        rows = []
        for seed, sampler_seed in itertools.product(SEEDS, sampler_seeds):
            with tempfile.TemporaryDirectory(prefix="starlab-bench-") as folder:
                spec = make_spec(sampler, stopping, sampler_seed)
                found = replay(spec, {point: by_seed[seed] for point, by_seed in curves.items()}, most, Path(folder))
            rows.append((seed, sampler_seed, means[found.chosen], found.epochs / (epochs * len(curves)), found.trials))
        named = []
        for sampler_seed in sampler_seeds:
            with tempfile.TemporaryDirectory(prefix="starlab-bench-") as folder:
                found = replay(make_spec(sampler, stopping, sampler_seed), mean_curves(curves), most, Path(folder))
            named.append(means[found.chosen])
        asked = [row for row in rows if row[1] == sampler_seeds[0]]
        report["strategies"][name] = {
            "the asked three": [row[2] for row in asked],
            "of three within noise": sum(row[2] >= best - noise for row in asked),
            "share within noise": statistics.fmean(row[2] >= best - noise for row in rows),
            "share within noise, over the mean of the seeds": statistics.fmean(mean >= best - noise for mean in named),
            "mean of the named cell": statistics.fmean(row[2] for row in rows),
            "searches": len(rows),
            "share of the grid's steps": statistics.fmean(row[3] for row in rows),
            "trials": statistics.fmean(row[4] for row in rows),
        }
    return report


def main() -> None:
    """Train what is missing, replay, print and store."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--curves", type=Path, default=Path("runs/bench_search_curves.json"))
    arguments.add_argument("--out", type=Path, default=Path("runs/bench_search.json"))
    arguments.add_argument("--minutes", type=float, default=60.0, help="most time for training in this call")
    arguments.add_argument("--sampler-seeds", type=int, default=10)
    arguments.add_argument("--processes", type=int, default=2)
    given = arguments.parse_args()
    given.curves.parent.mkdir(parents=True, exist_ok=True)
    curves = train_grid(given.curves, given.minutes, given.processes)
    missing = len(SEEDS) * len(grid_of(make_spec())) - sum(map(len, curves.values()))
    if missing:
        print(f"{missing} curves are missing; the same command trains them")
        return
    report = compare_strategies(curves, range(given.sampler_seeds))
    given.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
