"""Sums that training steps accumulate for the curve: loss, hits, clips and unreadable clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Totals(NamedTuple):
    """Accumulated sums as plain numbers."""

    loss: float
    """Sum of the clips' losses, in nats."""
    hits: float
    """Number of clips whose most likely class was the true one."""
    clips: float
    """Number of clips trained on."""
    unreadable: float
    """Number of clips that could not be read and were replaced."""

    @property
    def mean_loss(self) -> float:
        """Mean loss of a clip, in nats. There must be clips."""
        return self.loss / self.clips

    @property
    def top1(self) -> float:
        """Share of clips whose most likely class was the true one, in [0, 1]. There must be clips."""
        return self.hits / self.clips


@dataclass(frozen=True, slots=True)
class Sums:
    """Accumulated sums as one float64 tensor of shape (4,) on the device, which ranks can add in one collective."""

    tensor: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> Sums:
        """Create sums that are all zero."""
        return cls(torch.zeros(len(Totals._fields), dtype=torch.float64, device=device))

    @classmethod
    def of(cls, device: torch.device, *, clips: int, unreadable: int) -> Sums:
        """Create the sums of a step before its losses and hits are counted."""
        sums = cls.zero(device)
        sums.tensor[2].fill_(clips)  # a tensor made of numbers would be copied to the device, and the host would wait for that
        sums.tensor[3].fill_(unreadable)
        return sums

    def count(self, losses: Tensor, hits: Tensor) -> None:
        """Add losses, (B,), and hits, bool (B,), of clips."""
        self.tensor[:2] += torch.stack([losses.double().sum(), hits.double().sum()])

    def totals(self) -> Totals:
        """Return the sums as numbers. Waits for the device."""
        return Totals(*self.tensor.tolist())

    def add(self, other: Sums, unless: Tensor | None = None) -> None:
        """Add other sums to these, in place; not if the bool scalar `unless` is True. Does not wait for the device."""
        self.tensor.add_(other.tensor if unless is None else torch.where(unless, 0, other.tensor))

    def clear(self) -> None:
        """Set the sums to zero."""
        self.tensor.zero_()

    def load(self, values: list[float]) -> None:
        """Set the sums to the numbers of a checkpoint."""
        self.tensor.copy_(torch.tensor(values, dtype=self.tensor.dtype))
