"""`data.yaml` is read strictly, and a skeleton of one's own says who is whose partner."""

from __future__ import annotations

from pathlib import Path

import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.custom.description import DESCRIPTION, describe, skeleton_from_dict, skeleton_to_dict
from starlab.pipelines.skeletons import COCO, NO_JOINTS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in ("raise left arm", "sit", "upright"):
        (tmp_path / label).mkdir()
        (tmp_path / label / f"{label}.mp4").write_bytes(b"")
    (tmp_path / "joints.parquet").write_bytes(b"")
    return tmp_path


def test_without_a_description_there_are_no_joints_and_a_class_that_names_a_side_is_not_mirrored(root: Path) -> None:
    found = describe(root)
    assert found.facts.classes == ("raise left arm", "sit", "upright")
    assert found.facts.skeleton == NO_JOINTS
    assert found.facts.sided_classes == ("raise left arm",)
    assert (found.joints, found.test_fraction, found.split_seed) == (None, 0.2, 0)


@pytest.mark.parametrize(
    ("name", "sided"),
    [
        ("raise_left_arm", True),
        ("turn right", True),
        ("TurnLeft", True),
        ("left-handed", True),
        ("RIGHT", True),
        ("a left, twice", True),
        ("upright", False),
        ("Brighten", False),
        ("leftover", False),
        ("Righteous", False),
        ("theft", False),
    ],
)
def test_a_class_names_a_side_by_a_word_of_its_own(tmp_path: Path, name: str, sided: bool) -> None:
    for label in (name, "sit"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.mp4").write_bytes(b"")
    assert (name in describe(tmp_path).facts.sided_classes) == sided


def test_a_description_gives_classes_joints_skeleton_and_flip(root: Path) -> None:
    (root / DESCRIPTION).write_text(
        "classes: [sit, upright, raise left arm]\njoints: joints.parquet\nskeleton: coco\nmax_bodies: 2\nflip: false\n"
        "sided_classes: []\ntest_fraction: 0.5\nsplit_seed: 3\n"
    )
    found = describe(root)
    assert found.facts.classes == ("sit", "upright", "raise left arm")
    assert (found.facts.skeleton, found.facts.max_bodies, found.facts.may_flip) == (COCO, 2, False)
    assert (found.facts.sided_classes, found.joints) == ((), root / "joints.parquet")
    assert (found.test_fraction, found.split_seed) == (0.5, 3)


def test_a_skeleton_of_ones_own_has_joints_pairs_and_bones(root: Path) -> None:
    (root / DESCRIPTION).write_text(
        "joints: joints.parquet\n"
        "skeleton: {name: arms, joints: [head, left_hand, right_hand], pairs: [[left_hand, right_hand]], "
        "bones: [[head, left_hand], [head, right_hand]]}\n"
    )
    skeleton = describe(root).facts.skeleton
    assert (skeleton.name, skeleton.joints) == ("arms", ("head", "left_hand", "right_hand"))
    assert (skeleton.mirror, skeleton.bones) == ((0, 2, 1), ((0, 1), (0, 2)))
    assert skeleton_from_dict(skeleton_to_dict(skeleton)) == skeleton


ARMS = "joints: joints.parquet\nskeleton: {{joints: [head, left_hand, right_hand], {}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ARMS.format("bones: []"), "skeleton: no pairs, without which a mirrored clip would mix left and right"),
        (ARMS.format("pairs: [[left_hand, right_hnd]]"), "pairs has the unknown name 'right_hnd'; did you mean 'right_hand'"),
        (ARMS.format("pairs: [[left_hand, left_hand]]"), "a joint has one partner, which is another one"),
        (ARMS.format("pairs: [[left_hand, right_hand], [head, left_hand]]"), "a joint has one partner"),
        (ARMS.format("pairs: [left_hand, right_hand]"), "must be a list of pairs"),
        (ARMS.format("pairs: [], bones: [[head, head]]"), "bones has one from head to itself"),
        (ARMS.format("pairs: [], joint: [a]"), "unknown name 'joint'; did you mean 'joints'"),
        ("joints: joints.parquet\nskeleton: {pairs: []}\n", "no joints: list their names"),
        ("joints: joints.parquet\nskeleton: {joints: [a, a], pairs: []}\n", "a list of names, each once"),
        ("joints: joints.parquet\nskeleton: openpose\n", "unknown skeleton 'openpose'"),
        ("joints: joints.parquet\n", "give both, joints .the file. and skeleton"),
        ("skeleton: coco\n", "give both, joints .the file. and skeleton"),
        ("joints: other.parquet\nskeleton: coco\n", "there is no .*other.parquet"),
        ("joints: joints.pkl\nskeleton: coco\n", "must be a .parquet file. Make one .*starlab data joints"),
        ("clases: [sit]\n", "unknown name 'clases'; did you mean 'classes'"),
        ("classes: [sit, upright]\n", "label 'raise left arm', which classes in .* lacks"),
        ("sided_classes: [raise arm]\n", "sided_classes has the unknown name 'raise arm'; did you mean 'raise left arm'"),
        ("test_fraction: 1.5\n", "test_fraction is 1.5; it must be in"),
        ("max_bodies: 0\n", "max_bodies is 0; it must be 1 or more"),
        ("max_bodies: true\n", "max_bodies is True; it must be a whole number"),
        ("flip: 'no'\n", "flip is 'no'; it must be true or false"),
        ("- sit\n", "it must be a mapping"),
        ("a: [\n", "cannot be read"),
        ("flip: !!python/object/apply:os.system [true]\n", "cannot be read"),
    ],
)
def test_a_mistake_in_a_description_is_an_error_that_names_it(root: Path, text: str, message: str) -> None:
    (root / DESCRIPTION).write_text(text)
    with pytest.raises(DataError, match=message):
        describe(root)
