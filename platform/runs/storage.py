"""Where checkpoints lie: a folder of files on a disk, or under a URI such as s3://bucket/path. Nothing relies on a rename.

Names are relative, with `/`. Every failure is an OSError.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

import pyarrow.fs


class Storage(Protocol):
    """A folder of files."""

    def folders(self) -> list[str]:
        """Names of the folders in it, sorted; none when it does not exist yet."""
        ...

    def has(self, name: str) -> bool:
        """Whether this file exists."""
        ...

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file; on return it outlives a crash of this machine."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, or a folder and all in it."""
        ...


class Disk:
    """A folder of this machine's file system, shared with the other nodes or not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def folders(self) -> list[str]:
        """See `Storage`."""
        return sorted(path.name for path in self._path.iterdir() if path.is_dir()) if self._path.is_dir() else []

    def has(self, name: str) -> bool:
        """See `Storage`."""
        return (self._path / name).is_file()

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def delete(self, name: str) -> None:
        """See `Storage`."""
        path = self._path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class Bucket:
    """A folder under a URI that pyarrow reaches: s3://, gs://, hdfs://, file://."""

    def __init__(self, uri: str) -> None:
        """Raises ValueError for a URI that pyarrow does not know."""
        self._uri = uri
        self._files, self._root = pyarrow.fs.FileSystem.from_uri(uri)

    def __str__(self) -> str:
        return self._uri

    def folders(self) -> list[str]:
        """See `Storage`."""
        kind = pyarrow.fs.FileType
        found = self._files.get_file_info(pyarrow.fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == kind.Directory)

    def has(self, name: str) -> bool:
        """See `Storage`."""
        return bool(self._files.get_file_info(f"{self._root}/{name}").type == pyarrow.fs.FileType.File)

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        with self._files.open_input_stream(f"{self._root}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        # A bucket has no folders and needs none; other file systems behind a URI do.
        self._files.create_dir(f"{self._root}/{name}".rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(f"{self._root}/{name}") as stream:
            stream.write(data)

    def delete(self, name: str) -> None:
        """See `Storage`."""
        path = f"{self._root}/{name}"
        if self._files.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            self._files.delete_dir(path)
        else:
            self._files.delete_file(path)


def below(place: str, name: str) -> str:
    """The folder `name` in a folder or under a URI, whose options stay at its end."""
    path, question_mark, options = place.partition("?")
    return f"{path.rstrip('/')}/{name}{question_mark}{options}"


def open_storage(place: str | Path) -> Storage:
    """A path, or a URI where there is a `://`."""
    return Bucket(place) if isinstance(place, str) and "://" in place else Disk(Path(place))
