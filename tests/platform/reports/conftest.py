"""Simulated folders of a run, a search and an ablation, with all that a report can show, and with names to escape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from starlab.experiments.spec import load_spec
from starlab.pipelines.clip import ClipRow
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.reports.attention import MODEL
from starlab.platform.reports.explain_files import (
    CLIP,
    EMBEDDING,
    FOLDER,
    ROLLOUT,
    Embedding,
    Rollouts,
    write_embedding,
    write_rollouts,
)
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import Result, RunInfo
from starlab.platform.runs.search_records import AblationRecord, AblationRow, Cell, SearchSummary, Trial
from starlab.platform.worker.predictions import write_predictions

CLASSES = ("swing & hit", "raise <b>left</b>", 'wave "twice"', "it's a kick", "squat")
CLIPS = 200


class FakeSource:
    """Only what `write_predictions` reads."""

    classes = CLASSES
    clips = tuple(
        ClipRow(clip_id=f"{number:04d}", label=number % 5, split="test", subject=None, num_frames=20) for number in range(CLIPS)
    )


def make_run(
    path: Path, overrides: list[str], accuracy: float, *, seed: int = 0, steps: int = 400, test: bool = True
) -> RunFolder:
    """A finished run whose curves and predictions fit its accuracy."""
    rng = np.random.default_rng([seed, int(1000 * accuracy)])
    folder = RunFolder(path)
    folder.write_json(SPEC, load_spec("demo", [*overrides, f"train.seed={seed}"]).to_dict())
    tags = {"starlab.code": "0123456789ab", "starlab.device": "2 x <CPU>", "starlab.version.torch": "2.14.1"}
    folder.write(
        RunInfo(
            run_id=path.name,
            key=path.name,
            experiment="demo",
            mlflow_experiment="demo",
            tracking_uri="sqlite:///x",
            runs=str(path.parent),
            status="FINISHED",
            tags=tags,
            created="2026-11-01T10:00:00+00:00",
        )
    )
    labels = np.arange(CLIPS) % 5
    guesses = np.where(rng.random(CLIPS) < accuracy, labels, (labels + 1) % 5)
    logits = np.eye(5, dtype=np.float32)[guesses] * 4
    evaluation = Evaluation(np.arange(CLIPS), labels, logits, ())
    if test:
        write_predictions(folder.artifacts / "predictions.parquet", evaluation, FakeSource())  # type: ignore[arg-type]
    val = {"top1": accuracy, "top5": 1.0, "mean_class": accuracy, "loss": 1 - accuracy}
    folder.write(
        Result(
            steps=steps,
            total_steps=400,
            best_step=steps,
            selected_by="validation",
            classes=CLASSES,
            val=val,
            epochs=steps // 100,
            test=evaluation.metrics() if test else None,
            test_clips=CLIPS if test else None,
            confusion=evaluation.confusion().tolist() if test else None,
        )
    )
    with (path / "journal.jsonl").open("w") as file:
        for step in range(10, steps + 1, 10):
            rise = accuracy * (1 - np.exp(-step / 120)) + rng.normal(0, 0.02)
            points = {"train/loss": 2 - 1.6 * rise, "train/top1": rise, "system/clips_per_second": 30 + rng.normal()}
            if step % 100 == 0:
                points |= {"val/top1": rise, "val/loss": 2 - 1.6 * rise}
            for key, value in points.items():
                file.write(json.dumps({"key": key, "step": step, "value": float(value), "time_ms": 1000 * step}) + "\n")
    return folder


def explain(folder: RunFolder, patterns: str) -> None:
    """Leave what `starlab explain` leaves, with late frames for F and even ones for the others."""
    rng = np.random.default_rng(0)
    late = np.array([1] * 12 + [6] * 4, np.float64)
    names = {MODEL: late + 2, **{letter: late if letter == "F" else np.ones(16) for letter in patterns}}
    importance = {}
    for name, shape in names.items():
        values = shape * rng.uniform(0.9, 1.1, (60, 16))
        importance[name] = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    ids = tuple(f"{number:04d}" for number in range(60))
    target = folder.artifacts / FOLDER
    write_rollouts(target / ROLLOUT, Rollouts(ids, importance, 400, "test"))
    clip = {
        "clip_id": "0007 <&>",
        "true": CLASSES[1],
        "joints": ["head", "left_hand"],
        "frames": {name: values[0].tolist() for name, values in importance.items()},
        "joint_importance": rng.uniform(0, 0.02, (2, 16)).tolist(),
        "grid_share": 0.5,
        "class_share": 0.2,
    }
    (target / CLIP).write_text(json.dumps(clip))
    true = tuple(CLASSES[number % 5] for number in range(60))
    points = np.array([[number % 5, number % 3] for number in range(60)]) + rng.normal(0, 0.2, (60, 2))
    write_embedding(target / EMBEDDING, Embedding(true, ids, {"PCA": points.astype(np.float32)}, 0.8, "test"))


@pytest.fixture
def finished_run(tmp_path: Path) -> RunFolder:
    """One explained run."""
    folder = make_run(tmp_path / "demo-1a2b", ["model.encoder=FZ"], 0.8)
    explain(folder, "FZB")
    return folder


@pytest.fixture
def finished_search(tmp_path: Path) -> RunFolder:
    """A search of 24 trials over every kind of key."""
    return make_search(tmp_path, 24)


@pytest.fixture
def make_a_search() -> Callable[[Path, int], RunFolder]:
    """`make_search`, for tests that choose the number of trials."""
    return make_search


def make_search(runs: Path, count: int) -> RunFolder:
    """A finished search whose accuracy depends on the learning rate and the depth."""
    rng = np.random.default_rng(1)
    folder = RunFolder(runs / "s-<1>")
    trials = []
    for number in range(count):
        values = {
            "train.lr": float(10 ** rng.uniform(-4, -2)),
            "model.layers": int(rng.integers(1, 4)),
            "model.encoder": str(rng.choice(["FF", "FZ", "FB"])),
            "data.color_jitter": float(rng.uniform(0, 0.4)),
        }
        if values["model.encoder"] == "FF":
            del values["data.color_jitter"]  # as a condition would
        accuracy = 0.9 - 0.15 * abs(np.log10(float(values["train.lr"])) + 3) - 0.05 * abs(int(values["model.layers"]) - 2)
        whole = number % 4 != 3
        name = f"trial-{number:02d}"
        overrides = [f"{key}={value}" for key, value in values.items()]
        make_run(folder.path / "trials" / name, overrides, float(accuracy), steps=400 if whole else 100, test=False)
        trials.append(Trial(run=name, values=values, val_top1=float(accuracy), epochs=4 if whole else 1, whole=whole))
    trials.sort(key=lambda trial: (not trial.whole, -trial.val_top1))
    space = {
        "train.lr": {"log": [1e-4, 1e-2]},
        "model.layers": {"int": [1, 3]},
        "model.encoder": {"choice": ["FF", "FZ", "FB"]},
        "data.color_jitter": {"float": [0.0, 0.4]},
    }
    best = folder.path / "trials" / trials[0].run
    make_run(best, [f"{key}={value}" for key, value in trials[0].values.items()], trials[0].val_top1)
    spec = load_spec("demo").to_dict() | {"space": space, "search": {"trials": count}}
    folder.write_json(SPEC, spec)
    folder.write(RunFolder(best).info)
    folder.write(SearchSummary(trials=tuple(trials), best=trials[0].run, test_top1=trials[0].val_top1))
    return folder


@pytest.fixture
def finished_ablation(tmp_path: Path) -> RunFolder:
    """An ablation of five rows and three seeds, of which two rows differ in depth, and one cell is missing."""
    rows = {
        "FZ/FB": (["model.encoder=FZ", "model.decoder=FB"], 0.92),
        "FF/FF": (["model.encoder=FF", "model.decoder=FF"], 0.80),
        "FB/FZ <deep>": (["model.encoder=FB", "model.decoder=FZ", "model.layers=2"], 0.85),
        "FZ/FB, 2": (["model.encoder=FZ", "model.decoder=FB", "model.layers=2"], 0.93),
        "FZ/FB, 3": (["model.encoder=FZ", "model.decoder=FB", "model.layers=3"], 0.88),
    }
    folder = RunFolder(tmp_path / "table-9")
    cells = []
    for name, (overrides, accuracy) in rows.items():
        for seed in range(3):
            run = f"cell-{len(cells):02d}"
            cells.append(Cell(row=name, seed=seed, run=run, folder=f"table-9/trials/{run}"))
            if (name, seed) != ("FZ/FB, 3", 2):
                made = make_run(folder.path / "trials" / run, overrides, accuracy + 0.01 * (seed - 1), seed=seed)
                if seed == 0 and name in ("FZ/FB", "FF/FF"):
                    explain(made, "F" if name == "FF/FF" else "FZB")
    record = AblationRecord(
        claim="FZ/FB beats <every> other pairing & depth.",
        metric="top1",
        reference="FZ/FB",
        rows=tuple(AblationRow(name=name, changes={}, paper=98.7 if name == "FZ/FB" else 96.1) for name in rows),
        seeds=(0, 1, 2),
        cells=tuple(cells),
    )
    folder.write_json(SPEC, load_spec("demo").to_dict())
    folder.write(RunFolder(folder.path / "trials" / "cell-00").info)
    folder.write(record)
    return folder
