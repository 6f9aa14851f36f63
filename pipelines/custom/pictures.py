"""A folder of pictures as a clip: which pictures, in which order, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.clip import SYSTEM_NAMES, UnreadableClipError
from starlab.pipelines.custom.listing import IMAGE_ENDINGS
from starlab.pipelines.decode import decode_jpeg
from starlab.pipelines.retry import MISSING, read_file


def picture_names(folder: Path) -> list[str]:
    """The pictures in a folder, in the order in which a person counts them."""
    names = (path.name for path in folder.iterdir() if not path.name.startswith(SYSTEM_NAMES))
    return sorted((name for name in names if name.lower().endswith(IMAGE_ENDINGS)), key=_natural)


def read_picture(path: Path, min_side_px: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The file and its pixels, (H, W, 3), RGB, upright.

    Raises:
        UnreadableClipError: it is missing or damaged.
    """
    try:
        data = read_file(path)
        if path.name.lower().endswith((".jpg", ".jpeg")):
            return data, decode_jpeg(data, min_side_px)
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if frame is None:
            raise ValueError("not a readable picture")
    except (*MISSING, ValueError, cv2.error) as error:
        raise UnreadableClipError(f"{path}: {error}") from error
    return data, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts frame_2.jpg before frame_10.jpg."""
    parts: list[tuple[int, int, str]] = []
    for is_number, text in _runs(name):
        parts.append((0, int(text), text) if is_number else (1, 0, text))
    return tuple(parts)


def _runs(name: str) -> Iterator[tuple[bool, str]]:
    start = 0
    for place in range(1, len(name) + 1):
        if place == len(name) or name[place].isdecimal() != name[start].isdecimal():
            yield name[start].isdecimal(), name[start:place]
            start = place
