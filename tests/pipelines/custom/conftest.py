"""Short videos of numbered frames for the tests of one's own data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

Write = Callable[..., Path]


def numbered(number: int, height: int = 48, width: int = 80, shade: int = 60) -> np.ndarray:
    """A frame that says its number, in eight fields along its upper half."""
    frame = np.full((height, width, 3), shade, np.uint8)
    for bit in range(8):
        frame[: height // 2, bit * width // 8 : (bit + 1) * width // 8] = 230 if number >> bit & 1 else 20
    return frame


@pytest.fixture
def numbered_frame() -> Callable[[int], np.ndarray]:
    return numbered


@pytest.fixture
def write_video() -> Write:
    def write(path: Path, num_frames: int = 8, shade: int = 60, rate: int = 10, keys: int = 12) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"g": str(keys), "bf": "2", "sc_threshold": "0"})
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 80, 48, "yuv420p", 1
            for number in range(num_frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number, shade=shade), format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path, write_video: Write) -> Path:
    """Ten clips in two folders, one per class."""
    root = tmp_path / "mine"
    for label, shade in (("sit", 40), ("stand", 200)):
        for number in range(5):
            write_video(root / label / f"{label}{number}.mp4", 6 + number, shade)
    return root
