"""A small action data set of generated people, written in NTU RGB+D's file formats.

Six classes: three of one person, three of two. Two pairs differ only in order, as in penn_action.py: the second class is the
first one played backwards. The action numbers are A901 and up, which no real data set uses, and the folder has a
`SYNTHETIC.txt`. The skeletons have the mistakes of a Kinect: frames without bodies, people who return under a new body id at
different moments, a chair taken for a person, a body of a few frames, and one clip without any body.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.generated import drawing, people
from starlab.pipelines.generated.drawing import Figure
from starlab.pipelines.generated.folder import write_folder
from starlab.pipelines.generated.kinect import SensedBody, encode_skeleton, kinect_joints, sense
from starlab.pipelines.generated.people import Action, Floats, Pose
from starlab.pipelines.ntu_names import XSUB60_TRAIN, NtuName

GENERATOR_VERSION = 2
"""Counts up with every change to what is drawn; part of the marker and of every video."""
FRAME_RATE = 30
MISSING_LIST = "NTU_RGBD120_samples_with_missing_skeletons.txt"
TEST_PERFORMERS = tuple(number for number in range(1, 41) if number not in XSUB60_TRAIN)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticNtuConfig:
    """What is generated; equal values give equal files, byte for byte, from the same release of the encoder."""

    seed: int = 0
    train_performers: int = 8
    """Each performs every action once, before every camera. Their numbers are those of cross-subject's training part."""
    test_performers: int = 2
    cameras: int = 3
    height_px: int = 1080
    """Of the videos, 16 wide to 9 high: 1080 as in NTU RGB+D, a smaller multiple of 18 for a quick try. Skeletons count in
    pixels of 1920×1080 all the same."""
    min_frames: int = 40
    """At least 40, so that a person is seen long enough on each side of a gap to be kept."""
    max_frames: int = 60
    """Inclusive."""

    def __post_init__(self) -> None:
        for name, limit in (("train_performers", len(XSUB60_TRAIN)), ("test_performers", len(TEST_PERFORMERS)), ("cameras", 3)):
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be in [1, {limit}], got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if not 72 <= self.height_px <= 1080 or self.height_px % 18:
            raise ValueError(f"height_px must be a multiple of 18 in [72, 1080], got {self.height_px}")
        if not 40 <= self.min_frames <= self.max_frames:
            raise ValueError(f"min_frames must be in [40, max_frames], got {self.min_frames} and {self.max_frames}")

    @property
    def width_px(self) -> int:
        """Of the videos."""
        return self.height_px * 16 // 9

    def names(self) -> tuple[NtuName, ...]:
        """Every clip; the last one is the clip without a body."""
        performers = sorted(XSUB60_TRAIN)[: self.train_performers] + list(TEST_PERFORMERS[: self.test_performers])
        names = [
            NtuName(setup=1 + place % 2, camera=camera, performer=performer, replication=1, action=_number(kind.name))
            for kind in _CLASSES
            for place, performer in enumerate(performers)
            for camera in range(1, self.cameras + 1)
        ]
        return (*names, replace(names[0], replication=2))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Class:
    name: str
    actions: tuple[tuple[Action, ...], ...]
    """One sequence per person; those of several people keep step with each other."""
    reversed: bool = False


def _watch(_pose: Pose, _strength: Floats, _progress: Floats, _rng: np.random.Generator) -> None:
    """Stand still while the other person acts."""


_CLASSES = (
    _Class(name="A901_squat_then_wave", actions=((people.squat, people.wave),)),
    _Class(name="A902_wave_then_squat", actions=((people.squat, people.wave),), reversed=True),
    _Class(name="A903_flap_arms", actions=((people.flap,),)),
    _Class(name="A951_left_waves_then_right", actions=((people.wave, _watch), (_watch, people.wave))),
    _Class(name="A952_right_waves_then_left", actions=((people.wave, _watch), (_watch, people.wave)), reversed=True),
    _Class(name="A953_both_kick", actions=((people.kick,), (people.kick,))),
)

SYNTHETIC_NTU_CLASSES = tuple(kind.name for kind in _CLASSES)


def _number(class_name: str) -> int:
    return int(class_name[1:4])


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticNtuClip:
    """One clip before it is rendered."""

    name: NtuName
    figures: tuple[Figure, ...]
    """Played forwards."""
    bodies: tuple[SensedBody, ...]
    """What the sensor made of them, in the clip's own order."""
    num_frames: int
    reversed: bool
    height_px: int
    width_px: int
    render_seed: np.random.SeedSequence

    def render(self) -> Iterator[NDArray[np.uint8]]:
        """The frames: uint8 (height_px, width_px, 3), RGB."""
        rng, forwards = np.random.default_rng(self.render_seed), range(self.num_frames)
        order = forwards[::-1] if self.reversed else forwards  # light and noise are drawn forwards, like everything else
        return drawing.render_scene(self.figures, self.figures[0].look, self.height_px, self.width_px, rng, order)

    def skeleton_file(self) -> bytes:
        """The `.skeleton` file."""
        return encode_skeleton(self.bodies, self.num_frames)


def draw_clip(config: SyntheticNtuConfig, name: NtuName, draw: int) -> SyntheticNtuClip:
    """Draw one clip.

    Args:
        config: Sizes and seed.
        name: The performer, the action and the camera. A performance has the same motion for every camera.
        draw: Which random numbers; the two classes of an order pair drawn with the same ones are each other reversed.
    """
    kind = next(kind for kind in _CLASSES if _number(kind.name) == name.action)
    motion_seed, *person_seeds = np.random.SeedSequence([config.seed, 1, draw]).spawn(3)
    look_seed, sense_seed, render_seed = np.random.SeedSequence([config.seed, 2, draw, name.camera]).spawn(3)
    num_frames = int(np.random.default_rng(motion_seed).integers(config.min_frames, config.max_frames + 1))
    look_rng, count = np.random.default_rng(look_seed), len(kind.actions)
    figures = []
    for place, (actions, person_seed) in enumerate(zip(kind.actions, person_seeds, strict=False)):
        # The second person performs in no other clip.
        person = people.draw_person(np.random.default_rng([config.seed, 0, name.performer + 500 * place]))
        pose = people.rest_pose(person, num_frames, np.random.default_rng(person_seed))
        people.act(pose, actions, np.random.default_rng(motion_seed))
        look = drawing.draw_look(config.height_px, look_rng)
        across = config.width_px * (place + 1) / (count + 1) + config.height_px * look_rng.uniform(-0.05, 0.05)
        look = replace(look, feet_px=(float(across), look.feet_px[1]), height_px=0.9 * look.height_px)
        joints = drawing.place(people.joint_positions(person, pose, seated=False), look)
        figures.append(Figure(joints, person, look))

    scale = 1080 / config.height_px
    seen = [(kinect_joints(figure.joints_px * scale), figure.look.height_px * scale) for figure in figures]
    # By performance and not by class, so that a mistake does not reveal the class.
    performances = len(config.names()) // len(_CLASSES) // config.cameras
    mistakes = (draw % performances) + name.camera if name.replication == 1 else None
    bodies = sense(seen, mistakes, np.random.default_rng(sense_seed), reverse=kind.reversed)
    return SyntheticNtuClip(
        name=name,
        figures=tuple(figures),
        bodies=bodies,
        num_frames=num_frames,
        reversed=kind.reversed,
        height_px=config.height_px,
        width_px=config.width_px,
        render_seed=render_seed,
    )


def write_ntu(root: Path, config: SyntheticNtuConfig, workers: int) -> None:
    """Write the whole data set as an NTU RGB+D folder, or keep an existing one (see `write_folder`).

    Raises:
        DataError: `root` exists and was not generated from this `config`.
    """
    write_folder(root, _marker_text(config), functools.partial(_write_clips, config), len(config.names()), workers)


def _marker_text(config: SyntheticNtuConfig) -> str:
    return (
        "Every clip in this folder is generated: no person was filmed, and no class is one of NTU RGB+D.\n"
        f"generator version {GENERATOR_VERSION}\n"
        f"{json.dumps(asdict(config), sort_keys=True)}\n"
    )


def _write_clips(config: SyntheticNtuConfig, root: Path, indices: range) -> None:
    videos, skeletons = root / "nturgb+d_rgb", root / "nturgb+d_skeletons"
    videos.mkdir(exist_ok=True)
    skeletons.mkdir(exist_ok=True)
    names = config.names()
    for index in indices:
        name = names[index]
        # All cameras see one performance.
        clip = draw_clip(config, name, draw=index // config.cameras)
        write_video(videos / f"{name}_rgb.avi", clip.render(), config.height_px, config.width_px)
        (skeletons / f"{name}.skeleton").write_bytes(clip.skeleton_file())
    if indices.stop == len(names):
        text = "1 of the generated samples has no skeleton data.\nPlease ignore it in training and testing.\n\n"
        (root / MISSING_LIST).write_text(f"{text}{names[-1]}\n")


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], height_px: int, width_px: int) -> None:
    """An AVI as NTU RGB+D's: H.264 with B-frames, one key frame, no presentation times; its title says that it is generated."""
    # Equal frames give equal bytes: one thread, no dates in the header, and none of x264's macroblock tree, whose fastest code
    # reads memory beyond a picture whose sides are not multiples of 16.
    exact = {"flags": "+bitexact", "x264-params": "mbtree=0"}
    options = {"g": "99999", "bf": "2", "sc_threshold": "0", "preset": "veryfast", "crf": "23", **exact}
    with av.open(str(path), "w", format="avi", container_options={"fflags": "+bitexact"}) as container:
        container.metadata["title"] = f"SYNTHETIC, generated people, version {GENERATOR_VERSION}"
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
