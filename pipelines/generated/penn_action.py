"""A small action data set of generated people, written as a Penn Action folder.

Ten classes in five pairs. Each pair is equal in everything but one respect, so that a model can tell the two apart
only by that respect:

- Three pairs differ only in *order*: the second class is the first one played backwards (fresh draws, with noise,
  light and label errors drawn before the reversal), and everybody rests in the same pose before, between and after.
- One pair differs only in *pixels*: the colour of the ball that is swung.
- One pair differs only in *joints*: the legs act behind an opaque panel, and the labels know them as a
  motion-capture suit would.

docs/data.md shows the proof. The names of the actions are our own; none is a class of a real data set.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from starlab.pipelines.clip import Split
from starlab.pipelines.generated import drawing, people
from starlab.pipelines.generated.drawing import Figure, Look
from starlab.pipelines.generated.folder import check_settings, write_folder
from starlab.pipelines.generated.people import Action, Color, Floats, Person

GENERATOR_VERSION = 1
"""Counts up with every change to what is drawn; part of the marker and of every label, so the fingerprint shows it."""
JPEG_QUALITY = 90
MAT_HEADER = f"MATLAB 5.0 MAT-file, generated people, version {GENERATOR_VERSION}".encode().ljust(116)
"""Replaces scipy's header, which holds the time of day, so that equal seeds give equal bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """What is generated; equal values give equal files, byte for byte."""

    seed: int = 0
    train_subjects: int = 20
    test_subjects: int = 8
    """Other people than those of the training part."""
    train_clips_per_class: int = 80
    test_clips_per_class: int = 32
    size_px: int = 112
    """Side of the square frames."""
    min_frames: int = 40
    max_frames: int = 60
    """Inclusive."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def clips_per_class(self) -> int:
        """Of both parts."""
        return self.train_clips_per_class + self.test_clips_per_class

    @property
    def num_clips(self) -> int:
        """Over all classes and both parts."""
        return self.clips_per_class * len(_CLASSES)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Class:
    name: str
    actions: tuple[Action, ...]
    hidden: tuple[Action, ...] = ()
    """Performed at the same time behind the panel; without any there is no panel."""
    reversed: bool = False
    ball: Color | None = None


_CLASSES = (
    _Class(name="squat_then_wave", actions=(people.squat, people.wave)),
    _Class(name="wave_then_squat", actions=(people.squat, people.wave), reversed=True),
    _Class(name="raise_left_then_right", actions=(people.raise_left, people.raise_right)),
    _Class(name="raise_right_then_left", actions=(people.raise_left, people.raise_right), reversed=True),
    _Class(name="reach_then_kick", actions=(people.reach, people.kick)),
    _Class(name="kick_then_reach", actions=(people.reach, people.kick), reversed=True),
    _Class(name="swing_red_ball", actions=(people.swing,), ball=(215.0, 40.0, 40.0)),
    _Class(name="swing_blue_ball", actions=(people.swing,), ball=(40.0, 70.0, 215.0)),
    _Class(name="legs_apart_behind_panel", actions=(people.flap,), hidden=(people.legs_apart,)),
    _Class(name="knees_up_behind_panel", actions=(people.flap,), hidden=(people.knees_up,)),
)

SYNTHETIC_CLASSES = tuple(action.name for action in _CLASSES)
"""Neighbours 0 and 1, 2 and 3, … are the pairs."""
ORDER_CLASSES = SYNTHETIC_CLASSES[:6]
"""Classes that differ only in the order of their frames."""
PIXEL_CLASSES = SYNTHETIC_CLASSES[6:8]
"""Classes that differ only in pixels."""
JOINT_CLASSES = SYNTHETIC_CLASSES[8:]
"""Classes that differ only in joints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticClip:
    """One clip before it is rendered; T frames, J = 13 joints."""

    action: str
    split: Split
    subject: int
    joints_px: Floats
    """(T, J, 2): x, y from the picture's top left edge."""
    labelled_px: Floats
    """(T, J, 2): the same with an annotator's errors, or a guess or a placeholder where not visible; counted from 1,
    as Penn Action does."""
    visible: NDArray[np.uint8]
    """(T, J), 0 or 1."""
    integer_coded: bool
    """Whether the coordinates are rounded to small unsigned integers, as in one of 18 real files."""
    short_bbox: bool
    """Whether the bounding boxes lack their last row, as in two real files."""
    person: Person
    look: Look
    size_px: int
    ball: Color | None
    panel: bool
    reversed: bool
    render_seed: np.random.SeedSequence
    scene: tuple[Figure, ...] = ()
    """Everybody in the picture, the labelled person among them; empty where that is the only person."""

    def render(self, only: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """The frames of the given numbers (all by default): uint8 (frames, size_px, size_px, 3), RGB."""
        last = len(self.joints_px) - 1
        numbers = range(last + 1) if only is None else only
        joints = self.joints_px
        if self.reversed:  # light and noise are drawn forwards, as the motion is
            joints, numbers = joints[::-1], [last - number for number in numbers]
        rng = np.random.default_rng(self.render_seed)
        if self.scene:
            return np.stack(list(drawing.render_scene(self.scene, self.look, self.size_px, self.size_px, rng, numbers)))
        return drawing.render(joints, self.person, self.look, self.size_px, drawing.Props(self.ball, self.panel), rng, numbers)


def draw_clip(config: SyntheticConfig, action: str, split: Split, number: int, draw: int) -> SyntheticClip:
    """Draw one clip.

    Args:
        config: Sizes and seed.
        action: One of `SYNTHETIC_CLASSES`.
        split: The part whose subjects act.
        number: Which of the split's clips of this action; decides the subject.
        draw: Which random numbers; two actions of a pair drawn with the same ones differ only in what the pair is
            about.
    """
    kind = _CLASSES[SYNTHETIC_CLASSES.index(action)]
    subjects = config.train_subjects if split == "train" else config.test_subjects
    subject = number % subjects + (config.train_subjects if split == "test" else 0)
    person = people.draw_person(np.random.default_rng([config.seed, 0, subject]))
    motion_seed, hidden_seed, look_seed, label_seed, render_seed = np.random.SeedSequence([config.seed, 1, draw]).spawn(5)

    motion = np.random.default_rng(motion_seed)
    num_frames = int(motion.integers(config.min_frames, config.max_frames + 1))
    pose = people.rest_pose(person, num_frames, motion)
    people.act(pose, kind.actions, motion)
    people.act(pose, kind.hidden, np.random.default_rng(hidden_seed))
    look = drawing.draw_look(config.size_px, np.random.default_rng(look_seed))
    joints = drawing.place(people.joint_positions(person, pose, seated=bool(kind.hidden)), look)

    labels = np.random.default_rng(label_seed)
    labelled, visible = annotate(joints, config.size_px, labels)
    integer_coded, short_bbox = labels.random() < 1 / 18, labels.random() < 0.002

    step = -1 if kind.reversed else 1
    return SyntheticClip(
        action=action,
        split=split,
        subject=subject,
        joints_px=joints[::step],
        labelled_px=labelled[::step],
        visible=visible[::step],
        integer_coded=bool(integer_coded),
        short_bbox=bool(short_bbox),
        person=person,
        look=look,
        size_px=config.size_px,
        ball=kind.ball,
        panel=bool(kind.hidden),
        reversed=kind.reversed,
        render_seed=render_seed,
    )


def annotate(joints_px: Floats, size_px: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.uint8]]:
    """Labels of joints (T, J, 2) as an annotator makes them: `SyntheticClip.labelled_px` and `visible`."""
    labelled = joints_px + 0.5 + rng.normal(0, 0.003 * size_px, joints_px.shape)
    num_frames, num_joints = joints_px.shape[:2]
    visible = np.ones((num_frames, num_joints), np.uint8)
    for _ in range(rng.poisson(0.7)):  # a joint that the annotators did not see for a while
        joint, length = rng.integers(num_joints), int(num_frames * rng.uniform(0.1, 0.5))
        start = rng.integers(num_frames - length + 1)
        visible[start : start + length, joint] = 0
        guess = rng.random() < 0.5
        labelled[start : start + length, joint] += rng.normal(0, 0.03 * size_px, 2)
        if not guess:
            labelled[start : start + length, joint] = 1.0
    return labelled, visible


def write_penn_action(root: Path, config: SyntheticConfig, workers: int) -> None:
    """Write the whole data set as a Penn Action folder, or keep an existing one.

    The folder appears under its name only when it is complete. Clips are numbered class by class, as in Penn Action.

    Args:
        root: The folder to write.
        config: What to generate.
        workers: Processes that draw (started afresh, so a script must guard its entry with `__name__`); 1 draws in
            this one. The files do not depend on it.

    Raises:
        DataError: `root` exists and was not generated from this `config`.
    """
    write_folder(root, _marker_text(config), functools.partial(_write_clips, config), config.num_clips, workers)


def _marker_text(config: SyntheticConfig) -> str:
    return (
        "Every clip in this folder is generated: no person was filmed, and no class is one of Penn Action.\n"
        f"generator version {GENERATOR_VERSION}\n"
        f"{json.dumps(asdict(config), sort_keys=True)}\n"
    )


def _write_clips(config: SyntheticConfig, root: Path, indices: range) -> None:
    (root / "labels").mkdir(exist_ok=True)
    (root / "frames").mkdir(exist_ok=True)
    for index in indices:
        kind, number = divmod(index, config.clips_per_class)
        split: Split = "train" if number < config.train_clips_per_class else "test"
        write_clip(root, index, draw_clip(config, SYNTHETIC_CLASSES[kind], split, number, draw=index))


def write_clip(root: Path, index: int, clip: SyntheticClip) -> None:
    """Write frames and label of clip number `index` below a Penn Action folder that has its two folders."""
    clip_id = f"{index + 1:04d}"
    folder = root / "frames" / clip_id
    folder.mkdir()
    for frame_number, frame in enumerate(clip.render(), start=1):
        jpeg = simplejpeg.encode_jpeg(frame, quality=JPEG_QUALITY, colorsubsampling="420")
        with open(f"{folder}/{frame_number:06d}.jpg", "wb", buffering=0) as file:  # noqa: PTH123 (50 per clip)
            file.write(jpeg)
    (root / "labels" / f"{clip_id}.mat").write_bytes(encode_label(clip))


def encode_label(clip: SyntheticClip) -> bytes:
    """The bytes of a `labels/*.mat` file, with the quirks of the real ones (docs/data.md) and a `subject` field."""
    num_frames = len(clip.labelled_px)
    corners = [clip.joints_px.min(axis=1) - 0.05 * clip.size_px, clip.joints_px.max(axis=1) + 0.05 * clip.size_px]
    bbox = np.clip(np.concatenate(corners, axis=1), 1, clip.size_px)
    code = _smallest_unsigned if clip.integer_coded else np.asarray
    file = io.BytesIO()
    import scipy.io  # as in pipelines/penn_action.py

    scipy.io.savemat(
        cast(Any, file),
        {
            "action": clip.action,
            "pose": "front",
            "x": code(clip.labelled_px[..., 0]),
            "y": code(clip.labelled_px[..., 1]),
            "visibility": clip.visible,
            "train": np.array([[1 if clip.split == "train" else -1]], np.int32),
            "bbox": code(bbox[:-1] if clip.short_bbox else bbox),
            "dimensions": np.array([[clip.size_px, clip.size_px, num_frames]], np.uint16),
            "nframes": np.array([[num_frames]], np.uint8 if num_frames < 256 else np.uint16),
            "subject": f"s{clip.subject:03d}",
        },
        do_compression=True,
    )
    return MAT_HEADER + file.getvalue()[len(MAT_HEADER) :]


def _smallest_unsigned(values: Floats) -> NDArray[np.uint8] | NDArray[np.uint16]:
    rounded = np.rint(np.maximum(values, 0))
    return rounded.astype(np.uint8) if rounded.max() < 256 else rounded.astype(np.uint16)
