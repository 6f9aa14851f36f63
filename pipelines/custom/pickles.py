"""A pickle of plain data, read without running its code.

`pickle.load` calls whatever a file names. Here a file may name only what NumPy needs to make an array again; everything else is
refused by its name before it is imported. The bytes of arrays are taken as numbers: arrays of objects are refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.clip import DataError

MAX_BYTES = 16 * 2**30
_DTYPE_KINDS = "biufSU"
"""Booleans, whole numbers, floats and text."""
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")


def read_pickle(path: Path) -> Any:
    """The dicts, lists, tuples, strings, numbers and NumPy arrays in a pickle.

    Raises:
        DataError: the file cannot be read, is no pickle, or wants anything else; the message names it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size / 2**30:.0f} GiB; at most {MAX_BYTES / 2**30:.0f} are read")
        with path.open("rb") as file:
            return _plain(_Reader(file).load())
    except (DataError, MemoryError):
        raise
    except _RefusedError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises a dozen kinds
        raise DataError(f"{path} is not a readable pickle ({type(error).__name__}: {error})") from None


class _RefusedError(Exception):
    """A pickle names something that is not plain data."""


class _Dtype:
    """Stands for `numpy.dtype` while a pickle is read: the real one would let a file change a shared type."""

    def __init__(self, name: object, *_: object) -> None:
        self.dtype = np.dtype(name) if isinstance(name, str) else None
        if self.dtype is None or self.dtype.kind not in _DTYPE_KINDS:
            raise _RefusedError(f"an array of {name!r} is refused: only numbers and text are read")

    def __setstate__(self, state: object) -> None:
        """Takes the byte order, which is all that plain types keep there besides their size."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "=") or self.dtype is None:
            raise _RefusedError("the type of an array is described in a way that is not read")
        if self.dtype.kind not in "SU":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array until its state is known."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        """Takes shape, type and bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("an array is described in a way that is not read")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise _RefusedError("an array of objects is refused: only numbers and text are read")
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: object, dtype: object, shape: Any, order: str) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray | memoryview):
        raise _RefusedError("an array of objects is refused: only numbers and text are read")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: object, data: object = b"") -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise _RefusedError("a number is described in a way that is not read")
    return np.frombuffer(data, dtype.dtype)[0]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """How Python 2 wrote bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "bytes"):
        raise _RefusedError("_codecs.encode is called with something else than text")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How the oldest protocols write empty bytes."""
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    **{(module, "_reconstruct"): _Array for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _from_buffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
}


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """One of the few that an array needs."""
        if (module, name) not in _KNOWN:
            raise _RefusedError(
                f"it wants to run {module}.{name}, which is refused: only dicts, lists, text, numbers and NumPy arrays are "
                "read. Write it again with plain data"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: object) -> Any:
        """Refused: it would mean an object outside of the file."""
        raise _RefusedError(f"it refers to an object outside of the file ({pid!r}), which is refused")


def _plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """The value with its arrays, which are made only now.

    A part that is in several places is made once: a small file can refer to a part so often that it would fill any memory.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    made = value
    if isinstance(value, _Array):
        if value.array is None:
            raise _RefusedError("an array has no content")
        made = value.array
    elif isinstance(value, dict):
        made = {key: _plain(item, done) for key, item in value.items()}
    elif isinstance(value, list):
        made = [_plain(item, done) for item in value]
    elif isinstance(value, tuple):
        made = tuple(_plain(item, done) for item in value)
    done[id(value)] = made
    return made
