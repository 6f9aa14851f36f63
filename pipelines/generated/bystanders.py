"""Generated clips of two or three people, written as a Penn Action folder: who acts is known from the joints.

Four classes, by what the actor does. Each bystander beside the actor does another one of the other three, so that the picture
always shows two or three of the four actions. The joints are those of the actor alone. In the pixels the actor wears a red cap
and a bystander a blue one, each a few pixels large. A model that finds the actor finds the class, but the class does not say
where to look.

So the pose that tells the classes apart is drawn, unlike that of `penn_action.JOINT_CLASSES`: a pose estimator can be learned.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from starlab.pipelines.clip import Split
from starlab.pipelines.generated import drawing, people
from starlab.pipelines.generated.drawing import Figure
from starlab.pipelines.generated.folder import check_settings, write_folder
from starlab.pipelines.generated.penn_action import SyntheticClip, annotate, write_clip
from starlab.pipelines.generated.people import Action, Color

GENERATOR_VERSION = 1
"""Counts up with every change to what is drawn; part of the marker."""
ACTOR_CAP: Color = (215.0, 40.0, 40.0)
BYSTANDER_CAP: Color = (40.0, 70.0, 215.0)
SMALLER = 0.62
"""Height of these people over that of a person who is alone in the picture."""
_PLACES = {1: [0.27, 0.73], 2: [0.18, 0.5, 0.82], 3: [0.14, 0.38, 0.62, 0.86]}
"""Where people stand, as shares of the picture's width, by the number of bystanders."""

_ACTIONS: dict[str, Action] = {
    "actor_squats": people.squat,
    "actor_kicks": people.kick,
    "actor_flaps": people.flap,
    "actor_reaches": people.reach,
}
BYSTANDER_CLASSES = tuple(_ACTIONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticBystandersConfig:
    """What is generated; equal values give equal files, byte for byte."""

    seed: int = 0
    train_subjects: int = 20
    test_subjects: int = 8
    """Other actors than those of the training part. Each bystander is in one clip."""
    train_clips_per_class: int = 90
    test_clips_per_class: int = 64
    size_px: int = 96
    """Side of the square frames."""
    min_frames: int = 24
    max_frames: int = 32
    """Inclusive."""
    bystanders: int = 1
    """People beside the actor, 1 to 3, each with another action. A model that does not know who acts is right half, a third or
    a quarter of the time at best."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.bystanders not in _PLACES:
            raise ValueError(f"bystanders must be 1, 2 or 3, got {self.bystanders}")

    @property
    def clips_per_class(self) -> int:
        """Of both parts."""
        return self.train_clips_per_class + self.test_clips_per_class

    @property
    def num_clips(self) -> int:
        """Over all classes and both parts."""
        return self.clips_per_class * len(BYSTANDER_CLASSES)


def draw_clip(config: SyntheticBystandersConfig, action: str, split: Split, number: int, draw: int) -> SyntheticClip:
    """Draw one clip.

    Args:
        config: Sizes and seed.
        action: What the actor does, one of `BYSTANDER_CLASSES`.
        split: The part whose subjects act.
        number: Which of the split's clips of this action; decides the subject.
        draw: Which random numbers.
    """
    subjects = config.train_subjects if split == "train" else config.test_subjects
    subject = number % subjects + (config.train_subjects if split == "test" else 0)
    scene_seed, label_seed, render_seed, *figure_seeds = np.random.SeedSequence([config.seed, 1, draw]).spawn(
        4 + config.bystanders
    )
    scene = np.random.default_rng(scene_seed)
    num_frames = int(scene.integers(config.min_frames, config.max_frames + 1))
    shown = [action]
    for _ in range(config.bystanders):
        shown.append(str(scene.choice([name for name in BYSTANDER_CLASSES if name not in shown])))
    places = scene.permutation(_PLACES[config.bystanders])
    drift_px = scene.uniform(-0.02, 0.02, 2) * config.size_px
    figures = []
    caps = [ACTOR_CAP] + config.bystanders * [BYSTANDER_CAP]
    for does, side, cap, seed in zip(shown, places, caps, figure_seeds, strict=True):
        rng = np.random.default_rng(seed)
        alone = does == action
        person = people.draw_person(np.random.default_rng([config.seed, 0, subject]) if alone else rng)
        pose = people.rest_pose(person, num_frames, rng)
        people.act(pose, (_ACTIONS[does],), rng)
        look = drawing.draw_look(config.size_px, rng)
        feet = (float(side + rng.uniform(-0.04, 0.04)) * config.size_px, look.feet_px[1] - rng.uniform(0, 0.2) * config.size_px)
        look = replace(
            look, height_px=SMALLER * look.height_px, feet_px=feet, drift_px=(float(drift_px[0]), float(drift_px[1]))
        )
        figures.append(Figure(drawing.place(people.joint_positions(person, pose, seated=False), look), person, look, cap))
    actor = figures[0]
    labelled, visible = annotate(actor.joints_px, config.size_px, np.random.default_rng(label_seed))
    in_front = figures if scene.random() < 0.5 else figures[::-1]
    return SyntheticClip(
        action=action,
        split=split,
        subject=subject,
        joints_px=actor.joints_px,
        labelled_px=labelled,
        visible=visible,
        integer_coded=False,
        short_bbox=False,
        person=actor.person,
        look=actor.look,
        size_px=config.size_px,
        ball=None,
        panel=False,
        reversed=False,
        render_seed=render_seed,
        scene=tuple(in_front),
    )


def write_bystanders(root: Path, config: SyntheticBystandersConfig, workers: int) -> None:
    """Write the whole data set as a Penn Action folder, or keep an existing one (see `write_folder`).

    Raises:
        DataError: `root` exists and was not generated from this `config`.
    """
    text = (
        "Every clip in this folder is generated: no person was filmed, and no class is one of Penn Action.\n"
        f"{1 + config.bystanders} people, generator version {GENERATOR_VERSION}\n"
        f"{json.dumps(asdict(config), sort_keys=True)}\n"
    )
    write_folder(root, text, functools.partial(_write_clips, config), config.num_clips, workers)


def _write_clips(config: SyntheticBystandersConfig, root: Path, indices: range) -> None:
    (root / "labels").mkdir(exist_ok=True)
    (root / "frames").mkdir(exist_ok=True)
    for index in indices:
        kind, number = divmod(index, config.clips_per_class)
        split: Split = "train" if number < config.train_clips_per_class else "test"
        write_clip(root, index, draw_clip(config, BYSTANDER_CLASSES[kind], split, number, draw=index))
