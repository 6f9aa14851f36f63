import io
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import simplejpeg

from starlab.pipelines import penn_action
from starlab.pipelines.clip import ClipRow, DataError, UnreadableClipError
from starlab.pipelines.penn_action import PENN_ACTION_CLASSES, PennActionSource, parse_label

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples" / "penn_action_labels"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no real Penn Action labels at {SAMPLES}")

HEIGHT, WIDTH = 48, 64


def label(num_frames=5, height=HEIGHT, width=WIDTH, **changed) -> dict:
    """The fields of a label file, shaped and typed as the authors' are."""
    rng = np.random.default_rng(num_frames)
    fields = {
        "action": "tennis_serve",
        "pose": "front",
        "x": rng.uniform(1, width, (num_frames, 13)),
        "y": rng.uniform(1, height, (num_frames, 13)),
        "visibility": np.ones((num_frames, 13), np.uint8),
        "train": np.array([[1]], np.int32),
        "bbox": np.ones((num_frames, 4)),
        "dimensions": np.array([[height, width, num_frames]], np.uint16),
        "nframes": np.array([[num_frames]], np.uint8 if num_frames < 256 else np.uint16),
    }
    return {name: value for name, value in (fields | changed).items() if value is not None}


def encode(fields: dict) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, fields, do_compression=True)
    return file.getvalue()


def jpeg(level: int, height=HEIGHT, width=WIDTH) -> bytes:
    return simplejpeg.encode_jpeg(np.full((height, width, 3), level, np.uint8), quality=90)


def write_clip(root: Path, clip_id: str, data: bytes, num_jpegs: int) -> None:
    """Frame k is a plain picture of grey level 10 k."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    (root / "labels" / f"{clip_id}.mat").write_bytes(data)
    folder = root / "frames" / clip_id
    folder.mkdir(parents=True)
    for number in range(1, num_jpegs + 1):
        (folder / f"{number:06d}.jpg").write_bytes(jpeg(10 * min(number, 25)))


@pytest.fixture
def root(tmp_path) -> Path:
    """Three good clips."""
    write_clip(tmp_path, "0001", encode(label()), 5)
    write_clip(tmp_path, "0002", encode(label(7, action="bowl", train=np.array([[-1]], np.int32))), 7)
    write_clip(tmp_path, "0003", encode(label(6, action="squat")), 6)
    return tmp_path


def test_the_index_holds_a_row_per_clip_sorted_with_class_split_and_length(root):
    source = PennActionSource(root)
    assert source.clips == (
        ClipRow(clip_id="0001", label=14, split="train", subject=None, num_frames=5),
        ClipRow(clip_id="0002", label=3, split="test", subject=None, num_frames=7),
        ClipRow(clip_id="0003", label=11, split="train", subject=None, num_frames=6),
    )
    assert source.skipped == ()
    assert (source.classes, source.max_bodies) == (PENN_ACTION_CLASSES, 1)
    assert len(source.classes) == 15


def test_frames_come_in_the_order_asked_for_with_their_own_joints(root):
    source = PennActionSource(root)
    clip = source.read(source.clips[0], [3, 0, 3], min_side_px=32)
    assert [round(frame.mean(), -1) for frame in clip.frames] == [40, 10, 40]
    assert clip.frames[0].shape == (HEIGHT, WIDTH, 3)
    assert clip.joints.shape == (3, 1, 13, 3)
    assert clip.joints.dtype == np.float32
    fields = label()
    np.testing.assert_allclose(clip.joints[:, 0, :, 0], (fields["x"][[3, 0, 3]] - 0.5) / WIDTH, rtol=1e-5)
    np.testing.assert_allclose(clip.joints[:, 0, :, 1], (fields["y"][[3, 0, 3]] - 0.5) / HEIGHT, rtol=1e-5)


def test_a_repeated_frame_is_decoded_once(root, monkeypatch):
    decoded = []
    monkeypatch.setattr(penn_action, "decode_jpeg", lambda _data, side: decoded.append(side) or np.zeros((4, 4, 3)))
    source = PennActionSource(root)
    source.read(source.clips[0], [0, 0, 1, 1, 4, 0], min_side_px=9)
    assert decoded == [9, 9, 9]


def test_the_source_travels_as_a_small_pickle_and_reads_the_same(root):
    source = PennActionSource(root)
    data = pickle.dumps(source)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert copy.clips == source.clips
    np.testing.assert_array_equal(copy.read(copy.clips[1], [6], 32).joints, source.read(source.clips[1], [6], 32).joints)


def test_both_spellings_of_an_action_are_one_class(root):
    write_clip(root, "0004", encode(label(action="bowling")), 5)
    own = PennActionSource(root, ("tennis_serve", "bowling", "squats"))
    assert own.classes == ("tennis_serve", "bowling", "squats")
    assert [row.label for row in own.clips] == [0, 1, 2, 1]
    assert [row.label for row in PennActionSource(root).clips] == [14, 3, 11, 3]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_small_integer_coordinates_do_not_overflow(kind):
    x = np.full((200, 13), 255, kind)
    x[:, 0] = 0
    joints = parse_label(encode(label(200, x=x, y=x, width=255, height=255))).joints
    np.testing.assert_allclose(joints[:, 0, 1, :2], (255 - 0.5) / 255, rtol=1e-6)
    np.testing.assert_allclose(joints[:, 0, 0, :2], -0.5 / 255, rtol=1e-6)


def test_the_middle_of_the_first_and_of_the_last_pixel_are_half_a_pixel_inside_the_frame():
    edges = np.tile(np.array([1.0] * 6 + [WIDTH] * 7), (5, 1))
    joints = parse_label(encode(label(x=edges))).joints[:, 0, :, 0]
    np.testing.assert_allclose(joints[:, :6], 0.5 / WIDTH, rtol=1e-6)
    np.testing.assert_allclose(joints[:, 6:], 1 - 0.5 / WIDTH, rtol=1e-6)


def test_an_invisible_joint_is_nowhere_whatever_the_label_says_its_place_is():
    visibility = np.ones((5, 13), np.uint8)
    visibility[2, 4] = 0
    joints = parse_label(encode(label(visibility=visibility))).joints
    assert joints[2, 0, 4].tolist() == [0, 0, 0]
    assert (np.delete(joints[2, 0], 4, axis=0)[:, 2] == 1).all()


def test_a_long_clip_counts_its_frames_in_two_bytes():
    assert parse_label(encode(label(300))).num_frames == 300


def test_a_missing_row_of_the_bounding_boxes_does_not_matter():
    assert parse_label(encode(label(bbox=np.ones((4, 4))))).num_frames == 5


def test_joints_outside_the_frame_keep_their_place():
    joints = parse_label(encode(label(x=np.full((5, 13), 80.5)))).joints
    np.testing.assert_allclose(joints[..., 0], 80 / 64)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"x": np.ones((4, 13))}, "do not fit"),
        ({"y": np.ones((5, 12))}, "do not fit"),
        ({"visibility": np.ones((6, 13), np.uint8)}, "do not fit"),
        ({"nframes": np.array([[6]], np.uint8)}, "do not fit"),
        ({"dimensions": np.array([[HEIGHT, WIDTH, 9]], np.uint16)}, "do not fit"),
        ({"dimensions": np.array([[0, WIDTH, 5]], np.uint16)}, "frames of 0×64"),
        ({"dimensions": np.array([[HEIGHT, WIDTH]], np.uint16)}, "expected form"),
        ({"train": np.array([[0]], np.int32)}, "train must be 1 or -1"),
        ({"train": None}, "'train' is missing"),
        ({"x": np.full((5, 13), np.nan)}, "not finite"),
        ({"x": np.full((5, 13), 1e300)}, "not finite"),
        ({"action": np.ones((2, 2))}, "expected form"),
    ],
)
def test_a_label_that_does_not_hold_together_is_an_error_that_says_where(changed, reason):
    with pytest.raises(ValueError, match=reason):
        parse_label(encode(label(**changed)))


def test_bytes_that_are_no_label_are_an_error():
    good = encode(label())
    flipped = bytes(byte ^ 0xFF if 400 <= place < 420 else byte for place, byte in enumerate(good))
    for data in (b"", b"<html>", good[:100], good[: len(good) // 2], flipped):
        with pytest.raises(ValueError, match=r"not a readable \.mat file|is missing"):
            parse_label(data)


def test_a_clip_that_cannot_be_used_is_skipped_with_a_reason_and_the_others_stay(root):
    good = encode(label())
    write_clip(root, "0010", good, 4)
    write_clip(root, "0011", good[:300], 5)
    write_clip(root, "0012", encode(label(action="juggling")), 5)
    write_clip(root, "0013", encode(label(x=np.ones((3, 13)))), 5)
    (root / "labels" / "0014.mat").write_bytes(good)
    write_clip(root, "0015", good, 6)
    (root / "frames" / "0015" / "000003.jpg").unlink()
    (root / "labels" / "0016.mat").mkdir()
    write_clip(root, "0017", good, 9)  # more pictures than labels: the labelled ones are used
    (root / "labels" / "readme.txt").write_text("not a label")

    source = PennActionSource(root)
    assert [row.clip_id for row in source.clips] == ["0001", "0002", "0003", "0017"]
    assert source.clips[-1].num_frames == 5
    reasons = {clip.clip_id: clip.reason for clip in source.skipped}
    assert list(reasons) == ["0010", "0011", "0012", "0013", "0014", "0015", "0016"]
    assert "lacks 1 of 5 labelled frames, first 000005.jpg" in reasons["0010"]
    assert "0011.mat" in reasons["0011"]
    assert "'juggling' is none of the 15 classes" in reasons["0012"]
    assert "x (3, 13)" in reasons["0013"]
    assert "no frame folder" in reasons["0014"]
    assert "first 000003.jpg" in reasons["0015"]
    assert "0016.mat" in reasons["0016"]


@pytest.mark.parametrize("missing", ["", "labels", "frames"])
def test_a_folder_of_another_form_is_an_error_that_names_it_and_says_what_it_must_hold(tmp_path, missing):
    root = tmp_path / "penn"
    for folder in ("labels", "frames"):
        if missing and folder != missing:
            (root / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"labels/0001\.mat") as caught:
        PennActionSource(root)
    assert str(root / missing) in str(caught.value)


def test_a_folder_without_a_usable_clip_is_an_error(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "frames").mkdir()
    with pytest.raises(DataError, match=r"no \.mat file"):
        PennActionSource(tmp_path)
    (tmp_path / "labels" / "0001.mat").write_bytes(encode(label()))
    with pytest.raises(DataError, match=r"none of the 1 clips .* no frame folder"):
        PennActionSource(tmp_path)


def test_equal_files_give_equal_fingerprints_and_any_change_of_a_label_or_count_another(root, tmp_path_factory):
    fingerprint = PennActionSource(root).fingerprint
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, elsewhere)
    assert PennActionSource(elsewhere).fingerprint == fingerprint

    seen = {fingerprint}
    changes = [
        lambda: (elsewhere / "frames" / "0003" / "000007.jpg").write_bytes(jpeg(1)),  # a picture more
        lambda: (elsewhere / "labels" / "0003.mat").write_bytes(encode(label(6, action="pullup"))),  # changed
        (elsewhere / "labels" / "0001.mat").unlink,  # removed
        lambda: write_clip(elsewhere, "0009", encode(label(8)), 8),  # added
        lambda: (elsewhere / "labels" / "0002.mat").rename(elsewhere / "labels" / "0001.mat"),  # renamed
    ]
    for number, change in enumerate(changes, start=2):
        change()
        seen.add(PennActionSource(elsewhere).fingerprint)
        assert len(seen) == number


def test_a_damaged_or_missing_picture_makes_the_clip_unreadable_and_is_named(root):
    source = PennActionSource(root)
    path = root / "frames" / "0001" / "000003.jpg"
    good = jpeg(77, 200, 300)
    noisy = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    flipped = bytearray(noisy)
    for place in range(len(flipped) // 2, len(flipped), 7):
        flipped[place] ^= 0x20
    for data in (good[:-30], good[:50], b"", b"<html>", bytes(flipped)):
        path.write_bytes(data)
        with pytest.raises(UnreadableClipError, match=r"0001/000003\.jpg: ."):
            source.read(source.clips[0], [0, 2], 32)
        source.read(source.clips[0], [0, 1], 32)
    path.unlink()
    with pytest.raises(UnreadableClipError, match=r"0001/000003\.jpg: .*No such file"):
        source.read(source.clips[0], [2], 32)


def test_pictures_of_two_sizes_make_the_clip_unreadable(root):
    source = PennActionSource(root)
    (root / "frames" / "0001" / "000002.jpg").write_bytes(jpeg(9, 30, 30))
    with pytest.raises(UnreadableClipError, match=r"different sizes \[\(30, 30\), \(48, 64\)\]"):
        source.read(source.clips[0], [0, 1], 32)


def test_a_label_that_broke_or_changed_after_indexing_makes_the_clip_unreadable(root):
    source = PennActionSource(root)
    path = root / "labels" / "0001.mat"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnreadableClipError, match=r"0001\.mat"):
        source.read(source.clips[0], [0], 32)
    path.write_bytes(encode(label(4)))
    with pytest.raises(UnreadableClipError, match="4 frames, 5 when it was indexed"):
        source.read(source.clips[0], [0], 32)
    path.unlink()
    with pytest.raises(UnreadableClipError, match="No such file"):
        source.read(source.clips[0], [0], 32)


def test_large_pictures_are_shrunk_while_decoding_but_not_below_the_side_asked_for(tmp_path):
    write_clip(tmp_path, "0001", encode(label(1, height=400, width=600)), 0)
    (tmp_path / "frames" / "0001" / "000001.jpg").write_bytes(jpeg(50, 400, 600))
    source = PennActionSource(tmp_path)
    clip = source.read(source.clips[0], [0], 100)
    assert clip.frames[0].shape == (100, 150, 3)
    np.testing.assert_allclose(clip.joints, parse_label(encode(label(1, height=400, width=600))).joints)


@needs_samples
def test_every_real_label_is_read_and_stays_near_its_frame():
    paths = sorted(SAMPLES.glob("*.mat"))
    labels = {path.stem: parse_label(path.read_bytes()) for path in paths}
    assert len(labels) == 35
    assert {found.action for found in labels.values()} == set(PENN_ACTION_CLASSES)
    assert Counter(found.split for found in labels.values()).keys() == {"train", "test"}
    for found in labels.values():
        seen = found.joints[..., 2] == 1
        assert found.subject is None
        assert found.joints.shape == (found.num_frames, 1, 13, 3)
        assert seen.any()
        assert (found.joints[~seen] == 0).all()
        assert (np.abs(found.joints[seen][:, :2] - 0.5) < 0.75).all()
    assert not labels["0623"].joints[..., 2].any(axis=(1, 2)).all(), "74 of its frames show no joint"


@needs_samples
@pytest.mark.parametrize("clip_id", ["0102", "0115", "0116", "1893"])
def test_real_integer_coded_labels_give_the_same_fractions_as_plain_arithmetic(clip_id):
    fields = scipy.io.loadmat(SAMPLES / f"{clip_id}.mat")
    assert fields["x"].dtype.kind == "u"
    assert fields["x"].dtype.itemsize + fields["y"].dtype.itemsize <= 4
    height, width, _ = fields["dimensions"][0].tolist()
    joints = parse_label((SAMPLES / f"{clip_id}.mat").read_bytes()).joints[:, 0]
    frame, joint = np.argwhere(fields["visibility"] == 1)[17]
    expected = [(int(fields["x"][frame, joint]) - 0.5) / width, (int(fields["y"][frame, joint]) - 0.5) / height, 1]
    assert joints[frame, joint].tolist() == pytest.approx(expected, rel=1e-6)


@needs_samples
def test_real_labels_with_pictures_beside_them_make_a_source(tmp_path):
    clip_ids = ["0102", "0334", "1154", "1893", "2320"]
    for clip_id in clip_ids:
        data = (SAMPLES / f"{clip_id}.mat").read_bytes()
        write_clip(tmp_path, clip_id, data, parse_label(data).num_frames)
    short = scipy.io.loadmat(SAMPLES / "1154.mat")
    assert len(short["bbox"]) == short["nframes"].item() - 1

    source = PennActionSource(tmp_path)
    assert [row.clip_id for row in source.clips] == clip_ids
    for row in source.clips:
        clip = source.read(row, [0, row.num_frames - 1], 32)
        assert clip.joints.shape == (2, 1, 13, 3)
        assert clip.joints[..., 2].any()
