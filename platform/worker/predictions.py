"""Writes and reads predictions as a Parquet file with one row per clip, enough to recompute every metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from starlab.pipelines.clip import ClipSource
from starlab.platform.recipe.metrics import PCK_DISTANCES, Evaluation

_JOINT_COLUMNS = (*(f"joints_within_{distance}" for distance in PCK_DISTANCES), "joints_compared")


def write_predictions(path: Path, evaluation: Evaluation, source: ClipSource) -> None:
    """Write the predictions of an evaluation, in its order.

    The columns are clip_id, true and predicted (class names), probability (of the predicted class, in [0, 1]) and logits (C
    floats). From a model that finds the joints itself there are also the numbers of a clip's joints that were found within
    each distance of `PCK_DISTANCES` (joints_within_0.1, …), and of those compared (joints_compared). The file's metadata holds
    the classes, in the order of the logits, and the unreadable clips, as JSON under "starlab".
    """
    write_predictions_of(path, evaluation, [source.clips[int(index)].clip_id for index in evaluation.clips], source.classes)


def write_predictions_of(path: Path, evaluation: Evaluation, clip_ids: Sequence[str], classes: Sequence[str]) -> None:
    """As `write_predictions`, for clips of these ids, in the evaluation's order."""
    names = np.array(classes, dtype=object)
    logits = evaluation.logits.astype(np.float32)
    table = pa.table(
        {
            "clip_id": list(clip_ids),
            "true": pa.array(names[evaluation.labels].tolist(), pa.string()),
            "predicted": pa.array(names[evaluation.predicted].tolist(), pa.string()),
            "probability": pa.array(evaluation.probabilities().max(axis=1, initial=0.0), pa.float32()),
            "logits": pa.array(list(logits), pa.list_(pa.float32(), logits.shape[1])),
        }
    )
    if evaluation.joint_hits is not None:
        for name, counts in zip(_JOINT_COLUMNS, evaluation.joint_hits.T, strict=True):
            table = table.append_column(name, pa.array(counts, pa.float32()))
    about = {"classes": list(classes), "unreadable": dict(evaluation.unreadable)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    pq.write_table(table.replace_schema_metadata({"starlab": json.dumps(about)}), draft)
    draft.replace(path)


def read_predictions(path: Path) -> tuple[list[str], Evaluation, list[str]]:
    """Read a file of predictions. Returns the clip ids, the evaluation (its `clips` are row numbers) and the classes."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"starlab"])
    classes = list(about["classes"])
    index = {name: number for number, name in enumerate(classes)}
    logits = np.array(table["logits"].to_pylist(), np.float32).reshape(-1, len(classes))
    labels = np.array([index[name] for name in table["true"].to_pylist()], np.int64)
    hits = None
    if _JOINT_COLUMNS[-1] in table.column_names:
        hits = np.stack([table[name].to_numpy() for name in _JOINT_COLUMNS], axis=1)
    evaluation = Evaluation(np.arange(len(labels)), labels, logits, tuple(sorted(about["unreadable"].items())), hits)
    return table["clip_id"].to_pylist(), evaluation, classes
