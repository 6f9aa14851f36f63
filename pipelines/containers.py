"""The structure of AVI and MP4 files, read without a decoder: whether a file was cut short, and how many frames it lists.

The number of frames in a header is not used: intact files miscount (dropped frames, edit lists, fragments), and what a player
shows is what the decoder hands out. The sizes of chunks and boxes do say whether the end of a file is missing.
"""

from __future__ import annotations

import struct

_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""What a recorder leaves that could not go back to the head of its file."""
_PICTURES = (b"dc", b"db")
"""How the names of an AVI's chunks with pictures end: compressed, and plain."""


def check_whole(data: bytes, container_format: str) -> None:
    """Check that a file ends where its outermost chunks or boxes end.

    Bytes after the last one are ignored, as players do.

    Args:
        data: The file.
        container_format: "avi" or "mp4".

    Raises:
        ValueError: the end of the file is missing; the message says how much.
    """
    end = _end_of_avi(data) if container_format == "avi" else _end_of_mp4(data)
    if end > len(data):
        raise ValueError(f"it is cut short: it has {len(data):,} bytes, its header says {end:,}")


def frames_in_avi_index(tail: bytes) -> int | None:
    """The number of pictures that an AVI's index lists, without the empty slots of dropped ones.

    Args:
        tail: The last bytes of the file, where the index is.

    Returns:
        The number; None if the index is not in these bytes.
    """
    at = tail.rfind(b"idx1")
    if at < 0 or at + 8 > len(tail):
        return None
    size: int = struct.unpack_from("<I", tail, at + 4)[0]
    if at + 8 + size > len(tail) or size % 16:
        return None
    entries = struct.iter_unpack("<4sIII", tail[at + 8 : at + 8 + size])
    return sum(1 for name, _, _, num_bytes in entries if name[2:] in _PICTURES and num_bytes > 0)


def _end_of_avi(data: bytes) -> int:
    """Where the last RIFF chunk ends; large files have several."""
    at = 0
    while data[at : at + 4] == b"RIFF" and at + 12 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        if size in _UNKNOWN_SIZES:
            return len(data)
        at += 8 + size
        if at < len(data):
            at += size % 2  # the byte that fills up an odd chunk; at the end it may be left out
    return at


def _end_of_mp4(data: bytes) -> int:
    """Where the last box ends."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        if size < head or not name.isalnum():  # 0 means up to the end; anything else is no box
            return len(data)
        at += size
    return at
