"""The structure of video files, read without a decoder: whether a file was cut short, and how many frames an AVI lists.

The number of frames in a header is not used: intact files miscount (dropped frames, edit lists, fragments), and what a player
shows is what the decoder hands out. The sizes of chunks and boxes do say whether the end of a file is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""What a recorder leaves that could not go back to the head of its file."""
_PICTURES = (b"dc", b"db")
"""How the names of an AVI's chunks with pictures end: compressed, and plain."""
_EBML = b"\x1a\x45\xdf\xa3"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


class Bytes(Protocol):
    """What the checks read: the bytes of a file, or a file of which any part can be sliced."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


def check_whole(data: Bytes, container_format: str) -> None:
    """Check that a file ends where its outermost chunks, boxes, elements or packets end.

    Bytes after the last one are ignored, as players do.

    Args:
        data: The file.
        container_format: "avi", "mp4", "matroska", "gif", "mpegts", "asf", "flv" or "ogg"; of any other format nothing is
            known.

    Raises:
        ValueError: the end of the file is missing; the message says how much.
    """
    if container_format not in _ENDS:
        return
    end = _ENDS[container_format](data)
    if end > len(data) and container_format == "gif":
        raise ValueError(f"it is cut short: it has {len(data):,} bytes, and its last block has no end")
    if end > len(data):
        raise ValueError(f"it is cut short: it has {len(data):,} bytes, its header says {end:,}")


def format_of(head: bytes) -> str | None:
    """The format that a file's first bytes show, by the name that FFmpeg's reader of it has; None where they show none."""
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "avi"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "mp4"
    if head[:4] == _EBML:
        return "matroska"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:16] == _ASF:
        return "asf"
    if head[:4] == b"FLV\x01":
        return "flv"
    if head[:5] == b"OggS\0":
        return "ogg"
    for first, size in ((0, 188), (4, 192)):
        if len(head) > first + 2 * size and all(head[first + size * number] == 0x47 for number in range(3)):
            return "mpegts"
    return "mpeg" if head[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3") else None


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


def _end_of_avi(data: Bytes) -> int:
    """Where the last RIFF chunk ends; large files have several."""
    at = 0
    while data[at : at + 4] == b"RIFF" and at + 12 <= len(data):
        (size,) = struct.unpack("<I", data[at + 4 : at + 8])
        if size in _UNKNOWN_SIZES:
            return len(data)
        at += 8 + size
        if at < len(data):
            at += size % 2  # the byte that fills up an odd chunk; at the end it may be left out
    return at


def _end_of_mp4(data: Bytes) -> int:
    """Where the last box ends."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        head = 8
        if size == 1 and at + 16 <= len(data):
            (size,), head = struct.unpack(">Q", data[at + 8 : at + 16]), 16
        if size < head or not name.isalnum():  # 0 means up to the end; anything else is no box
            return len(data)
        at += size
    return at


def _end_of_matroska(data: Bytes) -> int:
    """Where the segment ends; a recorder that could not go back leaves its size unknown (RFC 8794, 6.2)."""
    at = 0
    while at + 12 <= len(data):
        name_size = _vint_size(data[at : at + 1])
        size_bytes = _vint_size(data[at + name_size : at + name_size + 1])
        raw = data[at + name_size : at + name_size + size_bytes]
        if len(raw) < size_bytes:
            return len(data)
        size = int.from_bytes(raw, "big") & ((1 << 7 * size_bytes) - 1)
        if size == (1 << 7 * size_bytes) - 1:
            return len(data)
        name, at = data[at : at + name_size], at + name_size + size_bytes + size
        if name == _SEGMENT:
            return at
    return len(data)


def _vint_size(first: bytes) -> int:
    """Bytes of an EBML number, from its first one."""
    return 9 - first[0].bit_length() if first and first[0] else 8


def _end_of_mpegts(data: Bytes) -> int:
    """The end of the packet that the file breaks off in."""
    size = 192 if data[4:5] == b"\x47" != data[0:1] else 188
    return -(-len(data) // size) * size


def _end_of_gif(data: Bytes) -> int:
    """The end of the trailer; behind the end of the file where that comes first (GIF89a, section 17 and later)."""
    at = 13 + _table_size(data[10:11])
    while kind := data[at : at + 1]:
        if kind == b"\x3b":
            return at + 1
        if kind == b"\x2c":  # a picture: its place, its colours, the width of its codes
            at += 11 + _table_size(data[at + 9 : at + 10])
        elif kind == b"\x21":  # an extension
            at += 2
        else:  # a player stops where something else than a block begins
            return len(data)
        while size := data[at : at + 1]:
            at += 1 + size[0]
            if not size[0]:
                break
    return at + 1


def _end_of_asf(data: Bytes) -> int:
    """Where the last object ends (Advanced Systems Format, 2.1); a stream that is still written leaves a size of 0."""
    at = 0
    while at + 24 <= len(data):
        (size,) = struct.unpack("<Q", data[at + 16 : at + 24])
        if size < 24:
            return len(data)
        at += size
    return at


def _end_of_flv(data: Bytes) -> int:
    """Where the size that follows the last tag ends (Adobe Flash Video, annex E)."""
    at = int.from_bytes(data[5:9], "big") + 4
    while at + 11 <= len(data):
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    return at if at >= len(data) - 4 else len(data)


def _end_of_ogg(data: Bytes) -> int:
    """Where the last page ends (RFC 3533, section 6)."""
    at = 0
    while data[at : at + 4] == b"OggS":
        segments = data[at + 26 : at + 27]
        if not segments:
            return at + 27
        at += 27 + segments[0] + sum(data[at + 27 : at + 27 + segments[0]])
    return at


def _table_size(flags: bytes) -> int:
    """Bytes of a colour table, by the flags that announce it."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


_SEGMENT = b"\x18\x53\x80\x67"
_ENDS: dict[str, Callable[[Bytes], int]] = {
    "avi": _end_of_avi,
    "mp4": _end_of_mp4,
    "matroska": _end_of_matroska,
    "mpegts": _end_of_mpegts,
    "gif": _end_of_gif,
    "asf": _end_of_asf,
    "flv": _end_of_flv,
    "ogg": _end_of_ogg,
}
