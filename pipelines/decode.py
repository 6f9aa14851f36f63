"""JPEG bytes to RGB pixels, upright.

Decoding is strict: damage is an error where a lenient decoder would return grey blocks. What is not damage is read as every
viewer does: bytes that do not belong there before the picture, between the segments of its header, and after its end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SMALLEST_USEFUL_SHRINK = 1.6
"""The smallest factor worth shrinking by. A JPEG decoder can leave out high frequencies and return N/8 of the size, which saves
time from 8/5 = 1.6 on; a smaller shrink (7/8, 6/8) is slower than decoding everything."""

NO_SHRINK = 2**16
"""A `min_side_px` that no JPEG exceeds, so that nothing is shrunk."""

MAX_JUNK_BYTES = 4096
"""Bytes before a picture; more, or another format's signature there, and the picture is a preview inside of another file."""
_OTHER_FORMATS = (b"II*\0", b"MM\0*", b"8BPS", b"%PDF", b"PK\x03\x04", b"RIFF", b"\x89PNG")
_SOI, _EOI, _SOS, _APP1, _APP0 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE0
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8), _SOI)
_BEFORE_TABLES = (*range(0xE0, 0xF0), 0xFE)
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class _Header:
    """The segments of a JPEG up to its pixels."""

    segments: tuple[tuple[int, int], ...]
    """Where each begins and ends: a marker, its length and its content."""
    pixels: int
    """Where the segment that starts the pixels begins."""
    height: int
    width: int
    """As stored."""
    orientation: int
    """By Exif: 1 to 8."""


def decode_jpeg(data: bytes | memoryview, min_side_px: int) -> NDArray[np.uint8]:
    """Decode one JPEG to uint8 (H, W, 3), RGB, turned upright as its Exif orientation says.

    The picture comes back smaller than it was stored, by N/8 with N ≤ 5, where its short side then still measures
    `min_side_px` or more; else at full size, which may be below `min_side_px` when the file is.

    Raises:
        ValueError: the bytes are not a JPEG, are cut short or are damaged, even where a lenient decoder would go on.
    """
    try:
        frame = _decode(data, min_side_px)
    except ValueError:
        clean = _without_junk(data)
        if clean == data:
            raise
        frame = _decode(clean, min_side_px)
    return _upright(frame, _orientation(data))


def jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """Height and width of a JPEG, upright.

    Raises:
        ValueError: the bytes are not a JPEG.
    """
    header = _read_header(data)
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def _decode(data: bytes | memoryview, min_side_px: int) -> NDArray[np.uint8]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    shrink = min(height, width) >= SMALLEST_USEFUL_SHRINK * min_side_px
    min_side = max(1, min_side_px) if shrink else 0
    # Not simplejpeg's fast transforms: a tenth less time for a tenth more error (measured on photographs at quality 90).
    frame: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side, strict=True)
    return frame


def _read_header(data: bytes | memoryview) -> _Header:
    """Find the segments, passing over what does not belong there.

    Raises:
        ValueError: there is no JPEG, or its header has no end.
    """
    at, end = _start(data) + 2, len(data)
    segments: list[tuple[int, int]] = []
    size, orientation = (0, 0), 0
    while at + 4 <= end:
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF) or data[at + 1] in _WITHOUT_LENGTH:
            at += 1
            continue
        marker = data[at + 1]
        if marker == _EOI:
            break
        length = data[at + 2] << 8 | data[at + 3]
        after = at + 2 + length
        if length < 2 or after > end:
            break
        if marker == _SOS:
            if not all(size):
                break
            return _Header(tuple(segments), at, *size, orientation or 1)
        if marker in _FRAME_HEADERS and length >= 8:
            size = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        elif marker == _APP1 and not orientation:
            orientation = _exif_orientation(bytes(data[at + 4 : after]))
        segments.append((at, after))
        at = after
    raise ValueError("not a JPEG, or its header is damaged or cut short")


def _orientation(data: bytes | memoryview) -> int:
    """The orientation by Exif, 1 to 8; only what stands before the tables is looked at, which is where Exif is."""
    at, end = 2, len(data)
    while at + 4 <= end and data[at] == 0xFF and data[at + 1] in _BEFORE_TABLES:
        after = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if data[at + 1] == _APP1 and (found := _exif_orientation(bytes(data[at + 4 : after]))):
            return found
        at = after
    # Where there is junk, every segment is looked at.
    return (
        1 if data[:2] == b"\xff\xd8" and at + 1 < end and data[at] == 0xFF != data[at + 1] else _read_header(data).orientation
    )


def _start(data: bytes | memoryview) -> int:
    """Where the picture begins."""
    if data[:2] == b"\xff\xd8":
        return 0
    head = bytes(data[: MAX_JUNK_BYTES + 3])
    at = head.find(b"\xff\xd8\xff") if b"\xff\xd8\xff" in head else head.find(b"\xff\xd8")
    if not 0 <= at <= MAX_JUNK_BYTES or head.startswith(_OTHER_FORMATS) or head[4:8] == b"ftyp":
        raise ValueError("not a JPEG: it does not begin like one")
    return at


def _exif_orientation(content: bytes) -> int:
    """The orientation in an Exif segment, 1 to 8; 0 if it gives none that makes sense."""
    tiff = content[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if not content.startswith(b"Exif\0") or order is None:
        return 0
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(count):
            tag, kind, _, value, _ = struct.unpack_from(f"{order}HHIHH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG and kind in (3, 4):
                if kind == 4:
                    (value,) = struct.unpack_from(f"{order}I", tiff, directory + 10 + 12 * entry)
                return value if 1 <= value <= 8 else 0
    except struct.error:  # viewers ignore a damaged Exif segment
        pass
    return 0


def _without_junk(data: bytes | memoryview) -> bytes:
    """The JPEG without what its decoder does not need and only warns of; the pixels stay byte for byte.

    Raises:
        ValueError: there is no JPEG, or its header has no end.
    """
    header = _read_header(data)
    kept = [b"\xff\xd8"]
    for first, after in header.segments:
        marker = data[first + 1]
        if 0xC0 <= marker <= 0xDF or marker == 0xEE:  # tables, frame header, restart interval; Adobe's says the colours
            kept.append(bytes(data[first:after]))
        elif marker == _APP0 and bytes(data[first + 4 : first + 9]) == b"JFIF\0":
            # Present, it says the colours as well; some writers give a version that the decoder does not know.
            kept.append(b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0")
    return b"".join(kept) + bytes(data[header.pixels :])


def _upright(frame: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and mirror a picture as Exif's table of orientations says (CIPA DC-008, 4.6.4)."""
    if orientation == 1:
        return frame
    if orientation >= 5:
        frame = frame.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        frame = frame[::-1]
    if orientation in (2, 3, 6, 7):
        frame = frame[:, ::-1]
    return np.ascontiguousarray(frame)
