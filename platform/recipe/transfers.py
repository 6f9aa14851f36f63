"""Copies arrays to the device, and small results back, without making the host wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Uploads:
    """Copies arrays to the device. On a GPU it uses page-locked memory and a stream of its own, beside the step that runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, array: NDArray[Any]) -> Tensor:
        """Return the array as a tensor on the device. Work that is queued later waits for the copy, the host does not."""
        tensor = torch.from_numpy(array)
        if self._stream is None:
            return tensor.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = tensor.pin_memory().to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)  # its memory may be reused only after the work that is queued here
        return copied


class Download:
    """A small tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        """Start the copy."""
        self._copy, self._done = tensor.detach(), None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor.detach(), non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> Tensor:
        """Return the tensor on the host, as soon as the device has computed it."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy
