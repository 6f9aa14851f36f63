from pathlib import Path

import cv2
import numpy as np

from starlab.pipelines.contact_sheet import BODY_COLORS, GAP_PX, LEFT, RIGHT, contact_sheet, draw_joints, write_contact_sheet
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.skeletons import PENN_ACTION

BLACK = np.zeros((200, 300, 3), np.uint8)


def one_joint(name: str, x: float, y: float, confidence: float = 1.0) -> np.ndarray:
    joints = np.zeros((1, 13, 3), np.float32)
    joints[0, PENN_ACTION.joints.index(name)] = x, y, confidence
    return joints


def test_a_joint_is_drawn_where_its_fractions_say_in_the_colour_of_its_side() -> None:
    for name, color in (("left_wrist", LEFT), ("right_wrist", RIGHT)):
        picture = draw_joints(BLACK, one_joint(name, 0.25, 0.6), PENN_ACTION)
        rows, columns = np.nonzero(picture.any(axis=-1))
        assert abs(columns.mean() + 0.5 - 75) < 0.6
        assert abs(rows.mean() + 0.5 - 120) < 0.6
        assert tuple(picture[120, 75]) == color
    assert not BLACK.any()  # a copy is drawn on


def test_a_joint_that_was_not_seen_and_bones_to_it_are_left_out() -> None:
    assert not draw_joints(BLACK, one_joint("head", 0.5, 0.5, confidence=0), PENN_ACTION).any()
    joints = one_joint("left_shoulder", 0.3, 0.3) + one_joint("left_elbow", 0.6, 0.6)
    with_bone = draw_joints(BLACK, joints, PENN_ACTION)
    assert np.abs(with_bone[90, 135].astype(int) - BODY_COLORS[0]).max() < 20
    joints[0, PENN_ACTION.joints.index("left_elbow"), 2] = 0
    assert not draw_joints(BLACK, joints, PENN_ACTION)[90, 135].any()


def test_a_joint_outside_the_frame_does_not_break_the_picture() -> None:
    assert draw_joints(BLACK, one_joint("head", 3.0, -2.0), PENN_ACTION).shape == BLACK.shape


def test_frames_stand_in_rows_like_a_page() -> None:
    frames = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 20, 30, 3), np.uint8)
    sheet = contact_sheet(frames, np.zeros((5, 1, 13, 3), np.float32), PENN_ACTION, columns=3)
    assert sheet.shape == (2 * 20 + GAP_PX, 3 * 30 + 2 * GAP_PX, 3)
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [sheet[row * (20 + GAP_PX), column * (30 + GAP_PX), 0] for row, column in places] == [1, 2, 3, 4, 5]
    assert (sheet[20 + GAP_PX :, 2 * (30 + GAP_PX) :] == 255).all()


def test_the_written_sheet_shows_the_clip_plain_above_and_augmented_below_the_same_each_time(
    small_source: PennActionSource, tmp_path: Path
) -> None:
    row = small_source.clips[3]
    for name in ("one.png", "other.png"):
        write_contact_sheet(small_source, row, tmp_path / "new" / name, num_frames=6, size_px=48)
    assert (tmp_path / "new/one.png").read_bytes() == (tmp_path / "new/other.png").read_bytes()
    sheet = cv2.imread(str(tmp_path / "new/one.png"))
    assert sheet is not None
    assert sheet.shape[1] == 6 * 48 + 5 * GAP_PX
    half = 48
    assert not (sheet[:half] == sheet[-half:]).all()
