"""What pose estimation costs and finds at each input size, and what two workers give.

bench_pose.py [--scaling] VIDEO_OR_PICTURE… (--scaling measures the workers alone)

Wants the model (`starlab data pose-model`) and a quiet machine. Processor time is that of one thread.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from starlab.pipelines.recording import VIDEO_ENDINGS
from starlab.platform.cluster.connect import connect
from starlab.platform.cluster.quiet import quiet_ray_data
from starlab.platform.pose.clips import Video, VideoFiles
from starlab.platform.pose.estimators import make_estimator, pose_settings
from starlab.platform.pose.extract import extract
from starlab.platform.pose.progress import PoseProgress

SIZES_PX = (192, 256, 320, 384, 512, 640, 768)
FRAMES, SCALING_FRAMES = 24, 80
"""Frames of each file, spread over it, for the sizes; and frames of each copy for the workers."""


def some_frames(path: Path) -> list[NDArray[np.uint8]]:
    if not path.name.lower().endswith(VIDEO_ENDINGS):
        return [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(np.uint8)]
    frames = list(VideoFiles({"video": Video(path)}).frames(0))
    return [frames[int(place)] for place in np.linspace(0, len(frames) - 1, FRAMES)]


def sizes(path: Path) -> None:
    frames = some_frames(path)
    print(f"\n{path.name}: {frames[0].shape[1]}×{frames[0].shape[0]}, {len(frames)} frames")
    print(f"{'size px':>8} {'ms a frame':>11} {'people':>7} {'confidence':>11} {'height':>7} {'off by':>7}")
    estimators = {size: make_estimator(pose_settings(long_side_px=size)) for size in SIZES_PX}
    best = [estimators[SIZES_PX[-1]](frame[None])[0] for frame in frames]
    for size, estimator in estimators.items():
        began = time.process_time()
        found = [estimator(frame[None])[0] for frame in frames]
        milliseconds = 1000 * (time.process_time() - began) / len(frames)
        people = [body[body[:, 2] > 0] for bodies in found for body in bodies if (body[:, 2] > 0).any()]
        confidence = np.mean(np.concatenate([body[:, 2] for body in people])) if people else 0.0
        height = np.median([np.ptp(body[:, 1]) for body in people]) if people else 0.0
        print(
            f"{size:>8} {milliseconds:>11.0f} {len(people) / len(frames):>7.2f} {confidence:>11.2f} {height:>7.0%} "
            f"{difference(found, best):>7.1%}"
        )


def difference(found: list[NDArray[np.float32]], best: list[NDArray[np.float32]]) -> float:
    """Median distance of a joint from where the largest size has it, in heights of the body, over people both found."""
    distances: list[float] = []
    for bodies, others in zip(found, best, strict=True):
        for other in others:
            if not (other[:, 2] > 0).any():
                continue
            height = np.ptp(other[other[:, 2] > 0, 1])
            both = (bodies[..., 2] > 0) & (other[:, 2] > 0)
            apart = np.hypot(*np.moveaxis(bodies[..., :2] - other[:, :2], -1, 0))
            means = [apart[body][both[body]].mean() if both[body].sum() > 5 else np.inf for body in range(len(bodies))]
            nearest = int(np.argmin(means))
            if means[nearest] < height / 2:
                distances += (apart[nearest][both[nearest]] / height).tolist()
    return float(np.median(distances)) if distances else float("nan")


class Beginning(VideoFiles):
    """The first frames of videos."""

    def length(self, number: int) -> int:
        """Not known, so that no video is divided."""
        return 0

    def frames(self, number: int, part: range | None = None) -> Iterator[NDArray[np.uint8]]:
        """The first `SCALING_FRAMES` frames."""
        return islice(super().frames(number), SCALING_FRAMES)


def scaling(path: Path) -> None:
    """Frames a second with one and with two workers, on the beginning of four copies of a video."""
    connect(num_cpus=2)
    quiet_ray_data()
    videos = Beginning({f"copy{number}": Video(path) for number in range(4)})
    rates: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for workers in (2, 1, 2):  # the first starts the processes
            progress: list[PoseProgress] = []
            began = time.monotonic()
            out = Path(folder) / f"{workers}-{len(rates)}.parquet"
            extract(videos, out, pose_settings(), workers=workers, fresh=True, on_progress=progress.append)
            rates[workers] = progress[-1].frames_done / (time.monotonic() - began)
    print(f"\n{path.name}: {rates[1]:.1f} frames/s with one worker, {rates[2]:.1f} with two: {rates[2] / rates[1]:.2f} times")


def main() -> None:
    torch.set_num_threads(1)
    paths = [Path(argument) for argument in sys.argv[1:] if argument != "--scaling"]
    if "--scaling" not in sys.argv:
        for path in paths:
            sizes(path)
    for path in paths:
        if path.name.lower().endswith(VIDEO_ENDINGS):
            scaling(path)
            break


if __name__ == "__main__":
    main()
