"""Everything that a training step changes, and so all that a checkpoint holds. What a step draws comes from its number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.averaging import WeightAverage
from starlab.platform.recipe.loss_guard import LossGuard
from starlab.platform.recipe.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from starlab.platform.runs.checkpoint import Checkpoint


class TrainingState:
    """One replica of the training; equal on all ranks after every step, but for batch-norm's running statistics."""

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device, precision: str) -> None:
        self.model, self.precision = model, precision
        self.step = 0
        """Optimizer steps done."""
        self.optimizer = make_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.average = WeightAverage(model, config.ema) if config.ema is not None else None
        self.guard = LossGuard(config)
        self.best: dict[str, float] = {}
        """Step and the selection's metrics of the best checkpoint so far."""
        self.unreadable: dict[str, str] = {}
        """Reason by clip id: all ranks' up to the last checkpoint, and this rank's since."""
        # loss sum, hits, clips, unreadable
        self.pending = torch.zeros(4, dtype=torch.float64, device=device)
        """Sums over all ranks since the last point of the curve."""
        self.epoch = torch.zeros_like(self.pending)
        """The same since the epoch began."""

    def too_many_unreadable(self, limit: float) -> str | None:
        """What to say when more than `limit` of the clips drawn in this epoch could not be read; None when it is fine."""
        _, _, clips, unreadable = self.epoch.tolist()
        if unreadable <= limit * (clips + unreadable):
            return None
        first = "; ".join(f"{clip}: {reason}" for clip, reason in sorted(self.unreadable.items())[:5])
        return (
            f"{unreadable:.0f} of {clips + unreadable:.0f} clips drawn could not be read, more than "
            f"data.max_unreadable_fraction ({limit}) allows. The first: {first}"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Flat names → tensors, as a checkpoint stores them."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.average:
            tensors |= {f"average/{name}": value for name, value in self.average.tensors().items()}
        return tensors

    def numbers(self) -> dict[str, Any]:
        """What is no tensor, in plain JSON types."""
        return {
            "pending": self.pending.tolist(),
            "epoch": self.epoch.tolist(),
            "best": self.best,
            "unreadable": self.unreadable,
            "scaler": self.scaler.state_dict(),
            "bad_streak": self.guard.streak,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where the checkpoint was taken."""
        self.step = checkpoint.step
        self.model.load_state_dict(checkpoint.under("model/"))
        load_optimizer_tensors(self.optimizer, checkpoint.under("optimizer/"))
        if self.average:
            self.average.load(checkpoint.under("average/"))
        for sums, name in ((self.pending, "pending"), (self.epoch, "epoch")):
            sums.copy_(torch.tensor(checkpoint.state[name], dtype=sums.dtype))  # to wherever they live
        self.best = dict(checkpoint.state["best"])
        self.unreadable = dict(checkpoint.state["unreadable"])
        self.guard.streak = list(checkpoint.state["bad_streak"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])
