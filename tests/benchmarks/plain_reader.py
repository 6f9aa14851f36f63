"""The plainest way to load a clip of a store: pyarrow, simplejpeg and OpenCV."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray

FRAMES, SIZE, BATCH = 16, 224, 8
Batch = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]


@dataclass(slots=True)
class Reader:
    """Reads clips of a store, with an open file per thread and shard."""

    store: Path
    fast_upsampling: bool = False
    index: list[dict[str, Any]] = field(init=False)
    _open: threading.local = field(default_factory=threading.local, init=False)

    def __post_init__(self) -> None:
        columns = ["label", "num_frames", "shard", "row"]
        self.index = pq.read_table(self.store / "index.parquet", columns=columns).to_pylist()

    def __getstate__(self) -> tuple[Path, bool]:
        return self.store, self.fast_upsampling

    def __setstate__(self, state: tuple[Path, bool]) -> None:
        self.store, self.fast_upsampling = state
        self._open = threading.local()
        self.__post_init__()

    def order(self, epoch: int) -> list[int]:
        """The clips of an epoch, shuffled."""
        return [int(number) for number in np.random.default_rng(epoch).permutation(len(self.index))]

    def stored(self, number: int) -> tuple[list[Any], NDArray[np.float32], int]:
        """The JPEGs of the picked frames, not copied, their joints, and the label."""
        row = self.index[number]
        readers = self._open.__dict__
        if row["shard"] not in readers:
            readers[row["shard"]] = pq.ParquetFile(self.store / f"shards/{row['shard']:05d}.parquet")
        group = readers[row["shard"]].read_row_group(row["row"], columns=["frames", "joints"], use_threads=False)
        picked = (2 * np.arange(FRAMES) + 1) * row["num_frames"] // (2 * FRAMES)
        jpegs = group.column("frames").chunk(0)[0].values
        joints = group.column("joints").chunk(0)[0].values.to_numpy().reshape(row["num_frames"], -1)
        return [memoryview(jpegs[i].as_buffer()).cast("B") for i in picked], joints[picked], row["label"]

    def load(self, number: int, out: NDArray[np.uint8] | None = None) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
        """One clip: its frames (16, 224, 224, 3), its joints and its label."""
        jpegs, joints, label = self.stored(number)
        return self.decode(jpegs, out), joints, label

    def decode(self, jpegs: Iterable[Any], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Decode and resize 16 frames."""
        frames = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8) if out is None else out
        for jpeg, target in zip(jpegs, frames, strict=True):
            picture = simplejpeg.decode_jpeg(jpeg, "RGB", fastupsample=self.fast_upsampling, strict=True)
            cv2.resize(picture, (SIZE, SIZE), dst=target, interpolation=cv2.INTER_LINEAR)
        return frames


def collate(clips: list[Any]) -> Batch:
    """A batch from its clips."""
    frames, joints, labels = zip(*clips, strict=True)
    return np.stack(frames), np.stack(joints), np.asarray(labels)
