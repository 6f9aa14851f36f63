"""Reading from storage that fails now and then: a failure to read says nothing about the content, so it is tried again."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_TRIES = (0.5, 2.0, 8.0, 30.0)
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""The failures that do say something about the content: the file is not there."""


class StorageError(OSError):
    """The storage failed in every try (throttling, a stale handle, an input/output error); the file itself may be fine.

    It ends the task that reads, and is never counted as an unreadable clip: that would replace clips silently.
    """


def read_patiently(read: Callable[[], T], what: object) -> T:
    """Call `read`; while it raises an OSError, call it again after each of `SECONDS_BETWEEN_TRIES`.

    Args:
        read: Reads something from storage.
        what: Its name for the error message.

    Raises:
        FileNotFoundError, IsADirectoryError, NotADirectoryError: there is no such file; raised at once.
        StorageError: it failed in every try, or access is denied.
    """
    for seconds in (*SECONDS_BETWEEN_TRIES, None):
        try:
            return read()
        except MISSING:
            raise
        except OSError as error:
            if seconds is None or isinstance(error, PermissionError):
                raise StorageError(
                    f"{what} cannot be read, which is a failure of the storage and not of the file: {error}. Once the storage "
                    "works again, the same command resumes"
                ) from error
            sleep(seconds)
    raise AssertionError("the last try returns or raises")


def read_file(path: Path | str) -> bytes:
    """The bytes of a file; see `read_patiently`."""
    return read_patiently(Path(path).read_bytes, path)


class PatientFile:
    """A file that the library reads parts of; a failure of the storage is kept, because the library takes it for the end."""

    def __init__(self, path: Path) -> None:
        """Open a file; raises as `read_patiently`."""
        self._path = path
        self._file = read_patiently(lambda: path.open("rb"), path)
        self._size = self._file.seek(0, io.SEEK_END)
        self.failure: StorageError | None = None
        """What went wrong."""
        self.head = self[0:4096]
        """Its first bytes."""
        self._file.seek(0)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self._size)
        self._file.seek(first)
        return self._patiently(max(0, end - first))

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        return self._patiently(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place of the next byte."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _patiently(self, size: int) -> bytes:
        at = self._file.tell()

        def read() -> bytes:
            self._file.seek(at)
            return self._file.read(size)

        try:
            return read_patiently(read, self._path)
        except StorageError as error:
            self.failure = error
            raise
