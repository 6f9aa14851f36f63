"""What was recognised in a video: windows with probabilities, the most likely actions, and a timeline.

Letters: C classes.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WindowPrediction:
    """The probabilities of one window, for one person or for all."""

    person: int | None
    """Number of the body among those of the joints, from 0; None where all people were one clip."""
    start_seconds: float
    end_seconds: float
    probabilities: NDArray[np.float64]
    """(C,)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a video in which one action is the most likely one."""

    person: int | None
    start_seconds: float
    end_seconds: float
    action: str
    probability: float
    """Mean over the segment, weighted by time."""


@dataclass(frozen=True, slots=True)
class VideoPrediction:
    """All windows of one video."""

    video: str
    frames: int
    seconds: float
    classes: tuple[str, ...]
    calibrated: bool
    """Whether a temperature was applied to the probabilities."""
    windows: tuple[WindowPrediction, ...]

    @property
    def people(self) -> list[int | None]:
        """Everyone that was recognised, in the order of the bodies."""
        return sorted({window.person for window in self.windows}, key=lambda person: -1 if person is None else person)

    def top(self, count: int, person: int | None = None) -> list[tuple[str, float]]:
        """Return the most likely actions of the whole video with their mean probabilities, highest first."""
        own = [window.probabilities for window in self.windows if window.person == person]
        if not own:
            return []
        mean = np.mean(own, axis=0)
        return [(self.classes[index], float(mean[index])) for index in np.argsort(-mean, kind="stable")[:count]]

    def timeline(self) -> list[Segment]:
        """Cut the video where the most likely action changes. Where windows overlap, their probabilities are averaged.

        Segments are sorted by person, then by time.
        """
        return [segment for person in self.people for segment in self._segments(person)]

    def _segments(self, person: int | None) -> list[Segment]:
        waiting = deque(sorted((w for w in self.windows if w.person == person), key=lambda window: window.start_seconds))
        edges = sorted({edge for window in waiting for edge in (window.start_seconds, window.end_seconds)})
        if len(edges) == 1:  # a single frame
            edges *= 2
        covering: list[WindowPrediction] = []
        found: list[Segment] = []
        for start, end in itertools.pairwise(edges):
            while waiting and waiting[0].start_seconds <= start:
                covering.append(waiting.popleft())
            covering = [window for window in covering if window.end_seconds >= end]
            if not covering:
                continue
            mean = np.mean([window.probabilities for window in covering], axis=0)
            best = int(mean.argmax())
            piece = Segment(person, start, end, self.classes[best], float(mean[best]))
            if found and found[-1].action == piece.action and found[-1].end_seconds == start:
                piece = _joined(found.pop(), piece)
            found.append(piece)
        return found

    def to_json(self) -> str:
        """Return all windows as JSON text; `prediction_from_json` reads it back."""
        windows = [(w.person, w.start_seconds, w.end_seconds, w.probabilities.tolist()) for w in self.windows]
        return json.dumps([self.video, self.frames, self.seconds, self.classes, self.calibrated, windows])

    def to_dict(self, top: int = 5) -> dict[str, Any]:
        """Return everything in plain JSON types; times are in seconds, probabilities in [0, 1]."""
        return {
            "video": self.video,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "calibrated": self.calibrated,
            "people": [
                {
                    "person": person,
                    "top": [{"action": name, "probability": round(value, 6)} for name, value in self.top(top, person)],
                    "timeline": [
                        {
                            "start_seconds": round(segment.start_seconds, 3),
                            "end_seconds": round(segment.end_seconds, 3),
                            "action": segment.action,
                            "probability": round(segment.probability, 6),
                        }
                        for segment in self._segments(person)
                    ],
                }
                for person in self.people
            ],
        }


def prediction_from_json(text: str) -> VideoPrediction:
    """Read what `VideoPrediction.to_json` returned."""
    video, frames, seconds, classes, calibrated, windows = json.loads(text)
    found = tuple(WindowPrediction(person, start, end, np.asarray(values)) for person, start, end, values in windows)
    return VideoPrediction(video, frames, seconds, tuple(classes), calibrated, found)


def write_windows(path: Path, predictions: Iterable[VideoPrediction]) -> int:
    """Write one row per window to a Parquet file and return the number of rows.

    The columns are video, person (null where all people were one clip), start_seconds, end_seconds, predicted, probability
    (of the predicted action) and probabilities (of all classes, whose names are the struct's fields).
    """
    rows: list[dict[str, Any]] = []
    names: tuple[str, ...] = ()
    for prediction in predictions:
        names = prediction.classes
        for window in prediction.windows:
            best = int(window.probabilities.argmax())
            rows.append(
                {
                    "video": prediction.video,
                    "person": window.person,
                    "start_seconds": window.start_seconds,
                    "end_seconds": window.end_seconds,
                    "predicted": names[best],
                    "probability": float(window.probabilities[best]),
                    "probabilities": dict(zip(names, window.probabilities.tolist(), strict=True)),
                }
            )
    schema = pa.schema(
        [
            ("video", pa.string()),
            ("person", pa.int32()),
            ("start_seconds", pa.float64()),
            ("end_seconds", pa.float64()),
            ("predicted", pa.string()),
            ("probability", pa.float64()),
            ("probabilities", pa.struct([(name, pa.float64()) for name in names or ("none",)])),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), draft)
    draft.replace(path)
    return len(rows)


def _joined(one: Segment, other: Segment) -> Segment:
    before, after = one.end_seconds - one.start_seconds, other.end_seconds - other.start_seconds
    share = before / (before + after) if before + after else 0.5
    probability = share * one.probability + (1 - share) * other.probability
    return Segment(one.person, one.start_seconds, other.end_seconds, one.action, probability)
