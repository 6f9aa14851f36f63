"""Communication between the workers of a run: sums, gathered values and broadcasts. One worker alone sends nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This worker's rank among `world` workers. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    world: int
    hosts: Any = None
    """The process group that exchanges values without the GPUs; None is the default group."""

    @classmethod
    def of(cls, rank: int, world: int, device: torch.device, timeout_seconds: float) -> Ranks:
        """Create the ranks of workers that compute on devices like this one. All ranks call it."""
        if world == 1 or device.type != "cuda":
            return cls(rank, world)
        return cls(rank, world, dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)))

    def any(self, value: bool) -> bool:
        """Return whether the value is True on any rank. Waits for the other ranks, but not for the device."""
        if self.world == 1:
            return value
        total = torch.tensor(float(value))
        dist.all_reduce(total, group=self.hosts)
        return bool(total > 0)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of the ranks."""
        shares: list[Any] = [value]
        if self.world > 1:
            shares = [None] * self.world
            dist.all_gather_object(shares, value)
        return shares

    def first(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def share_buffers(self, module: nn.Module) -> None:
        """Copy rank 0's buffers (the running statistics of batch norm) to every rank."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
