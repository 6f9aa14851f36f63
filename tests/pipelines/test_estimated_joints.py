from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlab.pipelines import estimated_joints
from starlab.pipelines.clip import ClipSource, DataError, UnreadableClipError
from starlab.pipelines.estimated_joints import SCHEMA, EstimatedJoints, write_joints
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.skeletons import COCO, NTU, Skeleton


def estimate(num_frames: int, bodies: int = 1, joints: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 1, (num_frames, bodies, joints, 3)).astype(np.float32)


def every_clip(source: ClipSource, bodies: int = 1) -> list[tuple[str, np.ndarray]]:
    return [(row.clip_id, estimate(row.num_frames, bodies, seed=number)) for number, row in enumerate(source.clips)]


@pytest.fixture
def path(tmp_path: Path, small_source: PennActionSource) -> Path:
    write_joints(tmp_path / "joints.parquet", every_clip(small_source))
    return tmp_path / "joints.parquet"


def test_the_data_sets_frames_come_with_the_estimators_joints(path: Path, small_source: PennActionSource) -> None:
    source: ClipSource = EstimatedJoints(small_source, path, COCO)
    assert source.clips == small_source.clips
    assert (source.skeleton, source.max_bodies, source.classes) == (COCO, 1, small_source.classes)
    for number in (0, 17, 89):
        row = source.clips[number]
        clip = source.read(row, [5, 2, 5], 48)
        np.testing.assert_array_equal(clip.joints, estimate(row.num_frames, seed=number)[[5, 2, 5]])
        np.testing.assert_array_equal(clip.frames, small_source.read(row, [5, 2, 5], 48).frames)


def test_any_writer_will_do_that_keeps_to_the_columns(tmp_path: Path, small_source: PennActionSource) -> None:
    clips = every_clip(small_source)
    columns = {
        "joints": pa.array([joints.ravel().tolist() for _, joints in clips], pa.large_list(pa.float32())),
        "estimator": ["somebody's"] * len(clips),
        "clip_id": [clip_id for clip_id, _ in clips],
        "num_bodies": pa.array([1] * len(clips), pa.int32()),
        "num_frames": pa.array([len(joints) for _, joints in clips], pa.int32()),
    }
    pq.write_table(pa.table(columns), tmp_path / "j.parquet", row_group_size=8, compression="zstd")
    source = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO)
    row = source.clips[13]
    np.testing.assert_array_equal(source.read(row, [1], 48).joints, estimate(row.num_frames, seed=13)[[1]])


def test_the_source_travels_as_a_pickle(path: Path, small_source: PennActionSource) -> None:
    source = EstimatedJoints(small_source, path, COCO)
    same = pickle.loads(pickle.dumps(source))
    row = same.clips[3]
    np.testing.assert_array_equal(same.read(row, [0], 48).joints, source.read(row, [0], 48).joints)


@settings(max_examples=25)
@given(bodies=st.integers(0, 5), seed=st.integers(0, 99))
def test_the_best_seen_people_stay_in_their_order_and_missing_ones_are_absent(
    tmp_path_factory: pytest.TempPathFactory, small_source: PennActionSource, bodies: int, seed: int
) -> None:
    row = small_source.clips[0]
    joints = estimate(row.num_frames, bodies, seed=seed)
    joints[..., 2] *= np.random.default_rng(seed).uniform(0, 1, (1, bodies, 1))
    path = tmp_path_factory.mktemp("bodies") / "j.parquet"
    write_joints(path, [(row.clip_id, joints)])
    source = EstimatedJoints(small_source, path, COCO)
    source.max_bodies = 2  # as NTU
    read = source.read(row, range(row.num_frames), 48).joints
    best = sorted(np.argsort(-joints[..., 2].sum(axis=(0, 2)))[:2])
    assert read.shape == (row.num_frames, 2, 17, 3)
    np.testing.assert_array_equal(read[:, : len(best)], joints[:, best])
    assert not read[:, len(best) :].any()


def test_joints_that_are_nowhere_or_not_seen_are_zero(tmp_path: Path, small_source: PennActionSource) -> None:
    row = small_source.clips[0]
    joints = estimate(row.num_frames)
    joints[0, 0, 3, 0] = np.nan
    joints[1, 0, 4, 1] = np.inf
    joints[2, 0, 5, 2] = 0
    write_joints(tmp_path / "j.parquet", [(row.clip_id, joints)])
    read = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO).read(row, [0, 1, 2], 48).joints
    assert [read[0, 0, 3].tolist(), read[1, 0, 4].tolist(), read[2, 0, 5].tolist()] == [[0, 0, 0]] * 3
    assert (read[..., 2] > 0).sum() == 3 * 17 - 3


def test_a_clip_without_joints_or_of_another_length_is_skipped_with_a_reason(
    tmp_path: Path, small_source: PennActionSource
) -> None:
    clips = every_clip(small_source)[1:]
    clips[3] = (clips[3][0], clips[3][1][:-1])
    write_joints(tmp_path / "j.parquet", [*clips, ("a clip of another data set", estimate(5))])
    source = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO)
    reasons = {clip.clip_id: clip.reason for clip in source.skipped}
    lost, shorter = small_source.clips[0], small_source.clips[4]
    assert set(reasons) == {lost.clip_id, shorter.clip_id}
    assert "has no joints of it" in reasons[lost.clip_id]
    assert f"{shorter.num_frames - 1} frames, the clip has {shorter.num_frames}" in reasons[shorter.clip_id]
    assert len(source.clips) == len(small_source.clips) - 2


def test_other_joints_give_another_fingerprint(path: Path, tmp_path: Path, small_source: PennActionSource) -> None:
    clips = every_clip(small_source)
    clips[0][1][0, 0, 0, 0] += 0.001
    write_joints(tmp_path / "other.parquet", clips)
    one, other = (EstimatedJoints(small_source, file, COCO).fingerprint for file in (path, tmp_path / "other.parquet"))
    assert len({one, other, small_source.fingerprint}) == 3
    assert EstimatedJoints(small_source, path, COCO).fingerprint == one


def table(**changed: object) -> pa.Table:
    columns = {"clip_id": ["0001"], "num_frames": [1], "num_bodies": [1], "joints": [[0.5] * 51]} | changed
    fields = {field.name: field.type for field in SCHEMA}
    return pa.table({name: pa.array(value, fields[name]) for name, value in columns.items() if value is not None})


def test_a_file_of_another_form_is_an_error_that_names_it(
    tmp_path: Path, path: Path, small_source: PennActionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            EstimatedJoints(small_source, tmp_path / "j.parquet", COCO)

    refused(r"j\.parquet cannot be read: .*No such file")
    (tmp_path / "j.parquet").write_bytes(path.read_bytes()[:-50])
    refused(r"j\.parquet cannot be read")
    (tmp_path / "j.parquet").write_text("clip_id,joints\n")
    refused(r"j\.parquet cannot be read")
    pq.write_table(table(num_bodies=None), tmp_path / "j.parquet")
    refused("lack the column 'num_bodies'; they have clip_id, num_frames, joints")
    pq.write_table(table().set_column(0, "clip_id", pa.array([1])), tmp_path / "j.parquet")
    refused("column 'clip_id' .* must be string, is int64")
    pq.write_table(pa.concat_tables([table(), table()]), tmp_path / "j.parquet")
    refused("two rows for clip 0001")
    pq.write_table(table(clip_id=["nobody's"]), tmp_path / "j.parquet")
    refused("fit none of the 90 clips")
    monkeypatch.setattr(estimated_joints, "MAX_ROW_GROUP_BYTES", 100)
    pq.write_table(
        table(clip_id=["a", "b"], num_frames=[1, 1], num_bodies=[1, 1], joints=[[0.5] * 51] * 2), tmp_path / "j.parquet"
    )
    refused("row group 0 .* row_group_size=8")


def test_joints_that_do_not_fit_their_shape_make_the_clip_unreadable(
    tmp_path: Path, path: Path, small_source: PennActionSource
) -> None:
    row = small_source.clips[0]
    short = estimate(row.num_frames).ravel()[:-1].tolist()
    pq.write_table(table(clip_id=[row.clip_id], num_frames=[row.num_frames], joints=[short]), tmp_path / "j.parquet")
    source = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO)
    with pytest.raises(UnreadableClipError, match=f"clip {row.clip_id}: .* numbers are not {row.num_frames} × 1 × 17 × 3"):
        source.read(row, [0], 48)
    with pytest.raises(UnreadableClipError, match=f"clip {row.clip_id}: .* numbers are not"):
        source.encode(row, 48)
    (tmp_path / "j.parquet").unlink()
    with pytest.raises(UnreadableClipError, match="No such file"):
        EstimatedJoints._joints(source, row)


def refusal(source: ClipSource, path: Path, clips: list[tuple[str, np.ndarray]], skeleton: Skeleton = COCO) -> str:
    write_joints(path, clips)
    with pytest.raises(DataError) as caught:
        EstimatedJoints(source, path, skeleton)
    return str(caught.value)


def test_joints_in_pixels_are_refused_when_the_file_is_opened(tmp_path: Path, small_source: PennActionSource) -> None:
    clips = every_clip(small_source)
    clips[7][1][..., :2] *= (1280, 720)
    largest = clips[7][1].max(axis=(0, 1, 2))
    said = refusal(small_source, tmp_path / "j.parquet", clips)
    assert f"x reaches {largest[0]:.6g} and y {largest[1]:.6g} in clip {clips[7][0]}: pixels?" in said
    assert "divide x by its width and y by its height" in said


def test_a_few_joints_far_off_are_no_pixels_and_joints_that_are_not_seen_may_be_anywhere(
    tmp_path: Path, small_source: PennActionSource
) -> None:
    clips = every_clip(small_source)
    clips[0][1][:, :, :8, 0] = 5.0
    clips[1][1][...] = (700, 500, 0)
    write_joints(tmp_path / "j.parquet", clips)
    assert len(EstimatedJoints(small_source, tmp_path / "j.parquet", COCO).clips) == 90


def test_scores_above_one_are_named_when_the_file_is_opened_and_may_be_clamped(
    tmp_path: Path, small_source: PennActionSource
) -> None:
    clips = every_clip(small_source)
    clips[3][1][0, 0, 0, 2], clips[5][1][1, 0, 4, 2] = 1.37, -0.25
    said = refusal(small_source, tmp_path / "j.parquet", clips)
    assert f"confidences lie outside [0, 1], from -0.25 to 1.37, first in clip {clips[3][0]}" in said
    assert "data.clamp_confidence=true" in said
    source = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO, clamp=True)
    assert source.read(source.clips[3], [0], 48).joints[0, 0, 0, 2] == 1
    assert source.read(source.clips[5], [1], 48).joints[0, 0, 4].tolist() == [0, 0, 0]


def test_another_skeleton_is_named_when_the_file_is_opened(tmp_path: Path, small_source: PennActionSource) -> None:
    said = refusal(small_source, tmp_path / "j.parquet", every_clip(small_source), NTU)
    assert "has 17 joints, the skeleton ntu has 25: is data.estimated_skeleton right?" in said


def test_what_pandas_writes_is_read(tmp_path: Path, small_source: PennActionSource) -> None:
    """Large strings, int64, lists of float64."""
    clips = every_clip(small_source)
    columns = {
        "clip_id": pa.array([clip_id for clip_id, _ in clips], pa.large_string()),
        "num_frames": [len(joints) for _, joints in clips],
        "num_bodies": [1] * len(clips),
        "joints": pa.array([joints.ravel().tolist() for _, joints in clips], pa.list_(pa.float64())),
    }
    pq.write_table(pa.table(columns), tmp_path / "j.parquet", row_group_size=8)
    source = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO)
    np.testing.assert_array_equal(source.read(source.clips[13], [1], 48).joints, estimate(99, seed=13)[[1]])


def test_reading_a_clip_opens_no_other_row_group_and_the_footer_once(
    tmp_path: Path, small_source: PennActionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant time, counted: what is read for a clip does not depend on how many clips there are."""
    write_joints(tmp_path / "j.parquet", every_clip(small_source))
    source = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO)
    assert pq.read_metadata(tmp_path / "j.parquet").num_row_groups == 12
    groups, footers = [], []
    read, footer = pq.ParquetFile.read_row_group, pq.read_metadata
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i, **more: groups.append(i) or read(self, i, **more))
    monkeypatch.setattr(pq, "read_metadata", lambda path: footers.append(path) or footer(path))
    travelled = pickle.loads(pickle.dumps(source))
    for row in source.clips[::10]:
        travelled.read(row, [0], 48)
    assert groups == [place // 8 for place in range(0, 90, 10)]
    assert len(footers) == 1
    assert len(pickle.dumps(source)) - len(pickle.dumps(small_source)) < 90 * 8 + 2000


def test_a_file_that_changes_while_it_is_in_use_ends_the_run(path: Path, small_source: PennActionSource) -> None:
    source = EstimatedJoints(small_source, path, COCO)
    write_joints(path, [*every_clip(small_source)[::-1], ("more", estimate(3))])
    with pytest.raises(DataError, match="changed while they were in use"):
        source.read(source.clips[0], [0], 48)


def test_joints_of_another_shape_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be \(frames, bodies, joints, 3\)"):
        write_joints(tmp_path / "j.parquet", [("0001", np.zeros((5, 17, 3), np.float32))])
