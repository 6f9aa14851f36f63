"""Decides what to do about a step whose loss or gradient is NaN or infinite: skip it, roll back, or stop the run.

The verdict depends only on the bad steps so far and the run's settings, so it is the same on every rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.transfers import Download


class Verdict(Enum):
    """Verdict on one step. The values are the words used in events."""

    GOOD = "good"
    SKIP = "left out"
    ROLL_BACK = "rolled back"
    STOP = "stopped"


@dataclass(slots=True)
class LossGuard:
    """Judges steps by `train.on_bad_loss`, `train.max_bad_steps` and `train.max_rollbacks`."""

    config: TrainConfig
    streak: list[int] = field(default_factory=list)
    """The consecutive bad steps up to now. Stored in checkpoints."""
    left_out: set[int] = field(default_factory=set)
    """Steps that were bad before a roll-back. The replay skips them, because the same data would be bad again."""
    rollbacks: int = 0
    """Number of roll-backs so far."""
    _buffers: list[Tensor] = field(default_factory=list)
    _kept: list[Tensor] = field(default_factory=list)
    _unjudged: deque[tuple[int, Download]] = field(default_factory=deque)

    def note(self, step: int, bad: Tensor) -> None:
        """Note whether a step was bad, a bool scalar on the device, to be judged by `verdicts`."""
        self._unjudged.append((step, Download(bad)))

    def verdicts(self, except_last: int = 0) -> Iterator[tuple[int, Verdict]]:
        """Judge the noted steps in order, except the last few. Waits until the device has done them."""
        while len(self._unjudged) > except_last:
            step, bad = self._unjudged.popleft()
            yield step, self.judge(step, bool(bad.wait()))

    def judge(self, step: int, bad: bool) -> Verdict:
        """Return the verdict on a step. The step is bad if the loss or gradient of any rank is not finite."""
        if not bad:
            self.streak.clear()
            return Verdict.GOOD
        self.streak.append(step)
        policy = self.config.on_bad_loss
        if policy == "stop":
            return Verdict.STOP
        if policy == "skip" and len(self.streak) <= self.config.max_bad_steps:
            return Verdict.SKIP
        return Verdict.ROLL_BACK if self.rollbacks < self.config.max_rollbacks else Verdict.STOP

    def complaint(self) -> str:
        """Describe the bad steps, for the message that explains why the run stopped."""
        steps = ", ".join(map(str, self.streak))
        return (
            f"a loss or gradient was not finite at step {steps}, after {self.rollbacks} roll-backs ({self.config.on_bad_loss})"
        )

    def give_up_on_streak(self) -> None:
        """Add the current streak to `left_out` and count a roll-back. Call it before rolling back, then store both."""
        self.left_out |= set(self.streak)
        self.rollbacks += 1
        self._unjudged.clear()  # steps after the bad one are done again

    def keep_buffers(self, model: nn.Module) -> None:
        """Copy the buffers before a forward pass, because a bad one leaves NaN in the running statistics of batch norm."""
        if self.config.on_bad_loss != "skip":
            return
        if not self._buffers:  # once: walking through all modules costs host time in every step
            self._buffers = list(model.buffers())
            self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def restore_buffers(self, bad: Tensor) -> None:
        """Restore the buffers that `keep_buffers` copied, if the bool scalar `bad` is True. Does not wait for the device."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            torch.where(bad, kept, buffer, out=buffer)
