"""Decoded clips on a node's own disk: equal bytes, less work, and no harm from damage, a full disk or other processes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from starlab.pipelines import decoded_cache
from starlab.pipelines.clip import ClipRow, ClipSource, DecodedClip
from starlab.pipelines.generated.penn_action import SyntheticConfig
from starlab.pipelines.loading import Columns, LoadClips
from starlab.pipelines.schedule import EvalPlan, Plan, Schedule, TrainPlan
from starlab.pipelines.sources import DataConfig, open_source

TINY = {"train_clips_per_class": 2, "test_clips_per_class": 1, "size_px": 32}


class CountingSource:
    """A source that counts its reads."""

    def __init__(self, source: ClipSource) -> None:
        self.source, self.reads = source, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        self.reads += 1
        return self.source.read(row, frame_indices, min_side_px)


def config(cache: Path | None, augment: Literal["none", "standard"] = "none") -> DataConfig:
    place = None if cache is None else str(cache)
    return DataConfig(
        dataset="synthetic_penn_action", frames=4, size=24, augment=augment, cache=place, synthetic=SyntheticConfig(**TINY)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return open_source(config(None), tmp_path_factory.mktemp("runs"))


def load(source: Any, config: DataConfig, plan: Plan, rows: int = 6) -> Columns:
    return LoadClips(source, config, plan, 0)({"id": np.arange(rows)})


def train_plan() -> TrainPlan:
    return TrainPlan(Schedule(0, 4), tuple(range(4)), global_batch=2, rank=0, world=1, first_step=0)


def equal(mine: Columns, theirs: Columns) -> bool:
    return all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def test_clips_from_the_cache_have_equal_bytes_and_are_not_decoded_again(source: ClipSource, tmp_path: Path) -> None:
    for plan in (train_plan(), EvalPlan((0, 1, 2), 0, 1)):
        counting = CountingSource(source)
        expected = load(source, config(None), plan, 3)
        assert equal(load(counting, config(tmp_path), plan, 3), expected)
        assert counting.reads == 3
        assert equal(load(counting, config(tmp_path), plan, 3), expected)
        assert counting.reads == 3


def test_augmented_training_clips_are_never_cached_and_their_evaluation_is(source: ClipSource, tmp_path: Path) -> None:
    counting, augmented = CountingSource(source), config(tmp_path, "standard")
    for _ in range(2):
        load(counting, augmented, train_plan(), 3)
    assert (counting.reads, list(tmp_path.rglob("*of*"))) == (6, [])
    for _ in range(2):
        load(counting, augmented, EvalPlan((0, 1, 2), 0, 1), 3)
    assert counting.reads == 9


@pytest.mark.parametrize(
    "change",
    [{"frames": 2}, {"size": 16}, {"fingerprint": "other"}, {"test_crop": 0.5}, {"person_crop": 0.25}],
    ids=str,
)
def test_another_decoding_or_other_data_have_a_cache_of_their_own(
    change: dict[str, Any], source: ClipSource, tmp_path: Path
) -> None:
    counting = CountingSource(source)
    fields = {key: value for key, value in change.items() if key != "fingerprint"}
    other = dataclasses.replace(config(tmp_path), **fields)
    mine = decoded_cache.DecodedCache.of(counting, config(tmp_path), None)  # type: ignore[arg-type]
    counting.fingerprint = change.get("fingerprint", source.fingerprint)
    assert mine != decoded_cache.DecodedCache.of(counting, other, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_decoded_again_and_replaced(damage: str, source: ClipSource, tmp_path: Path) -> None:
    counting, plan = CountingSource(source), EvalPlan((0,), 0, 1)
    expected = load(counting, config(tmp_path), plan, 1)
    [path] = tmp_path.rglob("*of*")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes({"cut": content[:-5], "changed": content, "empty": b""}[damage])
    assert equal(load(counting, config(tmp_path), plan, 1), expected)
    assert equal(load(counting, config(tmp_path), plan, 1), expected)
    assert counting.reads == 2


def test_without_room_or_rights_clips_are_decoded_as_without_a_cache(
    source: ClipSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, plan = load(source, config(None), EvalPlan((0,), 0, 1), 1), EvalPlan((0,), 0, 1)
    (tmp_path / "file").write_text("no folder")
    assert equal(load(source, config(tmp_path / "file"), plan, 1), expected)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda _: usage._replace(free=usage.total // 20))
    assert equal(load(source, config(tmp_path / "full"), plan, 1), expected)
    assert list((tmp_path / "full").rglob("*of*")) == []
    assert list(tmp_path.rglob("*.partial")) == []
