"""Keeps decoded clips on a node's own disk, for clips that look the same in every epoch (`data.cache`)."""

from __future__ import annotations

import shutil
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.clip import ClipSource, short_digest
from starlab.pipelines.estimated_joints import EstimatedJoints
from starlab.pipelines.sampling import View
from starlab.pipelines.sources import DataConfig
from starlab.pipelines.store import StoreSource

FREE_SHARE = 0.1
"""Share of the disk that stays free. Further clips are then decoded as without a cache."""
_FORMAT = 1
"""Raise it when `fit`, `pick_frames` or a decoder gives other bytes than before."""
_CHECKSUM_DTYPE = np.uint32


@dataclass(frozen=True, slots=True)
class DecodedCache:
    """One file per clip and view: frames, joints, checksum. All processes of a node may share it."""

    folder: Path

    @classmethod
    def of(cls, source: ClipSource, config: DataConfig, rng: np.random.Generator | None) -> DecodedCache | None:
        """Return the cache of a source's clips as `config` decodes them.

        None if `data.cache` is null, or if `rng`, the generator of a training clip (None in an evaluation), changes the clip.
        """
        if config.cache is None or (rng is not None and config.augment == "standard"):
            return None
        view: float | str | None = config.test_crop if rng is None else None
        if config.person_crop is not None:
            view = f"{view} of people {config.person_crop}"
        key = short_digest(_FORMAT, av.__version__, cv2.__version__, _pixels(source), config.frames, config.size, view)
        return cls(Path(config.cache).expanduser() / key)

    def read(self, clip: int, view: View, frames: NDArray[np.uint8], joints: NDArray[np.float32]) -> bool:
        """Fill `frames` and `joints` with a clip. Returns False if it is missing or damaged; they are then undefined."""
        path, checksum = self._path(clip, view), np.empty(1, _CHECKSUM_DTYPE)
        try:
            with path.open("rb", buffering=0) as file:
                whole = all(file.readinto(part.data.cast("B")) == part.nbytes for part in (frames, joints, checksum))
        except OSError:
            return False
        if whole and checksum[0] == _checksum(frames, joints):
            return True
        with suppress(OSError):
            path.unlink()
        return False

    def write(self, clip: int, view: View, frames: NDArray[np.uint8], joints: NDArray[np.float32]) -> None:
        """Store a clip. Does nothing if the disk is nearly full or cannot be written to: the cache only saves time."""
        partial = self.folder / f"{uuid4().hex}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.free - frames.nbytes < FREE_SHARE * disk.total:
                return
            with partial.open("wb", buffering=0) as file:
                for part in (frames, joints, np.array([_checksum(frames, joints)], _CHECKSUM_DTYPE)):
                    file.write(part.data)
            partial.replace(self._path(clip, view))
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _path(self, clip: int, view: View) -> Path:
        return self.folder / f"{clip}-{view.time}of{view.times}-{view.place}of{view.places}"


def _pixels(source: ClipSource) -> str:
    """Say which pixels a source gives. A prepared store has the fingerprint of the files it was made from, but other pixels."""
    if isinstance(source, EstimatedJoints):
        return f"{source.fingerprint} {_pixels(source.source)}"
    if isinstance(source, StoreSource):
        return source.content
    return f"{source.fingerprint} {type(source).__name__}"


def _checksum(*parts: NDArray[Any]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part.data, checksum)
    return checksum
