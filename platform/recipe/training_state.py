"""Everything that a training step changes and that a checkpoint stores. Random numbers derive from the step number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.averaging import WeightAverage
from starlab.platform.recipe.loss_guard import LossGuard
from starlab.platform.recipe.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from starlab.platform.recipe.sums import Sums

_MODEL, _OPTIMIZER, _AVERAGE = "model/", "optimizer/", "average/"
"""Prefixes of the tensor names in a checkpoint."""


class TrainingState:
    """The state of one rank. After every step it is equal on all ranks, except for the running statistics of batch norm."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        device: torch.device,
        precision: str,
        taken: frozenset[str] = frozenset(),
    ) -> None:
        self.model, self.precision = model, precision
        self.step = 0
        """Number of optimizer steps done."""
        self.optimizer = make_optimizer(model, config, taken)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.average = WeightAverage(model, config.ema) if config.ema is not None else None
        self.guard = LossGuard(config)
        self.best: dict[str, float] = {}
        """Step and selection metrics of the best checkpoint so far."""
        self.unreadable: dict[str, str] = {}
        """Why clips could not be read, by clip id: of all ranks up to the last checkpoint, and of this rank since then."""
        self.pending = Sums.zero(device)
        """Sums over all ranks since the last point of the curve."""
        self.epoch = Sums.zero(device)
        """Sums over all ranks since the epoch began."""

    def too_many_unreadable(self, limit: float) -> str | None:
        """Return a message if more than the fraction `limit` of this epoch's clips could not be read, else None."""
        totals = self.epoch.totals()
        drawn = totals.clips + totals.unreadable
        if totals.unreadable <= limit * drawn:
            return None
        first = "; ".join(f"{clip}: {reason}" for clip, reason in sorted(self.unreadable.items())[:5])
        return (
            f"{totals.unreadable:.0f} of {drawn:.0f} clips drawn could not be read, more than "
            f"data.max_unreadable_fraction ({limit}) allows. The first: {first}"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by flat name."""
        tensors = {f"{_MODEL}{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"{_OPTIMIZER}{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.average:
            tensors |= {f"{_AVERAGE}{name}": value for name, value in self.average.tensors().items()}
        return tensors

    def numbers(self) -> dict[str, Any]:
        """Return the rest of a checkpoint, which is not tensors, in plain JSON types."""
        return {
            "pending": list(self.pending.totals()),
            "epoch": list(self.epoch.totals()),
            "best": self.best,
            "unreadable": self.unreadable,
            "scaler": self.scaler.state_dict(),
            "bad_streak": self.guard.streak,
        }

    def restore(self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Restore what `tensors` and `numbers` returned when `step` optimizer steps were done."""
        self.step = step
        self.model.load_state_dict(tensors_under(tensors, _MODEL))
        load_optimizer_tensors(self.optimizer, tensors_under(tensors, _OPTIMIZER))
        if self.average:
            self.average.load(tensors_under(tensors, _AVERAGE))
        self.pending.load(numbers["pending"])
        self.epoch.load(numbers["epoch"])
        self.best = dict(numbers["best"])
        self.unreadable = dict(numbers["unreadable"])
        self.guard.streak = list(numbers["bad_streak"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(numbers["scaler"])


def weights_to_evaluate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's state dict from the tensors of a checkpoint, with averaged weights if the run keeps them."""
    return tensors_under(tensors, _MODEL) | tensors_under(tensors, _AVERAGE)


def tensors_under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
