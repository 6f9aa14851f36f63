import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from starlab.pipelines.augment import AugmentConfig, fit
from starlab.pipelines.clip import DataError, DecodedClip
from starlab.pipelines.generated import folder as generated_folder
from starlab.pipelines.generated import penn_action as synthetic
from starlab.pipelines.generated.folder import MARKER
from starlab.pipelines.generated.penn_action import (
    JOINT_CLASSES,
    ORDER_CLASSES,
    PIXEL_CLASSES,
    SYNTHETIC_CLASSES,
    SyntheticConfig,
    draw_clip,
    encode_label,
    write_penn_action,
)
from starlab.pipelines.penn_action import PENN_ACTION_CLASSES, README_SPELLINGS, PennActionSource, parse_label
from starlab.pipelines.skeletons import PENN_ACTION
from starlab.pipelines.splits import split_rows

CONFIG = SyntheticConfig()
SMALL = SyntheticConfig(
    train_subjects=3,
    test_subjects=2,
    train_clips_per_class=3,
    test_clips_per_class=2,
    size_px=48,
    min_frames=16,
    max_frames=20,
)
ORDER_PAIRS = tuple(zip(ORDER_CLASSES[::2], ORDER_CLASSES[1::2], strict=True))
DRAWS = range(12)


def both(pair, draw, config=CONFIG):
    """The two classes of a pair, drawn with the same random numbers."""
    return (draw_clip(config, action, "train", draw, draw) for action in pair)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "people"
    write_penn_action(folder, SMALL, workers=1)
    return folder


@pytest.mark.parametrize("pair", ORDER_PAIRS)
@pytest.mark.parametrize("draw", DRAWS[:3])
def test_the_classes_of_an_order_pair_are_each_other_played_backwards_to_the_last_bit(pair, draw):
    forward, backward = both(pair, draw)
    assert forward.action != backward.action
    np.testing.assert_array_equal(backward.render(), forward.render()[::-1])
    np.testing.assert_array_equal(backward.joints_px, forward.joints_px[::-1])
    np.testing.assert_array_equal(backward.labelled_px, forward.labelled_px[::-1])
    np.testing.assert_array_equal(backward.visible, forward.visible[::-1])
    assert (backward.integer_coded, backward.short_bbox) == (forward.integer_coded, forward.short_bbox)


@pytest.mark.parametrize("draw", DRAWS[:3])
def test_the_classes_of_the_pixel_pair_have_equal_joints_and_differ_in_colour_around_the_hand_only(draw):
    red, blue = both(PIXEL_CLASSES, draw)
    np.testing.assert_array_equal(red.joints_px, blue.joints_px)
    np.testing.assert_array_equal(red.labelled_px, blue.labelled_px)
    np.testing.assert_array_equal(red.visible, blue.visible)
    differs = (red.render() != blue.render()).any(axis=-1)
    assert differs.any(axis=(1, 2)).all()
    for frame, hand in zip(differs, red.joints_px[:, 6], strict=True):
        rows, columns = np.nonzero(frame)
        assert np.hypot(columns + 0.5 - hand[0], rows + 0.5 - hand[1]).max() < 0.085 * red.look.height_px + 2


@pytest.mark.parametrize("draw", DRAWS)
def test_the_classes_of_the_joint_pair_have_equal_pixels_and_differ_in_knees_and_ankles_only(draw):
    apart, up = both(JOINT_CLASSES, draw)
    np.testing.assert_array_equal(apart.render(), up.render())
    differs = (apart.labelled_px != up.labelled_px).any(axis=(0, 2))
    assert {PENN_ACTION.joints[joint] for joint in np.flatnonzero(differs)} <= {
        f"{side}_{joint}" for side in ("left", "right") for joint in ("knee", "ankle")
    }
    assert differs.sum() >= 3  # a joint that is hidden all along may be a placeholder in both


def test_hidden_legs_stay_behind_the_panel():
    for draw in DRAWS:
        for clip in both(JOINT_CLASSES, draw):
            panel_top = clip.joints_px[:, 7:9, 1].min(axis=1) - 0.05 * clip.look.height_px
            assert (clip.joints_px[:, 9:13, 1].min(axis=1) > panel_top + 0.06 * clip.look.height_px).all()


@pytest.mark.parametrize("action", SYNTHETIC_CLASSES)
def test_an_action_starts_and_ends_at_rest_and_moves_in_between(action):
    for draw in DRAWS:
        clip = draw_clip(CONFIG, action, "train", draw, draw)
        joints = clip.joints_px - clip.joints_px[:, 7:9].mean(axis=1, keepdims=True)
        reach = np.linalg.norm(joints - joints[0], axis=-1).max(axis=1) / clip.look.height_px
        assert reach[-1] < 0.05
        assert reach[:2].max() < 0.05
        assert reach.max() > 0.15


@pytest.mark.parametrize("action", SYNTHETIC_CLASSES)
def test_people_stay_in_the_picture(action):
    for draw in range(60):
        clip = draw_clip(CONFIG, action, "test", draw, draw)
        inside = (clip.joints_px > 0) & (clip.joints_px < clip.size_px)
        assert inside.mean() > 0.99


def test_some_frames_can_be_drawn_without_the_others():
    for action in SYNTHETIC_CLASSES[:2]:
        clip = draw_clip(SMALL, action, "train", 0, 5)
        np.testing.assert_array_equal(clip.render([7, 0]), clip.render()[[7, 0]])


def test_the_names_are_nobody_elses():
    assert len(set(SYNTHETIC_CLASSES)) == 10
    assert not set(SYNTHETIC_CLASSES) & {*PENN_ACTION_CLASSES, *README_SPELLINGS}
    assert ORDER_CLASSES + PIXEL_CLASSES + JOINT_CLASSES == SYNTHETIC_CLASSES


def test_the_reader_finds_every_clip_with_its_class_split_and_subject(root):
    source = PennActionSource(root, SYNTHETIC_CLASSES)
    assert source.skipped == ()
    assert len(source.clips) == SMALL.num_clips == 50
    assert Counter((row.label, row.split) for row in source.clips) == {
        (label, split): count for label in range(10) for split, count in (("train", 3), ("test", 2))
    }
    subjects = {split: {row.subject for row in source.clips if row.split == split} for split in ("train", "test")}
    assert subjects == {"train": {"s000", "s001", "s002"}, "test": {"s003", "s004"}}
    assert [row.label for row in source.clips] == sorted(row.label for row in source.clips), "contiguous, as in Penn"


def test_a_validation_part_holds_other_people_than_the_training_part(root):
    rows = PennActionSource(root, SYNTHETIC_CLASSES).clips
    parts = split_rows(rows, 0.34, seed=0)
    assert len(parts.validation) == 10
    assert len({rows[index].subject for index in parts.validation}) == 1


def test_what_is_read_back_is_what_was_drawn(root):
    source = PennActionSource(root, SYNTHETIC_CLASSES)
    for index in (0, 7, 33, 49):
        row = source.clips[index]
        kind, number = divmod(index, SMALL.clips_per_class)
        drawn = draw_clip(SMALL, SYNTHETIC_CLASSES[kind], row.split, number, draw=index)
        clip = source.read(row, range(row.num_frames), 48)
        error = np.abs(np.stack(clip.frames).astype(int) - drawn.render())
        assert error.mean() < 6
        seen = clip.joints[:, 0, :, 2] == 1
        np.testing.assert_array_equal(seen, drawn.visible == 1)
        places = clip.joints[:, 0, :, :2][seen] * SMALL.size_px
        assert np.abs(places - drawn.joints_px[seen]).max() < 0.5 + 5 * 0.003 * SMALL.size_px


def test_the_ball_is_under_the_right_hand_of_the_label_after_reading_and_cropping():
    """Drawing, label, reader and augmentation agree about where the middle of a pixel is, on average to 0.1 pixel."""
    offsets = []
    crops = AugmentConfig(mode="standard", crop_area=(0.7, 0.9), flip=True)
    for draw in range(20):
        clip = draw_clip(CONFIG, "swing_red_ball", "train", draw, draw)
        label = parse_label(encode_label(clip))
        decoded = DecodedClip(list(clip.render()), label.joints)
        frames, joints = fit(decoded, 112, crops, PENN_ACTION.mirror, np.random.default_rng(draw))
        # The hand that holds it is the mirrored one where the clip was flipped.
        redness = np.clip(frames[..., 0].astype(float) - frames[..., 1:].max(axis=-1) - 60, 0, None)
        rows, columns = np.mgrid[0:112, 0:112] + 0.5
        for red, joint in zip(redness, joints[:, 0], strict=True):
            if red.sum() == 0:
                continue
            ball = np.array([(red * columns).sum(), (red * rows).sum()]) / red.sum()
            hands = joint[5:7]
            hands = hands[(hands[:, 2] > 0) & (np.abs(hands[:, :2] - 0.5) < 0.38).all(axis=1)]
            if len(hands):
                gap = hands[:, :2] * 112 - ball
                offsets.append(gap[np.abs(gap).sum(axis=1).argmin()])
    offsets = np.array([offset for offset in offsets if np.abs(offset).max() < 4])
    assert len(offsets) > 300
    assert np.abs(np.median(offsets, axis=0)).max() < 0.1


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_processes(root, tmp_path):
    write_penn_action(tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(root)


def test_another_seed_gives_other_people(root, tmp_path):
    other = SyntheticConfig(
        seed=1,
        train_subjects=1,
        test_subjects=1,
        train_clips_per_class=1,
        test_clips_per_class=1,
        size_px=48,
        min_frames=16,
        max_frames=16,
    )
    write_penn_action(tmp_path / "other", other, workers=1)
    first = PennActionSource(root, SYNTHETIC_CLASSES)
    assert PennActionSource(tmp_path / "other", SYNTHETIC_CLASSES).fingerprint != first.fingerprint
    people = [draw_clip(config, SYNTHETIC_CLASSES[0], "train", 0, 0).person for config in (SMALL, other)]
    assert people[0] != people[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_folder_is_kept_and_one_with_other_settings_is_never_overwritten(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_penn_action(root, SMALL, workers=1)
    with pytest.raises(DataError, match=r"generated with other settings, or by another version .* delete it"):
        write_penn_action(root, CONFIG, workers=1)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert "generated" in (root / MARKER).read_text()


def test_a_folder_of_somebody_elses_files_is_never_overwritten(tmp_path):
    (tmp_path / "penn").mkdir()
    (tmp_path / "penn" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"no SYNTHETIC\.txt"):
        write_penn_action(tmp_path / "penn", SMALL, workers=1)
    assert contents(tmp_path) == {"penn/thesis.txt": b"years of work"}
    with pytest.raises(DataError, match=r"thesis\.txt is not a folder"):
        write_penn_action(tmp_path / "penn" / "thesis.txt", SMALL, workers=1)


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path, monkeypatch):
    labels = iter([b"", b""])
    monkeypatch.setattr(synthetic, "encode_label", lambda _: next(labels))
    with pytest.raises((StopIteration, RuntimeError)):
        write_penn_action(tmp_path / "people", SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_there_already(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_write_clips", lambda *_: None)
    (tmp_path / "people").mkdir()
    write_penn_action(tmp_path / "people", SMALL, workers=1)
    assert (tmp_path / "people" / MARKER).is_file()


@pytest.mark.parametrize(("theirs", "fails"), [(SMALL, False), (CONFIG, True)])
def test_a_writer_that_comes_second_keeps_the_first_ones_folder(tmp_path, monkeypatch, theirs, fails):
    """The other one finishes while this one draws its last clips."""
    target = tmp_path / "people"

    def other_finishes(*_):
        target.mkdir(exist_ok=True)
        (target / MARKER).write_text(synthetic._marker_text(theirs))

    monkeypatch.setattr(synthetic, "_write_clips", other_finishes)
    if fails:
        with pytest.raises(DataError, match="other settings"):
            write_penn_action(target, SMALL, workers=1)
    else:
        write_penn_action(target, SMALL, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_the_labels_have_the_forms_and_the_quirks_of_real_ones():
    clips = [draw_clip(SMALL, SYNTHETIC_CLASSES[0], "test", number, number) for number in range(400)]
    labels = [scipy.io.loadmat(io.BytesIO(encode_label(clip))) for clip in clips]
    for clip, label in zip(clips, labels, strict=True):
        num_frames = len(clip.visible)
        assert label["x"].shape == label["y"].shape == label["visibility"].shape == (num_frames, 13)
        assert label["action"].tolist() == ["squat_then_wave"]
        assert (label["train"].dtype, label["train"].item()) == (np.int32, -1)
        assert (label["nframes"].dtype, label["nframes"].item()) == (np.uint8, num_frames)
        assert (label["dimensions"].dtype, label["dimensions"].tolist()) == (np.uint16, [[48, 48, num_frames]])
        assert label["visibility"].dtype == np.uint8
        assert label["x"].dtype == (np.uint8 if clip.integer_coded else np.float64)
    hidden = np.concatenate([label["x"][label["visibility"] == 0] for label in labels])
    assert 0.2 < (hidden == 1).mean() < 0.8, "placeholders and guesses"
    assert 8 < sum(label["x"].dtype == np.uint8 for label in labels) < 45
    assert 0.9 < np.mean([clip.visible.mean() for clip in clips]) < 0.995


def test_a_bounding_box_may_be_a_row_short():
    draws = (draw_clip(SMALL, SYNTHETIC_CLASSES[1], "train", draw, draw) for draw in range(5000))
    clip = next(clip for clip in draws if clip.short_bbox)
    label = scipy.io.loadmat(io.BytesIO(encode_label(clip)))
    assert len(label["bbox"]) == label["nframes"].item() - 1
    assert parse_label(encode_label(clip)).num_frames == len(clip.visible)


def test_long_clips_and_large_pictures_need_two_bytes():
    large = SyntheticConfig(size_px=600, min_frames=300, max_frames=300)
    draws = (draw_clip(large, SYNTHETIC_CLASSES[0], "train", draw, draw) for draw in range(200))
    clip = next(clip for clip in draws if clip.integer_coded)
    label = scipy.io.loadmat(io.BytesIO(encode_label(clip)))
    assert (label["nframes"].dtype, label["nframes"].item()) == (np.uint16, 300)
    assert label["y"].dtype == np.uint16
    assert parse_label(encode_label(clip)).joints.shape == (300, 1, 13, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_subjects": 0}, "train_subjects must be at least 1"),
        ({"test_clips_per_class": 0}, "test_clips_per_class must be at least 1"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"size_px": 16}, r"size_px must be in \[32, 1024\]"),
        ({"min_frames": 61}, "min_frames must be in"),
        ({"train_clips_per_class": 1000}, "more than 9999"),
    ],
)
def test_a_setting_outside_its_limits_is_an_error_that_names_it(changed, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**changed)


def test_no_workers_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="workers must be at least 1"):
        write_penn_action(tmp_path / "people", SMALL, workers=0)


def test_the_processes_are_started_afresh(tmp_path, monkeypatch):
    """A forked one would inherit the threads and locks of Ray or of a notebook."""

    def refuse(_workers, context):
        raise RuntimeError(context.get_start_method())

    monkeypatch.setattr(generated_folder, "ProcessPoolExecutor", refuse)
    with pytest.raises(RuntimeError, match="spawn"):
        write_penn_action(tmp_path / "people", SMALL, workers=2)
