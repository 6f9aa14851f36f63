"""Reading from storage that fails now and then: a failure to read says nothing about the content, so it is tried again."""

from __future__ import annotations

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
