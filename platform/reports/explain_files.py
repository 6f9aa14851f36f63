"""Files that `starlab explain` leaves in a run's artifacts, and that a report draws.

    artifacts/explain/
      rollout.parquet     importance of each frame, a row per clip and pattern
      clip.json           importance of frames and joints within one clip
      clip.jpg            the frames of this clip, with joints, side by side
      untrained.json      the same measures of untrained models with the same wiring
      embedding.parquet   the averaged class token of each clip in two dimensions

Letters: n clips  T frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.platform.reports.attention import Importance
from starlab.platform.reports.untrained import Untrained

FOLDER = "explain"
"""Folder of these files inside a run's artifacts."""
ROLLOUT, CLIP, FRAMES, EMBEDDING = "rollout.parquet", "clip.json", "clip.jpg", "embedding.parquet"
UNTRAINED = "untrained.json"


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Frame importance of many clips of one run."""

    clip_ids: tuple[str, ...]
    importance: Mapping[str, Importance]
    """(n, T) by pattern; rows sum to 1."""
    step: int
    """Step of the checkpoint."""
    part: str


@dataclass(frozen=True, slots=True)
class ClipMap:
    """Importance within one clip."""

    clip_id: str
    true: str
    joints: tuple[str, ...]
    """Names of the joints, those of a second body included."""
    frames: Mapping[str, list[float]]
    """(T,) importance of each frame, by pattern."""
    joint_importance: list[list[float]]
    """(joints, T) importance of the joint tokens, through all attentions."""
    grid_share: float
    """Importance of the tokens of the global map, all frames together."""
    class_share: float
    """Importance that stays with the class tokens themselves."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The averaged class token of each clip, in two dimensions."""

    true: tuple[str, ...]
    clip_ids: tuple[str, ...]
    points: Mapping[str, NDArray[np.float32]]
    """(n, 2) by method: "PCA" and, where computed, "UMAP" or "t-SNE"."""
    explained: float
    """Share of the variance that the two principal components have."""
    part: str


def write_rollouts(path: Path, rollouts: Rollouts) -> None:
    """Write frame importance as Parquet: clip_id, pattern and importance (T floats), a row per clip and pattern."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        (clip, name, row)
        for name, table in rollouts.importance.items()
        for clip, row in zip(rollouts.clip_ids, table, strict=True)
    ]
    clips, names, values = zip(*rows, strict=True)
    table = pa.table(
        {"clip_id": list(clips), "pattern": list(names), "importance": pa.array(list(values), pa.list_(pa.float32()))}
    )
    _write(path, table, {"step": rollouts.step, "part": rollouts.part})


def read_rollouts(folder: Path) -> Rollouts | None:
    """Read the frame importance in a run's artifacts; None if the run was not explained."""
    table, about = _read(folder / FOLDER / ROLLOUT)
    if table is None:
        return None
    names = table["pattern"].to_pylist()
    clips, values = table["clip_id"].to_pylist(), table["importance"].to_pylist()
    importance = {
        name: np.array([row for row, other in zip(values, names, strict=True) if other == name], np.float32)
        for name in dict.fromkeys(names)
    }
    first = names[0]
    ids = tuple(clip for clip, name in zip(clips, names, strict=True) if name == first)
    return Rollouts(ids, importance, about["step"], about["part"])


def write_untrained(path: Path, untrained: Untrained | None) -> None:
    """Write the measures of untrained models as JSON; None removes those of an earlier call."""
    if untrained is None:
        path.unlink(missing_ok=True)
        return
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(asdict(untrained), indent=1))
    draft.replace(path)


def read_untrained(folder: Path) -> Untrained | None:
    """Read the measures of untrained models in a run's artifacts; None if there are none."""
    path = folder / FOLDER / UNTRAINED
    if not path.is_file():
        return None
    raw = json.loads(path.read_text())
    return Untrained(
        raw["clips"], *({name: tuple(values) for name, values in raw[key].items()} for key in ("late", "effective"))
    )


def write_embedding(path: Path, embedding: Embedding) -> None:
    """Write an embedding as Parquet: clip_id, true, and x and y of each method."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"clip_id": list(embedding.clip_ids), "true": list(embedding.true)}
    for method, points in embedding.points.items():
        columns |= {f"{method} x": points[:, 0], f"{method} y": points[:, 1]}
    _write(path, pa.table(columns), {"explained": embedding.explained, "part": embedding.part})


def read_embedding(folder: Path) -> Embedding | None:
    """Read the embedding in a run's artifacts; None if there is none."""
    table, about = _read(folder / FOLDER / EMBEDDING)
    if table is None:
        return None
    methods = [name.removesuffix(" x") for name in table.column_names if name.endswith(" x")]
    points = {name: np.column_stack([table[f"{name} {axis}"].to_numpy() for axis in "xy"]) for name in methods}
    ids, true = tuple(table["clip_id"].to_pylist()), tuple(table["true"].to_pylist())
    return Embedding(true, ids, points, about["explained"], about["part"])


def _write(path: Path, table: pa.Table, about: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    pq.write_table(table.replace_schema_metadata({"starlab": json.dumps(dict(about))}), draft)
    draft.replace(path)


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    if not path.is_file():
        return None, {}
    table = pq.read_table(path)
    return table, json.loads(table.schema.metadata[b"starlab"])
