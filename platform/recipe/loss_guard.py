"""What happens to a step whose loss is NaN or infinite: left out, rolled back, or the end, never a poisoned weight.

The verdict depends on nothing but the steps that were bad and the run's settings, so every rank comes to the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig


class Verdict(Enum):
    """On one step."""

    GOOD = "good"
    SKIP = "left out"
    ROLL_BACK = "rolled back"
    STOP = "stopped"


@dataclass(slots=True)
class LossGuard:
    """Judges steps by `train.on_bad_loss` and its two limits."""

    config: TrainConfig
    streak: list[int] = field(default_factory=list)
    """The bad steps in a row up to now; part of a checkpoint."""
    left_out: set[int] = field(default_factory=set)
    """Steps that were bad before a roll-back: the same data would be bad again, so the replay skips them."""
    rollbacks: int = 0
    _buffers: list[Tensor] = field(default_factory=list)

    def judge(self, step: int, bad: bool) -> Verdict:
        """The verdict on step `step`, which is bad if its loss or gradient, over all ranks, is not finite."""
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
        """What was bad, for the message that says why the run stopped."""
        steps = ", ".join(map(str, self.streak))
        return (
            f"a loss or gradient was not finite at step {steps}, after {self.rollbacks} roll-backs ({self.config.on_bad_loss})"
        )

    def give_up_on_streak(self) -> None:
        """Skip the bad steps from now on. Call it before a roll-back, and store `left_out` and `rollbacks`."""
        self.left_out |= set(self.streak)
        self.rollbacks += 1

    def keep_buffers(self, model: nn.Module) -> None:
        """Copy the buffers before a forward pass: a bad one leaves NaN in batch-norm's running statistics."""
        if self.config.on_bad_loss != "skip":
            return
        buffers = list(model.buffers())
        if not self._buffers:
            self._buffers = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            torch._foreach_copy_(self._buffers, buffers)

    def restore_buffers(self, model: nn.Module) -> None:
        """Put the buffers back after a bad step, if they were kept."""
        if self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(list(model.buffers()), self._buffers)
