"""Generated clips of two people: what is labelled, what is drawn, and what tells the classes apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.generated.bystanders import (
    ACTOR_CAP,
    BYSTANDER_CAP,
    BYSTANDER_CLASSES,
    SyntheticBystandersConfig,
    draw_clip,
    write_bystanders,
)
from starlab.pipelines.penn_action import PennActionSource

CONFIG = SyntheticBystandersConfig()
SMALL = SyntheticBystandersConfig(
    train_subjects=2, test_subjects=1, train_clips_per_class=2, test_clips_per_class=1, size_px=48, min_frames=16, max_frames=18
)


def middle_of(frame: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """The middle, x and y, of the pixels nearest to a colour."""
    distance = np.abs(frame.astype(float) - color).sum(-1)
    rows, columns = np.nonzero(distance < 150)
    return np.array([columns.mean(), rows.mean()]) + 0.5


@pytest.mark.parametrize("action", BYSTANDER_CLASSES)
def test_the_actor_wears_the_red_cap_and_has_the_joints(action: str) -> None:
    for draw in range(6):
        clip = draw_clip(CONFIG, action, "train", draw, draw)
        frame = clip.render([0])[0]
        head, other = middle_of(frame, ACTOR_CAP), middle_of(frame, BYSTANDER_CAP)
        assert np.linalg.norm(head - clip.joints_px[0, 0]) < 5
        assert np.linalg.norm(other - clip.joints_px[0, 0]) > 20
        assert len(clip.scene) == 2


@pytest.mark.parametrize("bystanders", [2, 3])
def test_bystanders_each_do_another_action_and_wear_blue_caps(bystanders: int) -> None:
    config = SyntheticBystandersConfig(bystanders=bystanders)
    places = Counter[int]()
    for draw in range(60):
        clip = draw_clip(config, "actor_kicks", "train", draw, draw)
        heads = sorted(clip.scene, key=lambda figure: figure.joints_px[0, 0, 0])
        assert sorted(figure.cap for figure in heads) == sorted([ACTOR_CAP, *bystanders * [BYSTANDER_CAP]])
        assert all(figure.joints_px[:, 0].min() > 0 and figure.joints_px[:, 0].max() < config.size_px for figure in heads)
        gaps = np.diff([figure.joints_px[0, 0, 0] for figure in heads])
        assert (gaps > {2: 10, 3: 8}[bystanders]).all()  # a head is about 8 px wide
        places[[figure.cap for figure in heads].index(ACTOR_CAP)] += 1
    assert all(places[place] >= 30 // (1 + bystanders) for place in range(1 + bystanders)), places


def test_bystanders_do_another_action_and_sides_and_depth_do_not_tell_the_class() -> None:
    left, front = Counter[str](), Counter[str]()
    for action in BYSTANDER_CLASSES:
        for draw in range(100):
            clip = draw_clip(CONFIG, action, "train", draw, 1000 * BYSTANDER_CLASSES.index(action) + draw)
            actor = next(index for index, figure in enumerate(clip.scene) if figure.cap == ACTOR_CAP)
            heads = [figure.joints_px[0, 0, 0] for figure in clip.scene]
            left[action] += heads[actor] < heads[1 - actor]
            front[action] += actor == 0
    for counts in (left, front):
        assert all(32 <= counts[action] <= 68 for action in BYSTANDER_CLASSES), counts


def test_people_are_small_and_inside_the_picture_with_their_heads() -> None:
    for draw in range(40):
        clip = draw_clip(CONFIG, BYSTANDER_CLASSES[draw % 4], "test", draw, draw)
        for figure in clip.scene:
            assert figure.look.height_px < 0.5 * CONFIG.size_px
            assert (figure.joints_px[:, 0] > 0).all()
            assert (figure.joints_px[:, 0] < CONFIG.size_px).all()


def test_equal_settings_write_equal_files_which_the_penn_action_reader_reads(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_bystanders(tmp_path / name, SMALL, workers=1)
    one, two = (PennActionSource(tmp_path / name, BYSTANDER_CLASSES) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert Counter((clip.split, clip.label) for clip in one.clips) == {
        (split, label): count for split, count in (("train", 2), ("test", 1)) for label in range(4)
    }
    decoded = one.read(one.clips[0], [0, 5], 48)
    assert decoded.joints.shape == (2, 1, 13, 3)
    write_bystanders(tmp_path / "one", SMALL, workers=1)  # kept
    with pytest.raises(DataError, match="generated with other settings"):
        write_bystanders(tmp_path / "one", CONFIG, workers=1)


def test_settings_out_of_range_are_refused() -> None:
    for change in (
        {"seed": -1},
        {"size_px": 8},
        {"min_frames": 8},
        {"test_subjects": 0},
        {"bystanders": 4},
        {"train_clips_per_class": 9999},
    ):
        with pytest.raises(ValueError, match=next(iter(change)) if change != {"train_clips_per_class": 9999} else "9999"):
            SyntheticBystandersConfig(**change)
