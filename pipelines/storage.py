"""A folder on a disk, on S3 or on any file system that pyarrow knows by its URI.

There are two ways to write a file. `write` and `Draft` move a complete file to its name, so that a reader never sees half of
it. `put` writes in place and, on a disk, waits until the bytes survive a crash; it never renames, because a rename copies the
file on S3.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileSelector, FileType

from starlab.pipelines.clip import DataError

PART = ".part"
"""Ending of the name of a file that is being written."""


class Folder:
    """Files by name (relative, with `/`) below one place; picklable. Every failure to read or write is an OSError."""

    def __init__(self, uri: str | Path) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            uri: A path, or a URI such as s3://bucket/penn or file:///data/penn.

        Raises:
            DataError: no file system has such a URI.
        """
        text = str(uri)
        try:
            if "://" in text:
                file_system, path = pyarrow.fs.FileSystem.from_uri(text)
                self.uri = text.rstrip("/")
            else:
                self.uri = path = str(Path(text).expanduser().resolve())
                file_system = pyarrow.fs.LocalFileSystem()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{text} names no file system: {error}; give a path, or a URI such as s3://bucket/folder"
            ) from error
        self.files = pyarrow.fs.SubTreeFileSystem(path, file_system)
        self.is_local = isinstance(file_system, pyarrow.fs.LocalFileSystem)

    def __str__(self) -> str:
        return self.uri

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            OSError: it is missing or cannot be read.
            DataError: the name leads out of the folder.
        """
        self.check_inside(name)
        with self.files.open_input_stream(name) as stream:
            return bytes(stream.read())

    def open(self, name: str) -> pa.NativeFile:
        """One file, to read any part of it; raises as `read`."""
        self.check_inside(name)
        return self.files.open_input_file(name)

    def check_inside(self, name: str) -> None:
        """Check that a name, such as a manifest of somebody else gives it, means a file in this folder.

        Raises:
            DataError: it is absolute, goes up with `..`, or is a link that leads out of the folder.
        """
        parts = name.replace("\\", "/").split("/")
        outside = not name or ".." in parts or not parts[0]
        if not outside and self.is_local:
            base = os.path.realpath(self.files.base_path)
            outside = os.path.commonpath([base, os.path.realpath(os.path.join(base, name))]) != base  # noqa: PTH118
        if outside:
            raise DataError(f"{self.uri}: the file name {name!r} leads out of the folder; only files inside of it are read")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The mapping in a JSON file; None where the file is missing or not a JSON mapping."""
        self.check_inside(name)
        try:
            value = json.loads(self.read(name))
        except (FileNotFoundError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file in one step: a reader sees the old file or the new one."""
        with Draft(self, name) as draft:
            draft.write(data)

    def write_json(self, name: str, value: object) -> None:
        """Write a value as JSON, in one step like `write`."""
        self.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def put(self, name: str, data: bytes) -> None:
        """Write a file in place; on return it survives a crash of this machine. A reader may see half of it until then.

        Raises:
            OSError: it could not be written completely.
        """
        self.make_room_for(name)
        if not self.is_local:
            with self.files.open_output_stream(name) as stream:
                stream.write(data)
            return
        path = Path(self.files.base_path) / name
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def make_room_for(self, name: str) -> None:
        """Create the folder of the file, where the file system has folders."""
        parent = name.rpartition("/")[0]
        self.files.base_fs.create_dir(f"{self.files.base_path}{parent}".rstrip("/"), recursive=True)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None where there is no such file."""
        info = self.files.get_file_info(name)
        return int(info.size) if info.type == FileType.File else None

    def modified(self, name: str) -> int:
        """When a file was last modified, in nanoseconds since 1970; 0 where the file system does not know."""
        return int(self.files.get_file_info(name).mtime_ns or 0)

    def names(self) -> list[str]:
        """Paths of every file below, relative to this folder and sorted; empty where there is no folder."""
        found = self.files.get_file_info(FileSelector("", recursive=True, allow_not_found=True))
        return sorted(info.path for info in found if info.type == FileType.File)

    def has(self, name: str) -> bool:
        """Whether this file exists."""
        return self.size(name) is not None

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted; empty where there is no folder."""
        found = self.files.get_file_info(FileSelector("", allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder and everything in it.

        Raises:
            OSError: it is missing or cannot be deleted.
        """
        if self.files.get_file_info(name).type == FileType.Directory:
            self.files.delete_dir(name)
        else:
            self.files.delete_file(name)

    def remove(self, name: str) -> None:
        """Delete a file; a missing one is not an error."""
        if self.size(name) is not None:
            self.files.delete_file(name)

    def sha256(self, name: str) -> str:
        """Hex SHA-256 of a file, read in pieces."""
        self.check_inside(name)
        digest = hashlib.sha256()
        with self.files.open_input_stream(name) as stream:
            while piece := stream.read(4 * 2**20):
                digest.update(piece)
        return digest.hexdigest()


class Draft:
    """A file that has a temporary name while it is written (in a `with` block) and its own name once it is complete.

    The bytes are hashed while they are written. Of two processes that write the same file, the last one to end wins. pyarrow
    accepts a draft as an open file.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._draft = f"{name}.{uuid.uuid4().hex[:8]}{PART}"
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def __enter__(self) -> Draft:
        self._folder.make_room_for(self._name)
        self._stream = self._folder.files.open_output_stream(self._draft)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stream.close()
        if kind is None:
            self._folder.files.move(self._draft, self._name)
        else:
            self._folder.remove(self._draft)

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._stream.write(data)
        self._digest.update(data)
        self.num_bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self.num_bytes

    def flush(self) -> None:
        """Does nothing: the end of the `with` block completes the file."""

    def close(self) -> None:
        """Does nothing: the end of the `with` block completes the file."""

    def sha256(self) -> str:
        """Hex digest of what was written."""
        return self._digest.hexdigest()


def below(place: str, name: str) -> str:
    """The address of the folder `name` in a folder or under a URI, whose options stay at its end."""
    path, question_mark, options = place.partition("?")
    return f"{path.rstrip('/')}/{name}{question_mark}{options}"
