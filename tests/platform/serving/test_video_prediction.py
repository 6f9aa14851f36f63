"""The timeline and the most likely actions that come of overlapping windows, and the file of windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from starlab.platform.serving.video_prediction import VideoPrediction, WindowPrediction, prediction_from_json, write_windows

CLASSES = ("sit", "stand", "wave")


def window(start: float, end: float, *values: float, person: int | None = None) -> WindowPrediction:
    return WindowPrediction(person, start, end, np.array(values))


def prediction(*windows: WindowPrediction) -> VideoPrediction:
    return VideoPrediction("film.mp4", 40, 4.0, CLASSES, True, windows)


def test_the_timeline_changes_where_the_mean_of_the_windows_does() -> None:
    found = prediction(
        window(0, 2, 0.9, 0.1, 0.0), window(1, 3, 0.6, 0.4, 0.0), window(2, 4, 0.0, 1.0, 0.0), window(3, 5, 0.0, 1.0, 0.0)
    ).timeline()
    assert [(piece.start_seconds, piece.end_seconds, piece.action) for piece in found] == [(0, 2, "sit"), (2, 5, "stand")]
    assert found[0].probability == pytest.approx((0.9 + 0.75) / 2)
    assert found[1].probability == pytest.approx((0.7 + 1 + 1) / 3)


def test_people_have_timelines_of_their_own_and_a_gap_where_they_are_not_seen() -> None:
    found = prediction(
        window(0, 1, 1, 0, 0, person=0), window(3, 4, 1, 0, 0, person=0), window(0, 4, 0, 0, 1, person=1)
    ).timeline()
    assert [(piece.person, piece.start_seconds, piece.end_seconds) for piece in found] == [(0, 0, 1), (0, 3, 4), (1, 0, 4)]


def test_the_top_actions_are_the_mean_over_the_video() -> None:
    found = prediction(window(0, 1, 0.2, 0.8, 0.0), window(1, 2, 0.2, 0.2, 0.6)).top(2)
    assert [name for name, _ in found] == ["stand", "wave"]
    assert [value for _, value in found] == pytest.approx([0.5, 0.3])


def test_a_single_frame_has_a_timeline() -> None:
    [piece] = prediction(window(0, 0, 0.2, 0.8, 0.0)).timeline()
    assert (piece.start_seconds, piece.end_seconds, piece.action, piece.probability) == (0, 0, "stand", 0.8)


def test_a_prediction_survives_json_and_its_windows_parquet(tmp_path: Path) -> None:
    whole = prediction(window(0, 1, 0.2, 0.8, 0.0, person=1), window(1, 2.5, 0.2, 0.2, 0.6, person=None))
    back = prediction_from_json(whole.to_json())
    assert back.to_dict() == whole.to_dict()
    assert json.loads(json.dumps(whole.to_dict(1)))["people"][0]["top"] == [{"action": "wave", "probability": 0.6}]
    assert write_windows(tmp_path / "new" / "w.parquet", [whole]) == 2
    rows = pq.read_table(tmp_path / "new" / "w.parquet").to_pylist()
    assert rows[0]["predicted"] == "stand"
    assert rows[0]["person"] == 1
    assert rows[1]["person"] is None
    assert rows[1]["probabilities"] == {"sit": 0.2, "stand": 0.2, "wave": 0.6}
