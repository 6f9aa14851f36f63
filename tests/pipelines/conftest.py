"""What several tests of the pipelines share."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest


@pytest.fixture
def with_empty_slots() -> Callable[[bytes, set[int]], bytes]:
    """Adds empty slots to an AVI, after the pictures with these numbers."""
    return _with_empty_slots


def _with_empty_slots(avi: bytes, after: set[int]) -> bytes:
    """The file as a recorder writes it that dropped pictures: chunks without bytes, counted by header and index."""
    movi = avi.index(b"movi")
    (size,) = struct.unpack_from("<I", avi, movi - 4)
    at, end, number = movi + 4, movi - 4 + 4 + size, 0
    body, index = b"movi", b""

    def add(name: bytes, data: bytes) -> None:
        nonlocal body, index
        index += struct.pack("<4sIII", name, 0, len(body), len(data))
        body += struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2)

    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", avi, at)
        add(name, avi[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
        if number in after:
            add(name, b"")
        number += 1
    head = bytearray(avi[: movi - 8])
    for place in (head.index(b"avih") + 24, head.index(b"strh") + 40):
        struct.pack_into("<I", head, place, number + len(after))
    whole = bytes(head) + struct.pack("<4sI", b"LIST", len(body)) + body + struct.pack("<4sI", b"idx1", len(index)) + index
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]
