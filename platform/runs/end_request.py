"""The driver's request to the ranks to end a training early, in a file that always exists while the run trains.

A reader on NFS may keep for a minute that a file does not exist, longer than the time to end; what it reads of an existing
file is at most as old as the moment at which it opens the file. So the file is there from the start, without a request in
it, and the request is written over its contents in place. All contents have the same length: a full disk takes them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import DamagedRecordError, EndRequest, plain

_BYTES = 512


def clear_request(folder: RunFolder) -> None:
    """Create the file without a request, or remove the request of an earlier driver."""
    folder.path.mkdir(parents=True, exist_ok=True)
    _write(folder.path / EndRequest.FILE, "null")


def request_end(folder: RunFolder, request: EndRequest) -> None:
    """Ask the run to write a checkpoint and end.

    Raises:
        OSError: the file cannot be written.
    """
    folder.path.mkdir(parents=True, exist_ok=True)  # a trial that is only about to start
    _write(folder.path / EndRequest.FILE, json.dumps(plain(request)))


def read_request(folder: RunFolder) -> EndRequest | None:
    """The request, or None if there is none, or it is only partly written and the next read will see it."""
    try:
        if (folder.path / EndRequest.FILE).read_text().strip() == "null":
            return None
        return folder.read(EndRequest)
    except (FileNotFoundError, DamagedRecordError):
        return None


def _write(path: Path, text: str) -> None:
    data = text.encode().ljust(_BYTES)
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(file, data, 0)
        os.fsync(file)
    finally:
        os.close(file)
