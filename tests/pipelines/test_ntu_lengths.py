"""A video and its skeleton may differ by two frames: the frames that both have are used, in the folder and in a store alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from starlab.pipelines.clip import UnreadableClipError
from starlab.pipelines.datasets import open_authors_files
from starlab.pipelines.prepare import StoreLayout, prepare, verify
from starlab.platform.data_commands import data

CLIP = "S001C002P001R001A951"


@pytest.fixture
def folder(ntu_folder: Path, tmp_path: Path) -> Path:
    root = tmp_path / "ntu"
    root.mkdir()
    for clip_id in (CLIP, "S001C001P001R001A901", "S002C001P002R001A953"):
        shutil.copy(ntu_folder / "nturgb+d_rgb" / f"{clip_id}_rgb.avi", root)
        shutil.copy(ntu_folder / "nturgb+d_skeletons" / f"{clip_id}.skeleton", root)
    return root


def resize_skeleton(root: Path, frames: int) -> None:
    """Append frames without a body, or drop the last ones."""
    path = root / f"{CLIP}.skeleton"
    head, *lines = path.read_bytes().split(b"\r\n")
    if frames > 0:
        lines[-1:-1] = [b"0"] * frames
    for _ in range(-frames):
        while len(lines[-2].split()) != 1 or lines[-2] == b"25":
            lines.pop(-2)
        lines.pop(-2)
    path.write_bytes(b"\r\n".join([b"%d" % (int(head) + frames), *lines]))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("frames", [-2, -1, 1, 2])
def test_the_frames_that_both_have_are_read_prepared_counted_and_listed(folder: Path, tmp_path: Path, frames: int) -> None:
    before = open_authors_files("synthetic_ntu", folder)
    [row] = [row for row in before.clips if row.clip_id == CLIP]
    whole = before.read(row, range(row.num_frames), 48)
    resize_skeleton(folder, frames)

    raw = open_authors_files("synthetic_ntu", folder)
    [now] = [row for row in raw.clips if row.clip_id == CLIP]
    assert now.num_frames == row.num_frames + min(frames, 0)
    read = raw.read(now, range(now.num_frames), 48)
    np.testing.assert_array_equal(read.frames, whole.frames[: now.num_frames])
    if frames > 0:  # ghosts and the order of tracks depend on the whole skeleton
        np.testing.assert_array_equal(read.joints, whole.joints[: now.num_frames])

    store = prepare(raw, "synthetic_ntu", tmp_path / "store", StoreLayout(clips_per_shard=2))
    assert store.clips == raw.clips
    assert store.fingerprint == raw.fingerprint
    note = f"video of {row.num_frames} frames, skeleton of {row.num_frames + frames}"
    assert dict(store.notes) == {CLIP: note}
    verified, problems = verify(tmp_path / "store", decode=True)
    assert (problems, dict(verified.notes)) == ([], {CLIP: note})
    said = CliRunner().invoke(data, ["stats", str(tmp_path / "store")]).output
    assert "lengths    1 clips use the frames that their video and their skeleton both have" in said
    assert f"{CLIP}: {note}" in said


@pytest.mark.parametrize("frames", [-3, 3])
def test_a_larger_difference_is_an_error_of_that_clip(folder: Path, frames: int) -> None:
    resize_skeleton(folder, frames)
    source = open_authors_files("synthetic_ntu", folder)
    [row] = [row for row in source.clips if row.clip_id == CLIP]
    for read in (lambda: source.read(row, [0], 48), lambda: source.encode(row, 48)):
        with pytest.raises(UnreadableClipError, match=r"_rgb\.avi: it ends after \d+ frames, \d+ to \d+ expected"):
            read()


def test_a_video_that_lost_its_last_frames_is_damaged_and_not_a_shorter_one(folder: Path) -> None:
    path = folder / f"{CLIP}_rgb.avi"
    whole = path.read_bytes()
    for lost in (1, 16, 400, 1500, 3000):
        path.write_bytes(whole[:-lost])
        source = open_authors_files("synthetic_ntu", folder)
        [row] = [row for row in source.clips if row.clip_id == CLIP]
        with pytest.raises(UnreadableClipError, match="cut short"):
            source.read(row, [0], 48)


def test_a_dropped_slot_in_a_video_is_not_counted_as_a_frame(folder: Path, with_empty_slots) -> None:
    path = folder / f"{CLIP}_rgb.avi"
    before = open_authors_files("synthetic_ntu", folder)
    [row] = [row for row in before.clips if row.clip_id == CLIP]
    wanted = before.read(row, range(row.num_frames), 48)
    path.write_bytes(with_empty_slots(path.read_bytes(), {2, 30}))
    source = open_authors_files("synthetic_ntu", folder)
    [same] = [row for row in source.clips if row.clip_id == CLIP]
    assert same == row
    np.testing.assert_array_equal(source.read(same, range(row.num_frames), 48).frames, wanted.frames)
