"""Requests to the ranks to end a training early, in files that always exist while the run trains.

The driver asks a run to write a checkpoint and end (`EndRequest`). A search asks a trial to end with the result that it has
(`EarlyEnd`). Both can be asked of the same trial, so each has its own file.

A reader on NFS may keep for a minute that a file does not exist, longer than the time to end; what it reads of an existing
file is at most as old as the moment at which it opens the file. So the files are there from the start, without a request in
them, and a request is written over the contents in place. All contents have the same length: a full disk takes them.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import DamagedRecordError, EarlyEnd, EndRequest, R, plain

_BYTES = 512
_NOTHING = "null"


def clear_request(folder: RunFolder) -> None:
    """Create the files without a request, or remove the request of an earlier driver. A search's request stays."""
    folder.path.mkdir(parents=True, exist_ok=True)
    _write(folder.path / EndRequest.FILE, _NOTHING)
    with suppress(FileExistsError):
        _write(folder.path / EarlyEnd.FILE, _NOTHING, os.O_EXCL)


def request_end(folder: RunFolder, request: EndRequest) -> None:
    """Ask the run to write a checkpoint and end.

    Raises:
        OSError: the file cannot be written.
    """
    _ask(folder, request)


def read_request(folder: RunFolder) -> EndRequest | None:
    """The request, or None if there is none, or it is only partly written and the next read will see it."""
    return _read(folder, EndRequest)


def request_early_end(folder: RunFolder, reason: str) -> None:
    """Ask a trial to end with its result at its next point of the curve. Other runs ignore the request.

    Raises:
        OSError: the file cannot be written.
    """
    _ask(folder, EarlyEnd(reason=reason))


def read_early_end(folder: RunFolder) -> EarlyEnd | None:
    """The search's request to this trial, or None like `read_request`."""
    return _read(folder, EarlyEnd)


def _ask(folder: RunFolder, request: EndRequest | EarlyEnd) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)  # a trial that is only about to start
    _write(folder.path / request.FILE, json.dumps(plain(request)))


def _read(folder: RunFolder, kind: type[R]) -> R | None:
    try:
        if (folder.path / kind.FILE).read_text().strip() == _NOTHING:
            return None
        return folder.read(kind)
    except (FileNotFoundError, DamagedRecordError):
        return None


def _write(path: Path, text: str, more_flags: int = 0) -> None:
    data = text.encode().ljust(_BYTES)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | more_flags, 0o644)
    try:
        os.pwrite(file, data, 0)
        os.fsync(file)
    finally:
        os.close(file)
