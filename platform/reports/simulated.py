"""Simulated runs, to try a comparison without training and to check its statistics: a random effects model of seeds and clips.

A run is right about a clip if  ability + seed effect + clip's ease + row's own view of the clip + noise > 0, all of them
normal and the noise of deviation 1. So the accuracy of a row over all seeds and clips is known exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import ndtri

from starlab.experiments.spec import load_spec
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import Result, RunInfo

CLASSES = tuple(f"class_{number}" for number in range(10))


@dataclass(frozen=True)
class Effects:
    """Deviations of the effects, in units of the noise of a single clip at a single seed."""

    seed: float = 0.1
    """Some runs are better on all clips. 0.1 is about 0.5 points of standard deviation at 95 %."""
    clip: float = 2.0
    """Some clips are easier for all runs."""
    row: float = 0.5
    """A row finds some clips easier than other rows do, at every seed."""
    subject: float = 0.0
    """A row finds the clips of some subjects easier."""
    subjects: int = 0
    """Number of subjects, of which each has as many clips. 0: every clip is its own."""


def hits(
    accuracies: Sequence[float], seeds: int, clips: int, effects: Effects, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw (rows, seeds, clips) whether a run is right, with the given accuracies over all seeds and clips."""
    total = np.sqrt(1 + effects.seed**2 + effects.clip**2 + effects.row**2 + effects.subject**2)
    ability = ndtri(np.asarray(accuracies))[:, None, None] * total
    rows = len(accuracies)
    latent = ability + random.normal(0, effects.seed, (rows, seeds, 1)) + random.normal(0, effects.clip, clips)
    latent = latent + random.normal(0, effects.row, (rows, 1, clips)) + random.normal(size=(rows, seeds, clips))
    if effects.subjects:
        by_subject = random.normal(0, effects.subject, (rows, 1, effects.subjects))
        latent = latent + by_subject[:, :, subjects_of(clips, effects.subjects)]
    found: NDArray[np.bool_] = latent > 0
    return found


def subjects_of(clips: int, subjects: int) -> NDArray[np.int64]:
    """Return (clips,) the subject of each clip."""
    return np.arange(clips) * subjects // clips


def write_run(
    path: Path,
    right: NDArray[np.bool_],
    spec: Mapping[str, Any],
    *,
    clip_ids: Sequence[str] | None = None,
    unreadable: Mapping[str, str] | None = None,
    code: str = "1a2b3c4d5e6f",
) -> RunFolder:
    """Write the folder of a finished run: its records and its predictions, but neither weights nor a curve.

    Args:
        path: Folder of the run, whose name is the run's id.
        right: (n,) whether the run is right about each test clip. The clips have ten classes in turn.
        spec: The resolved spec, as `Spec.to_dict` returns it.
        clip_ids: Names of the clips. None numbers them.
        unreadable: Reason by clip id of further clips, which could not be read.
        code: Version of the code.
    """
    folder = RunFolder(path)
    folder.write_json(SPEC, spec)
    name = str(spec["name"])
    folder.write(
        RunInfo(
            run_id=path.name,
            key=path.name,
            experiment=name,
            mlflow_experiment=name,
            tracking_uri="",
            runs=str(path.parent),
            status="FINISHED",
            tags={"starlab.code": code},
            created="2026-01-01T00:00:00+00:00",
        )
    )
    labels = np.arange(len(right)) % len(CLASSES)
    predicted = np.where(right, labels, (labels + 1) % len(CLASSES))
    logits = 4 * np.eye(len(CLASSES), dtype=np.float32)[predicted]
    evaluation = Evaluation(np.arange(len(right)), labels, logits, ())
    metrics = evaluation.metrics()
    folder.write(
        Result(
            steps=8,
            total_steps=8,
            best_step=8,
            selected_by="validation",
            classes=CLASSES,
            val=metrics,
            test=metrics,
            test_clips=len(right),
            confusion=evaluation.confusion().tolist(),
        )
    )
    names = np.array(CLASSES)
    table = pa.table(
        {
            "clip_id": pa.array(list(clip_ids or (f"{number:04d}" for number in range(len(right)))), pa.string()),
            "true": pa.array(names[labels].tolist(), pa.string()),
            "predicted": pa.array(names[predicted].tolist(), pa.string()),
            "probability": pa.array(evaluation.probabilities().max(axis=1), pa.float32()),
            "logits": pa.array(list(logits), pa.list_(pa.float32(), len(CLASSES))),
        }
    )
    about = {"classes": list(CLASSES), "unreadable": dict(unreadable or {})}
    folder.artifacts.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"starlab": json.dumps(about)}), folder.artifacts / "predictions.parquet")
    return folder


def write_rows(
    runs: Path,
    rows: Mapping[str, tuple[Sequence[str], float]],
    *,
    experiment: str = "demo",
    seeds: int = 3,
    clips: int = 200,
    effects: Effects = Effects(),
) -> list[RunFolder]:
    """Write a run of each row at each seed, and return the folders.

    Args:
        runs: Folder of runs.
        rows: (overrides of the experiment, true accuracy in [0, 1]) of each row, by the name that the run folders begin with.
        experiment: The experiment whose spec the runs have.
        seeds: Number of seeds.
        clips: Number of test clips.
        effects: Deviations of the random effects.
    """
    drawn = hits([accuracy for _, accuracy in rows.values()], seeds, clips, effects, np.random.default_rng(7))
    folders = []
    for index, (name, (overrides, _)) in enumerate(rows.items()):
        resolved = load_spec(experiment, list(overrides)).to_dict()
        for seed in range(seeds):
            spec = resolved | {"train": resolved["train"] | {"seed": seed}}
            folders.append(write_run(runs / f"{name}-{seed}", drawn[index, seed], spec))
    return folders
