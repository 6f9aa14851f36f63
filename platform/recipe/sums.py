"""What training steps add up for the curve: loss, hits, clips and unreadable clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Totals(NamedTuple):
    """Sums as plain numbers."""

    loss: float
    """Sum of the clips' losses, in nats."""
    hits: float
    """Clips whose most likely class was the true one."""
    clips: float
    unreadable: float
    """Clips that could not be read and were replaced."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The same as one float64 tensor of shape (4,) on the device, so that ranks add all of them in one collective."""

    tensor: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> Sums:
        """Sums over nothing."""
        return cls(torch.zeros(len(Totals._fields), dtype=torch.float64, device=device))

    @property
    def loss(self) -> Tensor:
        """The sum of losses, on the device."""
        return self.tensor[0]

    def totals(self) -> Totals:
        """The sums as numbers; waits for the device."""
        return Totals(*self.tensor.tolist())

    def add(self, other: Sums) -> None:
        """Add another's sums."""
        self.tensor.add_(other.tensor)

    def clear(self) -> None:
        """Back to zero."""
        self.tensor.zero_()

    def load(self, values: list[float]) -> None:
        """Take the numbers of a checkpoint."""
        self.tensor.copy_(torch.tensor(values, dtype=self.tensor.dtype))
