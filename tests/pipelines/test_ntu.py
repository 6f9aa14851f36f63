"""The NTU reader, on a generated folder in the authors' formats (their files may not be passed on)."""

from __future__ import annotations

import pickle
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from starlab.pipelines.clip import ClipSource, DataError, UnreadableClipError
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES
from starlab.pipelines.ntu import MISSING_LISTS, NtuSource
from starlab.pipelines.ntu_names import NTU60_CLASSES, NTU120_SETUPS, Protocol, parse_name
from starlab.pipelines.ntu_skeletons import drop_ghosts, pack_tracks, parse_skeleton
from starlab.pipelines.video import decode_video


def opened(root: Path, protocol: Protocol = "xsub", missing_skeletons: Path | None = None) -> NtuSource:
    return NtuSource(root, protocol, SYNTHETIC_NTU_CLASSES, NTU120_SETUPS, missing_skeletons)


@pytest.fixture(scope="module")
def source(ntu_folder: Path) -> NtuSource:
    return opened(ntu_folder)


@pytest.fixture
def copy(ntu_folder: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(ntu_folder, tmp_path / "copy"))


def paths(root: Path, clip_id: str) -> tuple[Path, Path]:
    return root / "nturgb+d_rgb" / f"{clip_id}_rgb.avi", root / "nturgb+d_skeletons" / f"{clip_id}.skeleton"


def test_the_index_holds_a_row_per_clip_sorted_with_class_split_subject_and_length(source: NtuSource) -> None:
    same: ClipSource = source
    assert len(same.clips) == 36
    assert [row.clip_id for row in source.clips] == sorted(row.clip_id for row in source.clips)
    for row in source.clips:
        name = parse_name(row.clip_id)
        assert source.classes[row.label].startswith(f"A{name.action}")
        assert row.split == name.split("xsub")
        assert row.subject == f"P{name.performer:03d}"
        skeleton = parse_skeleton(source.paths(row)[1].read_bytes())
        assert row.num_frames == skeleton.num_frames == len(list(decode_video(source.paths(row)[0], row.num_frames, 32)))
    assert (source.max_bodies, len(source.skeleton.joints)) == (2, 25)


@pytest.mark.parametrize(("protocol", "train"), [("xsub", 24), ("xview", 18), ("xset", 12)])
def test_the_protocol_decides_the_split_of_the_generated_clips(ntu_folder: Path, protocol: Protocol, train: int) -> None:
    rows = opened(ntu_folder, protocol).clips
    assert sum(row.split == "train" for row in rows) == train
    assert [row.split for row in rows] == [parse_name(row.clip_id).split(protocol) for row in rows]


def test_frames_come_in_the_order_asked_for_with_their_own_joints(source: NtuSource) -> None:
    row = source.clips[4]
    video, skeleton = source.paths(row)
    every = [frame for _, frame in decode_video(video, row.num_frames, 256)]
    joints, _ = pack_tracks(parse_skeleton(skeleton.read_bytes()), 2)
    wanted = [20, 3, 3, row.num_frames - 1, 0]
    clip = source.read(row, wanted, min_side_px=32)
    np.testing.assert_array_equal(clip.frames, [every[index] for index in wanted])
    np.testing.assert_array_equal(clip.joints, joints[wanted])
    assert clip.joints.shape == (5, 2, 25, 3)


def test_joints_lie_on_the_person_in_the_picture(source: NtuSource) -> None:
    """Skin at the head, in a picture whose wall and clothes are grey: red is well above blue there and nowhere else."""
    hits = []
    for row in source.clips[::3]:
        clip = source.read(row, range(0, row.num_frames, 5), 90)
        for frame, joints in zip(clip.frames, clip.joints, strict=True):
            warmth = cv2.blur(frame[..., 0].astype(np.float32) - frame[..., 2], (3, 3))
            for x, y, confidence in joints[:, 3]:
                if confidence == 1:
                    at = warmth[int(y * frame.shape[0]), int(x * frame.shape[1])]
                    hits.append(at > np.median(warmth) + 8)
    assert len(hits) > 60
    assert np.mean(hits) > 0.95


def test_two_person_classes_have_two_bodies_and_the_others_one(source: NtuSource) -> None:
    for row in source.clips:
        joints = source.read(row, range(row.num_frames), 90).joints
        assert joints[..., 2].any(axis=(0, 2)).tolist() == [True, parse_name(row.clip_id).action >= 950]


def test_frames_in_which_nobody_is_found_stay_where_they_are(source: NtuSource) -> None:
    gaps = 0
    for row in source.clips:
        counts = [0] * row.num_frames
        skeleton = parse_skeleton(source.paths(row)[1].read_bytes())
        for body in drop_ghosts(skeleton.bodies):  # the sensor still sees a chair where it lost the person
            for frame in body.frames:
                counts[frame] += 1
        seen = source.read(row, range(row.num_frames), 90).joints[..., 2].any(axis=(1, 2))
        assert seen.tolist() == [count > 0 for count in counts]
        gaps += not seen.all()
    assert gaps >= 3


def test_a_whole_clip_is_encoded_frame_by_frame_within_jpegs_error(source: NtuSource) -> None:
    row = source.clips[0]
    encoded = source.encode(row, short_side_px=90)
    assert len(encoded.jpegs) == row.num_frames
    assert encoded.joints.shape == (row.num_frames, 2, 25, 3)
    assert encoded.joints_3d is not None
    assert encoded.joints_3d.shape == (row.num_frames, 2, 25, 3)
    raw = source.read(row, range(row.num_frames), min_side_px=90)
    np.testing.assert_array_equal(encoded.joints, raw.joints)
    for jpeg, frame in zip(encoded.jpegs, raw.frames, strict=True):
        error = simplejpeg.decode_jpeg(jpeg).astype(float) - frame
        assert 10 * np.log10(255**2 / (error**2).mean()) > 35
    assert simplejpeg.decode_jpeg_header(source.encode(row, short_side_px=45).jpegs[3])[:2] == (45, 80)


def test_space_and_picture_agree_as_they_do_in_real_files(source: NtuSource) -> None:
    """colorX = 1050 x / z + 976, colorY = 550 − 1060 y / z."""
    encoded = source.encode(source.clips[0], 64)
    assert encoded.joints_3d is not None
    seen = encoded.joints[..., 2] > 0
    places, fractions = encoded.joints_3d[seen].astype(float), encoded.joints[seen].astype(float)
    np.testing.assert_allclose(fractions[:, 0] * 1920, 1050 * places[:, 0] / places[:, 2] + 976, atol=0.05)
    np.testing.assert_allclose(fractions[:, 1] * 1080, 550 - 1060 * places[:, 1] / places[:, 2], atol=0.05)
    assert (places[:, 2] > 1.2).all()
    assert (places[:, 2] < 6).all()


def test_the_source_travels_as_a_small_pickle_and_reads_the_same(source: NtuSource) -> None:
    data = pickle.dumps(source)
    assert len(data) < 5000
    same = pickle.loads(data)
    row = same.clips[7]
    np.testing.assert_array_equal(same.read(row, [5], 90).frames[0], source.read(row, [5], 90).frames[0])


def test_a_clip_on_the_authors_list_is_left_out_by_name(source: NtuSource, ntu_folder: Path) -> None:
    [skipped] = source.skipped
    assert skipped.clip_id == "S001C001P001R002A901"
    assert MISSING_LISTS[1] in skipped.reason
    assert skipped.clip_id in (ntu_folder / MISSING_LISTS[1]).read_text()


def test_without_a_list_a_missing_skeleton_is_found_when_the_clip_is_read(copy: Path) -> None:
    (copy / MISSING_LISTS[1]).unlink()
    source = opened(copy)
    [row] = [row for row in source.clips if row.clip_id == "S001C001P001R002A901"]
    assert source.skipped == ()
    for read in (lambda: source.read(row, [0], 90), lambda: source.encode(row, 90)):
        with pytest.raises(UnreadableClipError, match=r"S001C001P001R002A901\.skeleton: nobody is seen .* missing skeleton"):
            read()


def test_a_list_of_ones_own_is_used_instead_and_must_hold_a_name(copy: Path, tmp_path: Path) -> None:
    own = tmp_path / "bad.txt"
    own.write_text("to leave out:\nS001C001P001R001A901\nS999C001P001R001A001\n")
    skipped = opened(copy, missing_skeletons=own).skipped
    assert [clip.clip_id for clip in skipped] == ["S001C001P001R001A901"]
    own.write_text("S001C001 and others\n")
    with pytest.raises(DataError, match=r"bad\.txt holds no name of the form"):
        opened(copy, missing_skeletons=own)
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        opened(copy, missing_skeletons=tmp_path / "none.txt")


def test_a_clip_that_cannot_be_used_is_skipped_with_a_reason_and_the_others_stay(copy: Path) -> None:
    ids = [row.clip_id for row in opened(copy).clips]
    paths(copy, ids[0])[0].unlink()
    paths(copy, ids[1])[1].unlink()
    paths(copy, ids[2])[0].write_bytes(b"")
    paths(copy, ids[3])[1].write_bytes(b"")
    paths(copy, ids[4])[1].write_bytes(b"0\r\n")
    paths(copy, ids[5])[1].write_text("<html>404</html>\n")
    shutil.copy(paths(copy, ids[6])[0], copy / "S1C1P1R1A901_rgb.avi")
    (copy / "nturgb+d_rgb" / "S001C001P001R001A001_rgb.avi").write_bytes(b"another data set's action")
    source = opened(copy)
    assert [row.clip_id for row in source.clips] == ids[6:]
    reasons = {clip.clip_id: clip.reason for clip in source.skipped}
    assert list(reasons) == sorted(reasons)
    assert reasons.keys() == {*ids[:6], "S1C1P1R1A901", "S001C001P001R002A901"}
    expected = ["no video", "no skeleton", "empty", "number of frames", "0 frames", "number of frames"]
    assert [part in reasons[clip_id] for part, clip_id in zip(expected, ids, strict=False)] == [True] * 6
    assert "is no NTU name" in reasons["S1C1P1R1A901"]


def test_a_clip_that_broke_or_changed_after_indexing_is_unreadable_and_its_file_named(copy: Path) -> None:
    source = opened(copy)
    row = source.clips[0]
    video, skeleton = source.paths(row)
    good = skeleton.read_bytes()
    longer = b"99\r\n" + good.partition(b"\r\n")[2] + b"0\r\n" * (99 - row.num_frames)
    for content, message in ((good[:900], r"line \d+ must be"), (longer, "99 frames, .* when it was indexed")):
        skeleton.write_bytes(content)
        with pytest.raises(UnreadableClipError, match=rf"{skeleton.name}: {message}"):
            source.read(row, [0], 90)
    skeleton.write_bytes(good)
    video.write_bytes(video.read_bytes()[:-2000])
    for read in (lambda: source.read(row, [0], 90), lambda: source.encode(row, 90)):
        with pytest.raises(UnreadableClipError, match=rf"{video.name}: "):
            read()
    video.unlink()
    with pytest.raises(UnreadableClipError, match="No such file"):
        source.read(row, [0], 90)


def test_the_folders_may_be_laid_out_in_any_way_but_not_hold_a_clip_twice(copy: Path) -> None:
    before = opened(copy)
    (copy / "a" / "b").mkdir(parents=True)
    for file in sorted((copy / "nturgb+d_skeletons").iterdir())[::2]:
        file.rename(copy / "a" / "b" / file.name)
    for file in sorted((copy / "nturgb+d_rgb").iterdir())[::3]:
        file.rename(copy / file.name)
    after = opened(copy)
    assert (after.clips, after.fingerprint) == (before.clips, before.fingerprint)
    for row in after.clips:
        assert all(path.is_file() for path in after.paths(row))
    shutil.copy(after.paths(after.clips[0])[1], copy / "a")
    with pytest.raises(DataError, match="twice"):
        opened(copy)


def test_equal_files_give_equal_fingerprints_and_changes_others(copy: Path, source: NtuSource, tmp_path: Path) -> None:
    assert opened(copy).fingerprint == source.fingerprint
    for kind in range(2):  # unusable files, too, are the same wherever they lie
        (copy / source.paths(source.clips[kind])[kind].relative_to(source.root)).write_bytes(b"")
    first = opened(copy)
    assert opened(Path(shutil.copytree(copy, tmp_path / "elsewhere"))).fingerprint == first.fingerprint != source.fingerprint
    video, skeleton = first.paths(first.clips[0])
    seen = {first.fingerprint}
    changes = (
        lambda: video.write_bytes(video.read_bytes() + b"\0"),
        lambda: skeleton.write_bytes(skeleton.read_bytes() + b"\r\n"),
        first.paths(first.clips[1])[0].unlink,
        (copy / MISSING_LISTS[1]).unlink,
    )
    for number, change in enumerate(changes, start=2):
        change()
        seen.add(opened(copy).fingerprint)
        assert len(seen) == number


def test_a_folder_of_another_form_is_an_error_that_says_what_it_must_hold(tmp_path: Path, ntu_folder: Path) -> None:
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=r"expected S001C001P001R001A001_rgb\.avi"):
            NtuSource(root, "xsub")
    with pytest.raises(DataError, match="no usable clip of 60 actions"):
        NtuSource(ntu_folder, "xsub", NTU60_CLASSES)


def test_the_smaller_data_set_is_read_out_of_the_larger_ones_folder(tmp_path: Path) -> None:
    for name in ("S017C001P001R001A060", "S018C001P001R001A001", "S001C001P001R001A061", "S032C001P106R002A120"):
        (tmp_path / f"{name}_rgb.avi").write_bytes(b"not opened by the index")
        (tmp_path / f"{name}.skeleton").write_bytes(b"50\r\n1\r\n")
    assert [row.clip_id for row in NtuSource(tmp_path, "xsub").clips] == ["S017C001P001R001A060"]


def test_what_the_index_costs(tmp_path: Path) -> None:
    """Run with -rP for the figures. Nothing is asserted on time."""
    names = [
        f"S{setup:03d}C{camera:03d}P{performer:03d}R001A{action:03d}"
        for setup in range(1, 5)
        for camera in (1, 2, 3)
        for performer in range(1, 6)
        for action in range(1, 61)
    ]
    for name in names:
        (tmp_path / f"{name}_rgb.avi").write_bytes(b"not opened by the index")
        (tmp_path / f"{name}.skeleton").write_bytes(b"103\r\n1\r\n")
    began = time.perf_counter()
    source = NtuSource(tmp_path, "xsub")
    seconds = time.perf_counter() - began
    size = len(pickle.dumps(source))
    print(f"{len(names)} clips: {1e6 * seconds / len(names):.0f} µs and {size / len(names):.0f} bytes pickled per clip")
    assert len(source.clips) == len(names)
    assert size < 100 * len(names)
