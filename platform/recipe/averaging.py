"""An exponential moving average of the weights: evaluated in their place, it is smoother than any single step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average ← d · average + (1 - d) · weights after every step, with d rising to `decay` over the first steps.

    Trainable parameters only: frozen ones do not move, and batch-norm's buffers are averages already.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self._weights: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        self._averages = [weight.detach().clone() for weight in self._weights]
        self._decay = decay

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` steps of the run."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the averages inside, and the very same weights as before afterwards."""
        with torch.no_grad():
            kept = [weight.detach().clone() for weight in self._weights]
            torch._foreach_copy_(self._weights, self._averages)
            try:
                yield
            finally:
                torch._foreach_copy_(self._weights, kept)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the names of their parameters."""
        return dict(zip(self._names, self._averages, strict=True))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        with torch.no_grad():
            for name, average in zip(self._names, self._averages, strict=True):
                average.copy_(tensors[name])
