"""Frames of a clip that are decoded one after the other, when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class LazyFrames(Sequence[NDArray[np.uint8]]):
    """Frames that are decoded when they are asked for; the last one is kept, because short clips repeat frames."""

    def __init__(self, decode: Callable[[int], NDArray[np.uint8]], indices: Sequence[int]) -> None:
        self._decode, self._indices = decode, indices
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, place: slice) -> list[NDArray[np.uint8]]: ...
    def __getitem__(self, place: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        index = self._indices[place]
        if self._last is None or self._last[0] != index:
            self._last = (index, self._decode(index))
        return self._last[1]
