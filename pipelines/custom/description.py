"""What is known of a data set of one's own before a frame is read: its classes and `data.yaml`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from starlab.pipelines.clip import DataError
from starlab.pipelines.custom.listing import ListedClip, read_clips
from starlab.pipelines.skeletons import COCO, NO_JOINTS, NTU, PENN_ACTION, Skeleton

DESCRIPTION = "data.yaml"
SKELETONS = {skeleton.name: skeleton for skeleton in (COCO, PENN_ACTION, NTU)}
KEYS = (
    "classes",
    "joints",
    "skeleton",
    "max_bodies",
    "flip",
    "sided_classes",
    "test_fraction",
    "split_seed",
    "clamp_confidence",
)
SKELETON_KEYS = ("name", "joints", "pairs", "bones")

_SIDE = re.compile(r"(?<![A-Za-z])(?:left|LEFT|right|RIGHT)(?![a-z])|(?:Left|Right)(?![a-z])")
"""A word of a class's name that is a side: raise_left, TurnRight, but not upright."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomData:
    """What a run must know of a data set of one's own, so that its stored spec says it without the files."""

    classes: tuple[str, ...]
    """In the order of their labels."""
    skeleton: Skeleton = NO_JOINTS
    """Of its joints; `NO_JOINTS` where there are only pictures."""
    max_bodies: int = 1
    """The most people of a clip that are used."""
    may_flip: bool = True
    """Whether a mirrored clip is a clip that could be real."""
    sided_classes: tuple[str, ...] = ()
    """Classes that name a side: a mirrored clip would carry the wrong label."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"data.custom.classes is {list(self.classes)}; it must name 2 or more, each once")
        if self.max_bodies < 1:
            raise ValueError(f"data.custom.max_bodies is {self.max_bodies}; it must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A folder's list and its `data.yaml`, checked."""

    facts: CustomData
    clips: tuple[ListedClip, ...]
    """Sorted by clip id."""
    joints: Path | None
    """The file of joints."""
    clamp_confidence: bool
    test_fraction: float
    """Share of the clips that is tested on, where the list does not say."""
    split_seed: int
    """Draws them."""


def describe(root: Path) -> Description:
    """Read the list of a folder and its `data.yaml`; no video is opened.

    Raises:
        DataError: one of them has a mistake; says which.
    """
    path = root / DESCRIPTION
    given = _read(path)
    clips = tuple(read_clips(root))
    classes = _classes(given.get("classes"), clips, path)
    sided = given.get("sided_classes")
    if sided is None:
        sided = [name for name in classes if _SIDE.search(name)]
    for name in _names(sided, "sided_classes", path):
        _known(name, classes, "sided_classes", path)
    joints = _is(given.get("joints"), str, "the name of a Parquet file", "joints", path)
    if joints is not None and not joints.endswith(".parquet"):
        raise DataError(
            f"{path}: joints is {joints!r}; it must be a .parquet file. Make one of a pickle or of JSON files: "
            f"starlab data joints {root / joints} {root / 'joints.parquet'}"
        )
    if joints is not None and not (root / joints).is_file():
        raise DataError(f"{path}: joints is {joints!r}, but there is no {root / joints}")
    skeleton = given.get("skeleton")
    if (joints is None) != (skeleton is None):
        raise DataError(
            f"{path}: give both, joints (the file) and skeleton (whose joints it holds: {', '.join(SKELETONS)}, or one of "
            "your own), or neither"
        )
    fraction = _is(given.get("test_fraction", 0.2), (int, float), "a share in (0, 1)", "test_fraction", path)
    if not 0 < fraction < 1:
        raise DataError(f"{path}: test_fraction is {fraction}; it must be in (0, 1)")
    bodies = _is(given.get("max_bodies", 1), int, "a whole number, 1 or more", "max_bodies", path)
    if bodies < 1:
        raise DataError(f"{path}: max_bodies is {bodies}; it must be 1 or more")
    return Description(
        facts=CustomData(
            classes=classes,
            skeleton=NO_JOINTS if skeleton is None else read_skeleton(skeleton, str(path)),
            max_bodies=bodies,
            may_flip=_is(given.get("flip", True), bool, "true or false", "flip", path),
            sided_classes=tuple(sided),
        ),
        clips=clips,
        joints=None if joints is None else root / joints,
        clamp_confidence=_is(given.get("clamp_confidence", False), bool, "true or false", "clamp_confidence", path),
        test_fraction=float(fraction),
        split_seed=_is(given.get("split_seed", 0), int, "a whole number", "split_seed", path),
    )


def read_skeleton(given: object, where: str) -> Skeleton:
    """A skeleton by its name, or one of one's own: a mapping of `joints`, `pairs`, `bones` and a `name`.

    Raises:
        DataError: it is neither, or the mapping has a mistake.
    """
    if isinstance(given, str):
        if given not in SKELETONS:
            near = difflib.get_close_matches(given, SKELETONS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise DataError(
                f"{where}: unknown skeleton '{given}'; {hint}there are {', '.join(SKELETONS)}, or describe your own"
            )
        return SKELETONS[given]
    where = f"{where}, skeleton"
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: it must be a name ({', '.join(SKELETONS)}) or a mapping of {', '.join(SKELETON_KEYS)}")
    for key in given:
        _known(str(key), SKELETON_KEYS, "the mapping", where)
    if "joints" not in given:
        raise DataError(f"{where}: no joints: list their names in the order in which the file has them")
    joints = _names(given["joints"], "joints", where)
    if "pairs" not in given:
        raise DataError(
            f"{where}: no pairs, without which a mirrored clip would mix left and right: list them, e.g. "
            "[[left_hand, right_hand]], or write pairs: [] if no joint has a partner"
        )
    mirror = list(range(len(joints)))
    for left, right in _pairs(given["pairs"], joints, "pairs", where):
        if left == right or mirror[left] != left or mirror[right] != right:
            raise DataError(
                f"{where}: pairs has {joints[left]} with {joints[right]}; a joint has one partner, which is another one"
            )
        mirror[left], mirror[right] = right, left
    bones = tuple(_pairs(given.get("bones") or [], joints, "bones", where))
    for first, second in bones:
        if first == second:
            raise DataError(f"{where}: bones has one from {joints[first]} to itself")
    return Skeleton(name=str(given.get("name", "custom")), joints=joints, mirror=tuple(mirror), bones=bones)


def skeleton_to_dict(skeleton: Skeleton) -> dict[str, Any]:
    """The mapping that `skeleton_from_dict` reads, in plain JSON types."""
    return {
        "name": skeleton.name,
        "joints": list(skeleton.joints),
        "mirror": list(skeleton.mirror),
        "bones": [list(bone) for bone in skeleton.bones],
    }


def skeleton_from_dict(given: Mapping[str, Any]) -> Skeleton:
    """The skeleton in a store's manifest."""
    bones = tuple((int(first), int(second)) for first, second in given["bones"])
    return Skeleton(name=given["name"], joints=tuple(given["joints"]), mirror=tuple(given["mirror"]), bones=bones)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise DataError(f"{path}: it must be a mapping of {', '.join(KEYS)}")
    for key in given:
        _known(str(key), KEYS, "the file", path)
    return given


def _classes(given: object, clips: Sequence[ListedClip], path: Path) -> tuple[str, ...]:
    labels = sorted({clip.label for clip in clips})
    if given is None:
        return tuple(labels)
    classes = _names(given, "classes", path)
    for label in labels:
        if label not in classes:
            line = next(clip.line for clip in clips if clip.label == label)
            near = difflib.get_close_matches(label, classes, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(classes)}"
            raise DataError(f"line {line} of the list has the label '{label}', which classes in {path} lacks; {hint}")
    return classes


def _names(given: object, key: str, where: object) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given) or len(set(given)) < len(given):
        raise DataError(f"{where}: {key} is {given!r}; it must be a list of names, each once")
    if not given and key == "joints":
        raise DataError(f"{where}: joints is empty")
    return tuple(given)


def _pairs(given: object, joints: Sequence[str], key: str, where: str) -> list[tuple[int, int]]:
    if not isinstance(given, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        raise DataError(f"{where}: {key} is {given!r}; it must be a list of pairs of joints' names")
    for name in (name for pair in given for name in pair):
        _known(str(name), joints, key, where)
    return [(joints.index(first), joints.index(second)) for first, second in given]


def _known(name: str, known: Sequence[str], key: str, where: object) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        raise DataError(f"{where}: {key} has the unknown name '{name}'; {hint}")


def _is(value: Any, kind: type | tuple[type, ...], must: str, key: str, where: object) -> Any:
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if value is not None and not fits:
        raise DataError(f"{where}: {key} is {value!r}; it must be {must}")
    return value
