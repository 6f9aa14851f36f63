"""Keeps an exponential moving average of the weights, which is evaluated in place of the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Computes average ← d · average + (1 - d) · weights after every step, with d rising to `decay` over the first steps.

    Only trainable parameters are averaged: frozen ones do not change, and the buffers of batch norm are averages already.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self._weights: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        self._averages = [weight.detach().clone() for weight in self._weights]
        self._decay = decay

    @torch.no_grad()
    def update(self, steps: int, unless: Tensor) -> None:
        """Update the averages with the current weights, after `steps` steps of the run.

        Nothing changes if the bool scalar `unless` is True. This does not wait for the device.
        """
        decay = min(self._decay, (1 + steps) / (10 + steps))
        share = torch.where(unless, 0.0, 1 - decay)
        torch._foreach_lerp_(self._averages, self._weights, [share.to(weight.dtype) for weight in self._weights])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Load the averages into the model inside the `with` block, and restore its weights bit for bit afterwards."""
        with torch.no_grad():
            kept = [weight.detach().clone() for weight in self._weights]
            torch._foreach_copy_(self._weights, self._averages)
            try:
                yield
            finally:
                torch._foreach_copy_(self._weights, kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by parameter name."""
        return dict(zip(self._names, self._averages, strict=True))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the averages that `tensors` returned."""
        with torch.no_grad():
            for name, average in zip(self._names, self._averages, strict=True):
                average.copy_(tensors[name])
