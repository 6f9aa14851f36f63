"""What the workers of a run say to each other: sums, gathered lists and rank 0's word. With one worker, nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This worker's number among `world`. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        shares: list[Any] = [value]
        if self.world > 1:
            shares = [None] * self.world
            dist.all_gather_object(shares, value)
        return shares

    def first(self, value: T) -> T:
        """Rank 0's value."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers (batch-norm's running statistics)."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
