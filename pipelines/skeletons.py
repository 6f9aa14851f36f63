"""Joint names, left/right partners and bones of the skeletons that the data sets come with.

Read this about left and right before you flip. Both skeletons name sides as they appear *in the picture of a person facing
the camera*. Penn Action's index 1 ("left_shoulder" in most public code, and here) is image-left in 95 % of the clips
labelled `front` and image-right in 76 % of those labelled `back`, so it is the anatomically *right* shoulder. The
projected Kinect skeletons of NTU behave the same, so the two data sets agree with each other. Pose estimators
trained on COCO are the opposite: their "left" is the person's own left. A flip needs only the partners, which are the
same under both readings; swap the names if you mix in estimated poses.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """The joints of one body, in the order in which a data set stores them."""

    name: str
    joints: tuple[str, ...]
    """One name per joint; its position is the joint's index."""
    mirror: tuple[int, ...]
    """For each joint the index of its left/right partner, itself for a joint on the body's axis."""
    bones: tuple[tuple[int, int], ...]
    """Pairs of joint indices that a line joins when the body is drawn."""

    def __post_init__(self) -> None:
        count = len(self.joints)
        if len(self.mirror) != count or any(
            not 0 <= partner < count or self.mirror[partner] != joint for joint, partner in enumerate(self.mirror)
        ):
            raise ValueError(f"mirror of skeleton {self.name!r} must pair its {count} joints, got {self.mirror}")
        if any(not (0 <= a < count and 0 <= b < count and a != b) for a, b in self.bones):
            raise ValueError(f"bones of skeleton {self.name!r} must join two of its {count} joints, got {self.bones}")


PENN_ACTION = Skeleton(
    name="penn_action",
    joints=(
        "head",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    mirror=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11),
    bones=(
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
        (3, 5),
        (2, 4),
        (4, 6),
        (1, 7),
        (2, 8),
        (7, 8),
        (7, 9),
        (9, 11),
        (8, 10),
        (10, 12),
    ),
)
"""The 13 joints of a Penn Action label (its README does not state the order; see the module text for the sides)."""

NTU = Skeleton(
    name="ntu",
    joints=(
        "base_spine",
        "mid_spine",
        "neck",
        "head",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "left_hand",
        "right_shoulder",
        "right_elbow",
        "right_wrist",
        "right_hand",
        "left_hip",
        "left_knee",
        "left_ankle",
        "left_foot",
        "right_hip",
        "right_knee",
        "right_ankle",
        "right_foot",
        "upper_spine",
        "left_hand_tip",
        "left_thumb",
        "right_hand_tip",
        "right_thumb",
    ),
    mirror=(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 20, 23, 24, 21, 22),
    bones=(
        (0, 1),
        (1, 20),
        (20, 2),
        (2, 3),
        (20, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (20, 8),
        (8, 9),
        (9, 10),
        (10, 11),
        (0, 12),
        (12, 13),
        (13, 14),
        (14, 15),
        (0, 16),
        (16, 17),
        (17, 18),
        (18, 19),
        (7, 21),
        (7, 22),
        (11, 23),
        (11, 24),
    ),
)
"""The 25 joints of a Kinect v2 body in an NTU RGB+D `.skeleton` file (index 0 is joint 1 of the authors' list)."""

COCO = Skeleton(
    name="coco",
    joints=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    mirror=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    bones=(
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (5, 6),
        (5, 7),
        (7, 9),
        (6, 8),
        (8, 10),
        (5, 11),
        (6, 12),
        (11, 12),
        (11, 13),
        (13, 15),
        (12, 14),
        (14, 16),
    ),
)
"""The 17 keypoints of the COCO data set, in its order, which most pose estimators return; left is the person's own."""

NO_JOINTS = Skeleton(name="none", joints=("none",), mirror=(0,), bones=())
"""For data without joints: one joint that is never seen, so that arrays keep their form. A model of pixels alone takes it."""
