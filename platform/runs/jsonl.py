"""Line files: one JSON object a line, appended by one writer and followed by any number of readers.

A line counts once its newline is written. A reader skips a line that is cut off or damaged; the lines around it are good.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line and close the file. A line that another writer left cut off is ended first.

    Raises:
        OSError: the disk has no room for it, or cannot be reached.
    """
    with path.open("ab+") as file:
        if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(_line(value))


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each complete line from byte `offset` on, with the offset at which it ends. No file is an empty one."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value, offset


class LineFollower:
    """Reads what a line file gains after the follower was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines written since the last call."""
        for value, end in read_lines(self._path, self._offset):
            self._offset = end
            yield value


class LineWriter:
    """Appends lines to a file that it keeps open; safe to use from several threads.

    A line that the disk has no room for stays in memory and is written before the next one.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, without a tail that an earlier writer left cut off: nobody has read it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._unwritten = b""
        self._lock = threading.Lock()

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Append a line for each value. They survive this process at once, and the machine once `sync` returns.

        Raises:
            OSError: the disk takes no more; the lines are kept.
        """
        with self._lock:
            self._unwritten += b"".join(map(_line, values))
        self._flush()

    def sync(self) -> None:
        """Put everything written so far on the disk.

        Raises:
            OSError: it cannot be; nothing is lost while this process lives.
        """
        self._flush()
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close.

        Raises:
            OSError: as `sync`; the file is closed all the same.
        """
        try:
            self.sync()
        finally:
            os.close(self._file)

    @property
    def num_bytes(self) -> int:
        """Length of the file once everything written so far is in it."""
        with self._lock:
            return os.fstat(self._file).st_size + len(self._unwritten)

    def _flush(self) -> None:
        with self._lock:
            while self._unwritten:  # a disk that fills up takes a part
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
