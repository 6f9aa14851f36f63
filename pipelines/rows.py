"""A long list of rows kept as Arrow columns: 100,000 rows cost a few megabytes, and each becomes an object when it is used."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

T = TypeVar("T")
_CHUNK_ROWS = 4096


class Rows(Sequence[T]):
    """The rows of an Arrow table as an immutable sequence, equal to any sequence of equal rows."""

    def __init__(self, table: pa.Table, make: Callable[[dict[str, Any]], T]) -> None:
        """Keep the table.

        Args:
            table: A row each.
            make: A row's object from its values by column name.
        """
        self.table = table.combine_chunks()
        self._make = make
        self._columns = {name: _array(self.table.column(name)) for name in self.table.column_names}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = int(index) + len(self) if index < 0 else int(index)
        if not 0 <= place < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._make({name: column[place].as_py() for name, column in self._columns.items()})

    def __iter__(self) -> Iterator[T]:
        for batch in self.table.to_batches(max_chunksize=_CHUNK_ROWS):
            yield from map(self._make, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def find(self, column: str, value: str) -> int | None:
        """The position of the row with this value, in a column that is sorted; None where there is none."""
        values = self._columns[column]
        place = bisect_left(range(len(self)), value, key=lambda row: values[row].as_py())
        return place if place < len(self) and values[place].as_py() == value else None


class Subset(Sequence[T]):
    """Some rows of a sequence, by their positions in it."""

    def __init__(self, rows: Sequence[T], places: Sequence[int] | NDArray[np.int32]) -> None:
        self._rows, self._places = rows, np.asarray(places, np.int32)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self._rows[place] for place in self._places[index])
        return self._rows[int(self._places[index])]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def _array(column: pa.ChunkedArray) -> pa.Array:
    """The one chunk of a combined column; of an empty table there is none."""
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
