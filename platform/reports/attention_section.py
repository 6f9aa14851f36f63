"""Sections about what a model looks at: rollout per frame (Fig. 6), joints within one clip, and the embedding (Fig. 1)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

import numpy as np

from starlab.platform.reports.attention import MODEL, Estimate, Focus, focus, verdict
from starlab.platform.reports.charts import Place, Words, scale_of, scatter_box, scatter_chart
from starlab.platform.reports.explain_files import (
    CLIP,
    FOLDER,
    FRAMES,
    ClipMap,
    Embedding,
    read_embedding,
    read_rollouts,
    read_untrained,
)
from starlab.platform.reports.intervals import Interval, columns_chart
from starlab.platform.reports.matrix import matrix_chart
from starlab.platform.reports.page import NamedTable, Picture, Section
from starlab.platform.reports.report_runs import ReportRun
from starlab.platform.reports.svg import Cell, Chart, Number, Table, percent, short_number
from starlab.platform.reports.untrained import Untrained, range_of
from starlab.platform.runs.folder import RunFolder

_MOST_ROWS = 8
_MOST_NAMED = 18
_MOST_POINTS = 400
"""Points of an embedding that are drawn. More would hide each other and make the page large."""


def attention_section(rows: Mapping[str, Sequence[ReportRun]]) -> list[Section]:
    """Draw the rollout of the first explained run of each row, and the frames and joints of a clip of the first of them."""
    title = "What the attention looks at"
    explained = {row: run for row, members in rows.items() for run in reversed(members) if read_rollouts(run.folder.artifacts)}
    if not explained:
        return [Section(title, absent="no run was explained; starlab explain RUN measures it.")]
    charts, body = [], []
    for row, run in list(explained.items())[:_MOST_ROWS]:
        untrained = read_untrained(run.folder.artifacts)
        for found in focuses(run.folder):
            name = _name(found.pattern, row if len(rows) > 1 else "")
            charts.append(frames_chart(name, found))
            body.append(_focus_row(name, found, untrained))
    lead = (
        "Attention rollout, averaged over clips, as in Figure 6 of the paper. The paper says that F looks at the last frames, "
        "and that Z and B look at all frames. Bars have 95 % bootstrap intervals over clips. F, Z or B follows the attentions "
        "of this pattern alone; the model follows all of them. "
        "Untrained models of the same wiring are the control: what they have too was not learned. Their brackets hold one more "
        "untrained model in 95 of 100 cases."
    )
    heads = (
        "attention",
        "clips",
        "in the last quarter",
        "untrained",
        "effective frames",
        "untrained",
        "top three all late",
        "the paper's claim",
    )
    tables = [NamedTable("Where the importance is", Table(heads, tuple(body)))]
    first = next(iter(explained.values()))
    found_clip = read_clip(first.folder)
    pictures: list[Picture] = []
    if found_clip:
        charts += [clip_chart(found_clip), joints_chart(found_clip)] if found_clip.joints else [clip_chart(found_clip)]
        pictures = _pictures(first.folder, found_clip)
    return [Section(title, lead, charts, tables, pictures)]


def embedding_section(runs: Sequence[ReportRun]) -> Section:
    """Draw the embedding of the first run that has one."""
    for run in runs:
        found = read_embedding(run.folder.artifacts)
        if found:
            lead = (
                f"The averaged class token of each {found.part} clip of {run.name}, as in Figure 1 of the paper. The two "
                f"principal components have {percent(found.explained)} of the variance."
            )
            return Section("Embedding", lead, [embedding_chart(found, method) for method in found.points])
    return Section("Embedding", absent="no run has one; starlab explain RUN --embedding makes it.")


def focuses(folder: RunFolder) -> list[Focus]:
    """Summarize the rollouts of a run, by pattern. Empty if it was not explained."""
    found = read_rollouts(folder.artifacts)
    return [focus(pattern, importance) for pattern, importance in found.importance.items()] if found else []


def read_clip(folder: RunFolder) -> ClipMap | None:
    """Read the clip that `starlab explain` drew; None if there is none."""
    path = folder.artifacts / FOLDER / CLIP
    if not path.is_file():
        return None
    raw = json.loads(path.read_text())
    return ClipMap(**raw | {"joints": tuple(raw["joints"])})


def frames_chart(name: str, found: Focus) -> Chart:
    """Draw the mean importance of each frame with its interval."""
    frames = [Interval(f"frame {number}", one.mean, one.low, one.high) for number, one in enumerate(found.frames, 1)]
    words = Words(
        f"Frame importance, {name}",
        f"Mean over {found.clips} clips; the dashed line is 1/{len(frames)}, as if all mattered alike. {verdict(found)[1]}",
        "frame",
        "importance",
    )
    return columns_chart(words, [str(number) for number in range(1, len(frames) + 1)], frames, level=1 / len(frames))


def clip_chart(clip: ClipMap) -> Chart:
    """Draw the frame importance within one clip, by pattern."""
    names = tuple(clip.frames)
    frames = len(clip.frames[names[0]])
    most = max(max(values) for values in clip.frames.values())
    cells = [[(value / most, percent(value)) for value in clip.frames[name]] for name in names]
    words = Words(
        f"Frame importance within {clip.clip_id}",
        f"One clip ({clip.true}): importance of each frame, strongest where it is largest ({percent(most)}).",
        "frame",
        "attention",
    )
    return matrix_chart(words, [_name(name) for name in names], [str(number) for number in range(1, frames + 1)], cells)


def joints_chart(clip: ClipMap) -> Chart:
    """Draw the importance of each joint in each frame of one clip."""
    values = np.array(clip.joint_importance)
    most = float(values.max()) or 1.0
    cells = [[(float(value) / most, percent(float(value))) for value in row] for row in values]
    words = Words(
        f"Joints of {clip.clip_id} over frames",
        f"Importance of the joint tokens, through all attentions. They have {percent(float(values.sum()))} together, the "
        f"tokens of the picture {percent(clip.grid_share)} and the class tokens themselves {percent(clip.class_share)}.",
        "frame",
        "joint",
    )
    return matrix_chart(words, clip.joints, [str(number) for number in range(1, values.shape[1] + 1)], cells)


def embedding_chart(found: Embedding, method: str) -> Chart:
    """Draw the clips in two dimensions, a colour and a shape per class."""
    left, top, right, bottom = scatter_box()
    points, classes = found.points[method], tuple(sorted(set(found.true)))
    shown = range(len(points))
    if len(points) > _MOST_POINTS:
        shown = np.linspace(0, len(points) - 1, _MOST_POINTS).astype(int)  # type: ignore[assignment]
    numbers = {name: number for number, name in enumerate(classes)}
    places = [
        Place(float(points[i, 0]), float(points[i, 1]), f"{found.true[i]}: {found.clip_ids[i]}", numbers[found.true[i]])
        for i in shown
    ]
    true = np.array(found.true)
    middles = {name: np.median(points[true == name], axis=0) for name in classes}
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name, Number(str((true == name).sum()), float((true == name).sum())), *(_number(value) for value in middles[name]))
        for name in classes
    )
    cut = f" {_MOST_POINTS} of {len(points)} clips are drawn." if len(points) > _MOST_POINTS else ""
    words = Words(
        f"Embedding by {method}",
        f"{len(points)} clips of {len(classes)} classes; colour and shape are the true class.{cut}",
        f"{method}, first axis",
        "second axis",
    )
    xs, ys = (list(map(float, points[:, axis])) for axis in (0, 1))
    table = Table(("class", "clips", "median x", "median y"), rows)
    named = classes if len(classes) <= _MOST_NAMED else ()
    return scatter_chart(words, places, scale_of(xs, left, right), scale_of(ys, bottom, top), table, names=named)


def _pictures(folder: RunFolder, clip: ClipMap) -> list[Picture]:
    path = folder.artifacts / FOLDER / FRAMES
    if not path.is_file():
        return []
    address = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
    frames = len(next(iter(clip.frames.values())))
    description = (
        f"{clip.clip_id} ({clip.true}): the {frames} frames with their joints, in order from left to right, then down. Below "
        "each frame, the picture again with the importance of its places: bright is important."
    )
    return [Picture(f"The clip {clip.clip_id}", description, address)]


def _focus_row(name: str, found: Focus, untrained: Untrained | None) -> tuple[Cell, ...]:
    state, _ = verdict(found)
    late = _estimate(range_of(untrained.late[found.pattern]), 100, " %") if untrained else "not measured"
    effective = _estimate(range_of(untrained.effective[found.pattern]), 1, "") if untrained else "not measured"
    return (
        name,
        Number(str(found.clips), found.clips),
        _estimate(found.last_quarter, 100, " %"),
        late,
        _estimate(found.effective_frames, 1, f" of {len(found.frames)}"),
        effective,
        _estimate(found.top3_late, 100, " %"),
        state,
    )


def _estimate(found: Estimate, factor: float, unit: str) -> Number:
    mean, low, high = (f"{factor * value:.1f}" for value in (found.mean, found.low, found.high))
    return Number(f"{mean}{unit} [{low}, {high}]", found.mean)


def _name(pattern: str, row: str = "") -> str:
    name = "whole model" if pattern == MODEL else pattern
    return f"{row}, {name}" if row else name


def _number(value: float) -> Number:
    return Number(short_number(float(value)), float(value))
