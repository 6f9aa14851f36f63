"""Line files: one JSON object per line, appended by one writer and followed by any number of readers.

A line counts once its newline is written. A reader skips a truncated or damaged line and still reads the lines around it.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line and close the file. A truncated last line of another writer is terminated first.

    Raises:
        OSError: The disk is full or unavailable.
    """
    with path.open("ab+") as file:
        if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(_line(value))


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each complete line from byte `offset` on, with the offset at which it ends. A missing file has no lines."""
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


def read_last_line(path: Path) -> dict[str, Any] | None:
    """Return the last complete line, or None if there is none. Only the end of the file is read."""
    if not path.exists():
        return None
    tail = read_lines(path, max(0, path.stat().st_size - _TAIL_BYTES))  # a truncated first line is skipped
    newest = deque(tail, maxlen=1)
    return newest[0][0] if newest else None


class LineFollower:
    """Reads the lines that are added to a line file after the follower was created."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines written since the last call."""
        for value, end in read_lines(self._path, self._offset):
            self._offset = end
            yield value


class LineWriter:
    """Appends lines to a file that it keeps open. Safe to use from several threads.

    A line that does not fit on the disk stays in memory and is written before the next one.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and cut off a truncated last line of an earlier writer, which no reader has read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._unwritten = b""
        self._lock = threading.Lock()

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Append one line per value.

        The lines survive the end of this process immediately, and a failure of the machine once `sync` returns.

        Raises:
            OSError: The disk is full or failing. The lines stay in memory.
        """
        with self._lock:
            self._unwritten += b"".join(map(_line, values))
        self._flush()

    def sync(self) -> None:
        """Flush everything written so far to the disk.

        Raises:
            OSError: The disk is full or failing. The lines stay in memory while this process lives.
        """
        self._flush()
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close the file.

        Raises:
            OSError: As for `sync`. The file is closed in any case.
        """
        try:
            self.sync()
        finally:
            os.close(self._file)

    @property
    def num_bytes(self) -> int:
        """Length that the file has once every line is written."""
        with self._lock:
            return os.fstat(self._file).st_size + len(self._unwritten)

    def _flush(self) -> None:
        with self._lock:
            while self._unwritten:  # a disk that fills up accepts only a part
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:  # backwards, because a journal of many epochs takes 100 MB
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            file.truncate(end)
