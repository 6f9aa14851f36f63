"""Videos that the tests of this folder make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

WriteVideo = Callable[..., None]


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """Writes a video of 64×48 pixels whose frames grow brighter, from `shade` on."""

    def write(path: Path, num_frames: int = 6, shade: int = 20) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(num_frames):
                frame = np.full((48, 64, 3), min(250, shade + 5 * number), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    return write
