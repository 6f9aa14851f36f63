"""What the tests of serving share: a small finished run, and an untrained model with videos and joints, which need no Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from starlab.experiments.spec import Spec, load_spec
from starlab.models.star import StarTransformer
from starlab.pipelines.estimated_joints import write_joints
from starlab.pipelines.generated.penn_action import write_penn_action
from starlab.platform.cluster.connect import Cluster
from starlab.platform.runs.calibration import Calibration
from starlab.platform.runs.records import Result
from starlab.platform.serving.recogniser import Place, Recogniser, locate
from starlab.platform.serving.registry import write_model
from starlab.platform.trainer import RunResult, train

SYNTHETIC = dataclasses.replace(load_spec("demo").data.synthetic, train_clips_per_class=6, test_clips_per_class=3, size_px=48)
SMALL = ["data.frames=4", "data.size=24", "model.dim=16", "model.heads=2"]
TINY = [
    *SMALL,
    "data.synthetic.train_clips_per_class=6",
    "data.synthetic.test_clips_per_class=3",
    "data.synthetic.size_px=48",
    "train.epochs=2",
    "train.schedule=constant",
    "train.warmup_fraction=0",
    "train.evaluate_every_epochs=1",
    "train.precision=fp32",
]
FRAMES = 40


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def run(local_ray: Cluster, tmp_path_factory: pytest.TempPathFactory, runs: Path) -> RunResult:
    """A finished run of two epochs. Tests do not change its folder."""
    people = tmp_path_factory.mktemp("people") / "people"
    write_penn_action(people, SYNTHETIC, workers=1)
    return train(load_spec("demo", [*TINY, f"data.store={people}"]), runs=runs)


def write_untrained(folder: Path, spec: Spec, *, clip_frames: int | None = 16, temperature: float | None = 2.0) -> Place:
    """The folder of a model with random weights, as a finished run writes it."""
    torch.manual_seed(0)
    classes = spec.data.facts().classes
    calibration = temperature and Calibration(temperature=temperature, clips=9, val_ece_before=0.2, val_ece_after=0.1)
    result = Result(
        steps=1,
        total_steps=1,
        best_step=1,
        selected_by="validation",
        classes=classes,
        val={},
        clip_frames=clip_frames,
        calibration=calibration or None,
    )
    write_model(folder, spec, StarTransformer(spec.model).state_dict(), result)
    return locate(str(folder), folder.parent)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model of both modalities."""
    return write_untrained(tmp_path_factory.mktemp("models") / "both", load_spec("demo", SMALL))


@pytest.fixture(scope="session")
def recogniser(place: Place) -> Recogniser:
    return place.load()


@pytest.fixture(scope="session")
def rgb_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model that reads no joints."""
    return write_untrained(tmp_path_factory.mktemp("models") / "rgb", load_spec("demo", [*SMALL, "model.modality=rgb"]))


@pytest.fixture(scope="session")
def learned_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model that finds the joints itself."""
    return write_untrained(tmp_path_factory.mktemp("models") / "learned", load_spec("demo", [*SMALL, "model.pose=learned"]))


def make_frames(count: int = FRAMES, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """A bright square that moves to the right over a grey slope."""
    slope = np.linspace(40, 90, width, dtype=np.uint8)
    frames = []
    for number in range(count):
        frame = np.repeat(np.broadcast_to(slope, (height, width))[..., None], 3, axis=2).copy()
        left = 2 + number * (width - 14) // max(1, count)
        frame[16:28, left : left + 10] = (230, 60, 40)
        frames.append(frame)
    return frames


def write_video(path: Path, frames: list[NDArray[np.uint8]], rate: int = 20, container: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


def make_joints(bodies: int = 1, frames: int = FRAMES, joints: int = 13) -> NDArray[np.float32]:
    """People who stand side by side."""
    dice = np.random.default_rng(0)
    found = dice.uniform(0.3, 0.7, (1, bodies, joints, 3)).repeat(frames, axis=0).astype(np.float32)
    found[..., 0] = (found[..., 0] + np.arange(bodies)[:, None]) / bodies
    found[..., 2] = 0.9
    return found


@dataclasses.dataclass(frozen=True)
class Make:
    """The functions above, for tests, which cannot import this file."""

    frames: Callable[..., list[NDArray[np.uint8]]] = staticmethod(make_frames)
    joints: Callable[..., NDArray[np.float32]] = staticmethod(make_joints)
    video: Callable[..., Path] = staticmethod(write_video)
    model: Callable[..., Place] = staticmethod(write_untrained)


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one.mp4, two.mp4, a subfolder with three.mp4, and joints.parquet for all; two.mp4 has two people."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "one.mp4", make_frames())
    write_video(folder / "two.mp4", make_frames())
    write_video(folder / "more" / "three.mp4", make_frames(10))
    write_joints(
        folder / "joints.parquet", [("one", make_joints()), ("two.mp4", make_joints(2)), ("three", make_joints(1, 10))]
    )
    return folder
