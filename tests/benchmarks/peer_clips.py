"""A store of clips that look like prepared NTU clips: textured, moving pictures of 456 × 256 with a sensor's noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from starlab.pipelines.clip import ClipRow, DecodedClip, EncodedClip, SkippedClip
from starlab.pipelines.datasets import find_dataset
from starlab.pipelines.decode import decode_jpeg
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES
from starlab.pipelines.ntu import JPEG_QUALITY
from starlab.pipelines.prepare import StoreLayout, prepare
from starlab.pipelines.store import StoreSource

HEIGHT, WIDTH, BODIES = 256, 456, 2
CLIPS_PER_SHARD = 32


class TexturedClips:
    """Generated clips (`clip.ClipSource`); each is drawn anew from its number when it is asked for."""

    max_bodies = BODIES
    skipped: tuple[SkippedClip, ...] = ()
    fingerprint = "textured"

    def __init__(self, clips: int, frames: int) -> None:
        self.skeleton = find_dataset("synthetic_ntu").skeleton
        self.classes = SYNTHETIC_NTU_CLASSES
        self.clips: Sequence[ClipRow] = tuple(
            ClipRow(
                clip_id=f"clip{number:05d}",
                label=number % len(self.classes),
                split="train",
                subject=None,
                num_frames=frames,
            )
            for number in range(clips)
        )

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """Some frames of a clip; see `clip.ClipSource.read`."""
        encoded = self.encode(row, HEIGHT)
        frames = [decode_jpeg(encoded.jpegs[index], min_side_px) for index in frame_indices]
        return DecodedClip(frames, encoded.joints[np.asarray(frame_indices)])

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """A whole clip; see `clip.ClipSource.encode`."""
        rng = np.random.default_rng(int(row.clip_id.removeprefix("clip")))
        jpegs = tuple(
            simplejpeg.encode_jpeg(picture, quality=JPEG_QUALITY, colorsubsampling="420")
            for picture in _pictures(rng, row.num_frames)
        )
        joints = rng.random((row.num_frames, BODIES, len(self.skeleton.joints), 3), np.float32)
        return EncodedClip(jpegs, joints, None)


def _pictures(rng: np.random.Generator, count: int) -> list[NDArray[np.uint8]]:
    """A room with texture on two scales and a textured body that walks through it. A JPEG has 16 kB, as of a real NTU clip."""
    room = np.full((HEIGHT, WIDTH, 3), 120, np.float32)
    for scale, contrast in {8: 6, 64: 30}.items():
        coarse = rng.normal(0, contrast, (HEIGHT // scale + 2, WIDTH // scale + 2, 3)).astype(np.float32)
        room += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    body = np.clip(cv2.resize(rng.normal(110, 25, (45, 20, 3)).astype(np.float32), (76, 170)), 0, 255)
    noise = [rng.normal(0, 1.0, (HEIGHT, WIDTH, 1)).astype(np.float32) for _ in range(5)]
    pictures = []
    for frame in range(count):
        picture = room.copy()
        left, top = 48 + 3 * frame % (WIDTH - 128), 48 + int(3 * np.sin(frame / 3))
        picture[top : top + 170, left : left + 76] = body
        pictures.append(np.clip(picture + noise[frame % 5], 0, 255).astype(np.uint8))
    return pictures


def make_store(folder: Path, clips: int, frames: int) -> StoreSource:
    """Prepare a store of `clips` clips of `frames` frames; Ray must be running."""
    layout = StoreLayout(clips_per_shard=CLIPS_PER_SHARD)
    return prepare(TexturedClips(clips, frames), "synthetic_ntu", folder, layout)
