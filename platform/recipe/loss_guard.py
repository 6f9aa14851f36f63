"""What becomes of a step whose loss is NaN or infinite: left out, rolled back, or the end, never a poisoned weight.

The verdict depends on nothing but the steps that were bad and the run's settings, so every rank that is told the same comes to
the same one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig
from starlab.platform.runs.folder import RunFolder

FILE = "bad_steps.json"


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
    """Steps that were bad before a roll-back: the same data would be bad again, so the replay passes them over."""
    rollbacks: int = 0
    _buffers: list[Tensor] = field(default_factory=list)

    def judge(self, step: int, bad: bool) -> Verdict:
        """The verdict on step `step`, bad if its loss or gradient, over all ranks, is not finite."""
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
        """What was bad, for whoever reads why the run stopped."""
        steps = ", ".join(map(str, self.streak))
        return (
            f"a loss or gradient was not finite at step {steps}, after {self.rollbacks} roll-backs ({self.config.on_bad_loss})"
        )

    def give_up_on_streak(self, folder: RunFolder | None) -> None:
        """Before a roll-back: the bad steps are passed over from now on, by a restarted run too. Rank 0 gives its folder."""
        self.left_out |= set(self.streak)
        self.rollbacks += 1
        if folder:
            with suppress(OSError):  # on a full disk a restarted run meets them once more
                folder.write_json(FILE, {"left_out": sorted(self.left_out), "rollbacks": self.rollbacks})

    def recall(self, stored: dict[str, Any]) -> None:
        """Put back what `give_up_on_streak` wrote, if it did."""
        self.left_out, self.rollbacks = set(stored.get("left_out", [])), stored.get("rollbacks", 0)

    def keep_buffers(self, model: nn.Module) -> None:
        """Before a forward pass: a bad one leaves NaN in batch-norm's running statistics."""
        if self.config.on_bad_loss != "skip":
            return
        buffers = list(model.buffers())
        if not self._buffers:
            self._buffers = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            torch._foreach_copy_(self._buffers, buffers)

    def restore_buffers(self, model: nn.Module) -> None:
        """After a bad step, if they were kept."""
        if self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(list(model.buffers()), self._buffers)
