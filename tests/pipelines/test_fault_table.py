"""Every kind of bad input and what becomes of it; docs/data.md prints the same table and says what the outcomes mean."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import simplejpeg

from starlab.pipelines.clip import ClipSource, DataError, UnreadableClipError
from starlab.pipelines.estimated_joints import SCHEMA, EstimatedJoints, write_joints
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES
from starlab.pipelines.ntu import MISSING_LISTS, NtuSource
from starlab.pipelines.ntu_names import NTU120_SETUPS
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.skeletons import COCO

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
Outcome = Literal["left out", "unreadable", "refused", "read"]
PENN_CLIP, NTU_CLIP = "0001", "S001C002P001R001A951"
HTML = b"<html><body>404 Not Found</body></html>\n" * 20


@dataclass(frozen=True)
class Fault:
    kind: str
    """Row of the table in docs/data.md."""
    damage: Callable[[Path], None]
    """Done to a folder of three good clips."""
    outcome: Outcome
    says: str
    """Regular expression that the reason must match."""
    after_index: bool = False


def jpeg_of(root: Path) -> Path:
    return root / "frames" / PENN_CLIP / "000007.jpg"


def label_of(root: Path) -> Path:
    return root / "labels" / f"{PENN_CLIP}.mat"


def video_of(root: Path) -> Path:
    return root / f"{NTU_CLIP}_rgb.avi"


def skeleton_of(root: Path) -> Path:
    return root / f"{NTU_CLIP}.skeleton"


Place = Callable[[Path], Path]


def becomes(place: Place, data: bytes) -> Callable[[Path], None]:
    return changed(place, lambda _: data)


def changed(place: Place, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        before = place(root).read_bytes()
        after = change(before)
        assert after != before
        place(root).write_bytes(after)

    return damage


def removed(place: Place) -> Callable[[Path], None]:
    return lambda root: place(root).unlink()


def flipped(data: bytes) -> bytes:
    content = bytearray(data)
    for at in range(len(data) // 3, len(data) * 2 // 3, 41):
        content[at] ^= 0x24
    return bytes(content)


def label_with(**fields: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        found = {key: value for key, value in scipy.io.loadmat(label_of(root)).items() if not key.startswith("__")}
        file = io.BytesIO()
        scipy.io.savemat(file, found | {key: value(found) if callable(value) else value for key, value in fields.items()})
        label_of(root).write_bytes(file.getvalue())

    return damage


def skeleton_lines(change: Callable[[list[bytes]], object]) -> Callable[[Path], None]:
    def edit(data: bytes) -> bytes:
        lines = data.split(b"\r\n")
        change(lines)
        return b"\r\n".join(lines)

    return changed(skeleton_of, edit)


def line_10(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A joint of the first body in the first frame."""

    def edit(lines: list[bytes]) -> None:
        assert len(lines[9].split()) == 12
        lines[9] = change(lines[9])

    return skeleton_lines(edit)


def set_value(line: bytes, place: int, value: bytes) -> bytes:
    values = line.split()
    values[place] = value
    return b" ".join(values)


def every_joint_nan(lines: list[bytes]) -> None:
    for number, line in enumerate(lines):
        if len(line.split()) == 12:
            lines[number] = set_value(line, 5, b"nan")


def nobody(data: bytes) -> bytes:
    num_frames = int(data.split(b"\r\n")[0])
    return b"\r\n".join([str(num_frames).encode(), *[b"0"] * num_frames, b""])


def same_body_twice(lines: list[bytes]) -> None:
    """Lines 3 and 30 of a file whose first frame shows two people are their ids."""
    assert lines[1] == b"2"
    lines[29] = lines[2]


def longer_by(frames: int) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        head, _, rest = data.partition(b"\r\n")
        return str(int(head) + frames).encode() + b"\r\n" + rest + b"0\r\n" * frames

    return edit


def no_frame_folder(root: Path) -> None:
    shutil.rmtree(root / "frames" / PENN_CLIP)


def mp4_in_disguise(root: Path) -> None:
    with av.open(str(video_of(root))) as source:
        frames = list(source.decode(video=0))
    with av.open(str(root / "x.mp4"), "w") as target:
        stream = target.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        for frame in frames:
            frame.pts = None
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    (root / "x.mp4").rename(video_of(root))


def clip_twice(root: Path) -> None:
    (root / "copy").mkdir()
    shutil.copy(skeleton_of(root), root / "copy")


def misnamed(root: Path) -> None:
    video_of(root).rename(root / f"{NTU_CLIP[:-3]}51_rgb.avi")
    skeleton_of(root).rename(root / f"{NTU_CLIP[:-3]}51.skeleton")


def listed_as_missing(root: Path) -> None:
    (root / MISSING_LISTS[0]).write_text(f"1 of the samples has missing skeletons.\r\n\r\n{NTU_CLIP}\r\n")


def ghost_added(data: bytes) -> bytes:
    """A body that spreads from left to right, in every frame."""
    lines, out, at = data.split(b"\r\n"), [], 1
    for _ in range(int(lines[0])):
        bodies = int(lines[at])
        end = at + 1 + 27 * bodies
        wide = [b"%.3f 0.1 3 1 1 %d 900 1 0 0 0 2" % (joint / 10, 60 * joint) for joint in range(25)]
        out += [str(bodies + 1).encode(), *lines[at + 1 : end], b"72057594037939999 0 1 1 1 1 0 0 0 2", b"25", *wide]
        at = end
    return b"\r\n".join([lines[0], *out, b""])


PENN = (
    Fault("label: empty file", becomes(label_of, b""), "left out", r"0001\.mat: not a readable \.mat file"),
    Fault("label: cut short", changed(label_of, lambda data: data[: len(data) // 2]), "left out", r"0001\.mat: "),
    Fault("label: bits flipped", changed(label_of, flipped), "left out", r"0001\.mat: "),
    Fault("label: a web page", becomes(label_of, HTML), "left out", r"0001\.mat: not a readable \.mat file"),
    Fault(
        "label: an action that is no class", label_with(action="juggling"), "left out", "'juggling' is none of the 10 classes"
    ),
    Fault("label: neither train nor test", label_with(train=np.array([[0]])), "left out", "train must be 1 or -1, is 0"),
    Fault("label: x shorter than y", label_with(x=lambda found: found["x"][:-1]), "left out", "do not fit"),
    Fault(
        "label: a visible joint is not a number",
        label_with(x=lambda found: np.full(found["x"].shape, np.nan)),
        "left out",
        "not finite",
    ),
    Fault("label: a bounding box too few", label_with(bbox=lambda found: found["bbox"][:-1]), "read", ""),
    Fault(
        "label: changed after indexing",
        label_with(
            **{name: (lambda found, name=name: found[name][:-1]) for name in ("x", "y", "visibility")},
            nframes=lambda found: found["nframes"] - 1,
            dimensions=lambda found: found["dimensions"] - np.array([[0, 0, 1]], np.uint16),
        ),
        "unreadable",
        r"0001\.mat: \d+ frames, \d+ when it was indexed",
        after_index=True,
    ),
    Fault("frames: no folder", no_frame_folder, "left out", "no frame folder at"),
    Fault(
        "frames: a labelled one is missing", removed(jpeg_of), "left out", r"lacks 1 of \d+ labelled frames, first 000007\.jpg"
    ),
    Fault(
        "frames: one vanished after indexing", removed(jpeg_of), "unreadable", r"000007\.jpg: .*No such file", after_index=True
    ),
    Fault("JPEG: empty file", becomes(jpeg_of, b""), "unreadable", r"0001/000007\.jpg: "),
    Fault("JPEG: cut short", changed(jpeg_of, lambda data: data[:-40]), "unreadable", r"0001/000007\.jpg: "),
    Fault("JPEG: bits flipped", changed(jpeg_of, flipped), "unreadable", r"0001/000007\.jpg: "),
    Fault("JPEG: bytes before and after it", changed(jpeg_of, lambda data: b"\r\n" + data + b"more"), "read", ""),
    Fault("JPEG: a web page", becomes(jpeg_of, HTML), "unreadable", r"0001/000007\.jpg: "),
    Fault(
        "JPEG: of another size",
        becomes(jpeg_of, simplejpeg.encode_jpeg(np.zeros((40, 40, 3), np.uint8))),
        "unreadable",
        "different sizes|40×40 pixels, its label says",
    ),
    Fault("folder: not there", shutil.rmtree, "refused", r"no folder at .* labels/0001\.mat"),
)

NTU = (
    Fault("video: missing", removed(video_of), "left out", "no video: "),
    Fault("video: empty file", becomes(video_of, b""), "left out", r"_rgb\.avi: empty"),
    Fault("video: only a header", changed(video_of, lambda data: data[:200]), "unreadable", r"_rgb\.avi: "),
    Fault("video: first half", changed(video_of, lambda data: data[: len(data) // 2]), "unreadable", r"_rgb\.avi: "),
    Fault("video: last bytes missing", changed(video_of, lambda data: data[:-2500]), "unreadable", r"_rgb\.avi: "),
    Fault("video: bits flipped", changed(video_of, flipped), "unreadable", r"_rgb\.avi: "),
    Fault("video: a web page", becomes(video_of, HTML), "unreadable", r"_rgb\.avi: not a readable avi video"),
    Fault("video: an mp4 that is called avi", mp4_in_disguise, "unreadable", r"_rgb\.avi: not a readable avi video"),
    Fault("video: two frames fewer than the skeleton", changed(skeleton_of, longer_by(2)), "read", ""),
    Fault(
        "video: three frames fewer than the skeleton",
        changed(skeleton_of, longer_by(3)),
        "unreadable",
        r"_rgb\.avi: it ends after \d+ frames, \d+ to \d+ expected",
    ),
    Fault("skeleton: missing", removed(skeleton_of), "left out", "no skeleton: "),
    Fault("skeleton: empty file", becomes(skeleton_of, b""), "left out", r"\.skeleton: its first line"),
    Fault("skeleton: a web page", becomes(skeleton_of, HTML), "left out", r"\.skeleton: its first line"),
    Fault("skeleton: no frame", becomes(skeleton_of, b"0\r\n"), "left out", r"\.skeleton: it has 0 frames"),
    Fault("skeleton: on the authors' list", listed_as_missing, "left out", "lists it as a clip without a usable skeleton"),
    Fault(
        "skeleton: cut short", changed(skeleton_of, lambda data: data[: len(data) // 2]), "unreadable", r"\.skeleton: line \d+"
    ),
    Fault(
        "skeleton: a joint of 11 values",
        line_10(lambda line: line.rpartition(b" ")[0]),
        "unreadable",
        r"\.skeleton: line 10 must be a joint's 12 values",
    ),
    Fault(
        "skeleton: a word for a number",
        line_10(lambda line: set_value(line, 1, b"left")),
        "unreadable",
        r"\.skeleton: line 10: b'left' is no number",
    ),
    Fault(
        "skeleton: one body twice in a frame", skeleton_lines(same_body_twice), "unreadable", r"body \d+ is twice in frame 0"
    ),
    Fault("skeleton: nobody in any frame", changed(skeleton_of, nobody), "unreadable", "nobody is seen in any of its"),
    Fault("skeleton: no joint is a number", skeleton_lines(every_joint_nan), "unreadable", "nobody is seen in any of its"),
    Fault("skeleton: one joint is not a number", line_10(lambda line: set_value(line, 5, b"nan")), "read", ""),
    Fault("skeleton: a chair taken for a third person", changed(skeleton_of, ghost_added), "read", ""),
    Fault("name: a number of two digits", misnamed, "left out", "is no NTU name"),
    Fault("folder: a clip lies in it twice", clip_twice, "refused", r"holds S001C002P001R001A951\.skeleton twice"),
)


def joints_of(source: ClipSource, bodies: int = 1) -> list[tuple[str, np.ndarray]]:
    return [(row.clip_id, np.full((row.num_frames, bodies, 17, 3), 0.5, np.float32)) for row in source.clips]


def parquet_of(root: Path) -> Path:
    return root / "joints.parquet"


def joints_with(change: Callable[[list[tuple[str, np.ndarray]]], object]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        clips = joints_of(open_penn(root))
        change(clips)
        write_joints(parquet_of(root), clips)

    return damage


def wider_by_a_body(root: Path) -> None:
    """The column says two people, the numbers are one's."""
    rows = pq.read_table(parquet_of(root)).to_pylist()
    rows[0]["num_bodies"] = 2
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), parquet_of(root), row_group_size=1)


def without_joints(root: Path) -> None:
    pq.write_table(pq.read_table(parquet_of(root)).drop(["joints"]), parquet_of(root))


def shorter(clips: list[tuple[str, np.ndarray]]) -> None:
    clips[0] = (clips[0][0], clips[0][1][1:])


def over_one(clips: list[tuple[str, np.ndarray]]) -> None:
    clips[0][1][3, 0, 4, 2] = 1.01


def in_pixels(clips: list[tuple[str, np.ndarray]]) -> None:
    for _, joints in clips:
        joints[..., :2] *= 64


ESTIMATED = (
    Fault("estimated joints: cut short", changed(parquet_of, lambda data: data[:-100]), "refused", "cannot be read"),
    Fault("estimated joints: a column is missing", without_joints, "refused", "lack the column 'joints'"),
    Fault("estimated joints: a clip is missing", joints_with(lambda clips: clips.pop(0)), "left out", "has no joints of it"),
    Fault("estimated joints: of another length", joints_with(shorter), "left out", r"has joints of \d+ frames, the clip has"),
    Fault("estimated joints: of another shape", wider_by_a_body, "unreadable", r"numbers are not \d+ × 2 × 17 × 3"),
    Fault("estimated joints: a confidence above 1", joints_with(over_one), "refused", "confidences lie outside"),
    Fault("estimated joints: in pixels", joints_with(in_pixels), "refused", "pixels"),
)


def open_penn(root: Path) -> ClipSource:
    return PennActionSource(root, SYNTHETIC_CLASSES)


def open_ntu(root: Path) -> ClipSource:
    return NtuSource(root, "xsub", SYNTHETIC_NTU_CLASSES, NTU120_SETUPS)


def open_estimated(root: Path) -> ClipSource:
    return EstimatedJoints(open_penn(root), parquet_of(root), COCO)


@pytest.fixture
def penn(small_folder: Path, tmp_path: Path) -> Path:
    root = tmp_path / "penn"
    (root / "labels").mkdir(parents=True)
    for clip_id in (PENN_CLIP, "0002", "0003"):
        shutil.copy(small_folder / "labels" / f"{clip_id}.mat", root / "labels")
        shutil.copytree(small_folder / "frames" / clip_id, root / "frames" / clip_id)
    return root


@pytest.fixture
def ntu(ntu_folder: Path, tmp_path: Path) -> Path:
    root = tmp_path / "ntu"
    root.mkdir()
    for clip_id in (NTU_CLIP, "S001C001P001R001A901", "S002C001P002R001A953"):
        shutil.copy(ntu_folder / "nturgb+d_rgb" / f"{clip_id}_rgb.avi", root)
        shutil.copy(ntu_folder / "nturgb+d_skeletons" / f"{clip_id}.skeleton", root)
    return root


@pytest.fixture
def estimated(penn: Path) -> Path:
    write_joints(parquet_of(penn), joints_of(open_penn(penn)))
    return penn


def meets(fault: Fault, root: Path, opened: Callable[[Path], ClipSource]) -> tuple[Outcome, str]:
    """What becomes of the damaged clip; the two others have to be fine, whatever it is."""
    source = opened(root)
    [victim] = [row for row in source.clips if row.clip_id in (PENN_CLIP, NTU_CLIP)]
    others = [row for row in source.clips if row is not victim]
    assert len(others) == 2
    fault.damage(root)
    if not fault.after_index:
        try:
            source = opened(root)
        except DataError as error:
            return "refused", str(error)
    for row in others:
        assert source.read(row, range(row.num_frames), 48).joints[..., 2].any()
        assert len(source.encode(row, 48).jpegs) == row.num_frames
    left_out = [clip for clip in source.skipped if row_like(clip.clip_id, victim.clip_id)]
    if left_out:
        return "left out", left_out[0].reason
    [row] = [row for row in source.clips if row.clip_id == victim.clip_id]
    said = []
    for read in (lambda: source.read(row, range(row.num_frames), 48), lambda: source.encode(row, 48)):
        try:
            assert np.isfinite(read().joints).all()
        except UnreadableClipError as error:
            said.append(str(error))
    assert len(said) in (0, 2), f"reading and preparing must agree: {said}"
    return ("unreadable", said[0]) if said else ("read", "")


def row_like(skipped: str, victim: str) -> bool:
    """A clip whose name is broken is left out under its broken name."""
    return skipped == victim or skipped.startswith(victim[:-3])


@pytest.mark.parametrize("fault", PENN, ids=lambda fault: fault.kind)
def test_bad_penn_action_input_has_its_clear_outcome(penn: Path, fault: Fault) -> None:
    outcome, reason = meets(fault, penn, open_penn)
    assert outcome == fault.outcome
    assert_says(reason, fault.says)


@pytest.mark.parametrize("fault", NTU, ids=lambda fault: fault.kind)
def test_bad_ntu_input_has_its_clear_outcome(ntu: Path, fault: Fault) -> None:
    outcome, reason = meets(fault, ntu, open_ntu)
    assert outcome == fault.outcome
    assert_says(reason, fault.says)


@pytest.mark.parametrize("fault", ESTIMATED, ids=lambda fault: fault.kind)
def test_bad_estimated_joints_have_their_clear_outcome(estimated: Path, fault: Fault) -> None:
    outcome, reason = meets(fault, estimated, open_estimated)
    assert outcome == fault.outcome
    assert_says(reason, fault.says)


def assert_says(reason: str, pattern: str) -> None:
    assert re.search(pattern, reason), f"{reason!r} does not match {pattern!r}"


def test_an_undamaged_folder_is_read(penn: Path, ntu: Path, estimated: Path) -> None:
    unharmed = Fault("none", lambda root: None, "read", "")
    for root, opened in ((penn, open_penn), (ntu, open_ntu), (estimated, open_estimated)):
        assert meets(unharmed, root, opened) == ("read", "")


def test_a_joint_that_is_not_a_number_is_not_seen_and_a_chair_is_nobody(ntu: Path) -> None:
    whole = open_ntu(ntu)
    [row] = [row for row in whole.clips if row.clip_id == NTU_CLIP]
    before = whole.read(row, range(row.num_frames), 48).joints
    faults = {fault.kind: fault for fault in NTU}
    faults["skeleton: a chair taken for a third person"].damage(ntu)
    np.testing.assert_array_equal(open_ntu(ntu).read(row, range(row.num_frames), 48).joints, before)
    faults["skeleton: one joint is not a number"].damage(ntu)
    after = open_ntu(ntu).read(row, range(row.num_frames), 48).joints
    lost = np.argwhere((after != before).any(axis=-1))
    assert len(lost) == 1
    assert not after[tuple(lost[0])].any()


def test_the_documentation_prints_this_table() -> None:
    rows = [line.strip("| \n").split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    printed = {row[0]: row[1] for row in rows if row[0] in {fault.kind for fault in (*PENN, *NTU, *ESTIMATED)}}
    assert printed == {fault.kind: fault.outcome for fault in (*PENN, *NTU, *ESTIMATED)}
