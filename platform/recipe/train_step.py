"""Does one optimizer step: computes the gradients of a batch over all ranks and applies them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from starlab.experiments.sections import TrainConfig
from starlab.pipelines.batch import Batch
from starlab.platform.recipe.mixup import mix, mixing_share
from starlab.platform.recipe.optimizer import learning_rate, set_rate
from starlab.platform.recipe.precision import AUTOCAST, compiles
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.sums import Sums
from starlab.platform.recipe.training_state import TrainingState


class TrainStep:
    """Trains the model one step at a time, each rank with its slice of the global batch.

    Call `gradients`, then `clip`, then either `apply` or `drop`.
    """

    def __init__(
        self, state: TrainingState, config: TrainConfig, ranks: Ranks, device: torch.device, schedule_steps: int
    ) -> None:
        self._state, self._config, self._ranks, self._device = state, config, ranks, device
        self._schedule_steps = schedule_steps
        self._unscaled = False
        """Whether the loss scaler has unscaled the gradients of this step."""
        self._model: nn.Module = state.model
        if compiles(config.compile, device):
            # Only the forward pass is compiled: hooks (the watchdog's beat) and DDP's own work stay outside the graph.
            state.model.forward = torch.compile(state.model.forward)
        if ranks.world > 1:
            # Running statistics of batch norm are copied from rank 0 before each evaluation; nothing reads them earlier.
            self._model = DistributedDataParallel(state.model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def gradients(self, batch: Batch) -> Sums:
        """Compute the gradients of the mean loss over the global batch. Returns this rank's sums."""
        config, state, clips = self._config, self._state, len(batch.labels)
        torch.manual_seed(_step_seed(config.seed, state.step, self._ranks.rank))  # dropout and drop-path of this step
        share = mixing_share(config.mixup, config.seed, state.step)
        state.guard.keep_buffers(state.model)
        counts = torch.tensor([clips, len(batch.unreadable)], dtype=torch.float64, device=self._device)
        sums = torch.cat([torch.zeros_like(counts), counts])
        for number in range(config.accumulate):
            part = slice(clips * number // config.accumulate, clips * (number + 1) // config.accumulate)
            frames, joints, labels = self._inputs(batch, part)
            others = labels
            if share < 1:
                neighbours = np.arange(
                    part.start - 1, part.stop - 1
                )  # the first clip's neighbour is the last of this rank's slice
                other_frames, other_joints, others = self._inputs(batch, neighbours)
                frames, joints = mix(frames, joints, other_frames, other_joints, share)
            with self._alone(number + 1 < config.accumulate):
                dtype = AUTOCAST[state.precision]
                with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
                    logits: Tensor = self._model(frames, joints)
                losses = _losses(logits.float(), labels, others, config.label_smoothing, share)
                # DDP averages over ranks, whose slices may differ in size: the local sum times world / G gives the global mean.
                state.scaler.scale(losses.sum() * self._ranks.world / config.global_batch).backward()
            hits = (logits.detach().argmax(dim=1) == labels).sum()
            sums[:2] += torch.stack([losses.detach().double().sum(), hits.double()])
        return Sums(sums)

    def _inputs(self, batch: Batch, clips: slice | NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Copy frames, joints and labels of some clips of the batch to the device."""
        frames = torch.from_numpy(batch.frames[clips]).to(self._device, non_blocking=True)
        joints = torch.from_numpy(batch.joints[clips]).to(self._device, non_blocking=True)
        return frames, joints, torch.from_numpy(batch.labels[clips]).to(self._device)

    def clip(self) -> bool:
        """Clip the gradient if `train.clip_norm` is set. Returns False if the gradient is not finite, equally on all ranks.

        In fp16 a loss scale that is too large makes the gradient infinite, and the scaler lowers the scale. Once the scale is
        below 1, the gradient itself is bad.
        """
        scaler, parameters = self._state.scaler, list(self._state.model.parameters())
        if self._config.clip_norm is None:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            scaler.unscale_(self._state.optimizer)
            self._unscaled = True
            norm = nn.utils.clip_grad_norm_(parameters, self._config.clip_norm)
        return bool(norm.isfinite()) or (self._state.precision == "fp16" and scaler.get_scale() >= 1)

    def _alone(self, wanted: bool) -> AbstractContextManager[None]:
        """Return a context that skips the gradient exchange between ranks, if `wanted`."""
        return self._model.no_sync() if wanted and isinstance(self._model, DistributedDataParallel) else nullcontext()

    def apply(self) -> None:
        """Update the weights and their average."""
        state = self._state
        set_rate(state.optimizer, learning_rate(self._config, state.step, self._schedule_steps))
        state.scaler.step(state.optimizer)
        state.scaler.update()
        self._unscaled = False
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.average:
            state.average.update(state.step)

    def drop(self) -> None:
        """Discard the gradients and restore the running statistics of batch norm. The weights do not change."""
        if self._unscaled:
            self._state.scaler.update(new_scale=self._state.scaler.get_scale())  # allows the scaler to unscale again
            self._unscaled = False
        self._state.optimizer.zero_grad(set_to_none=True)
        self._state.guard.restore_buffers(self._state.model)


def _losses(logits: Tensor, labels: Tensor, others: Tensor, smoothing: float, share: float) -> Tensor:
    """Compute the (B,) cross-entropies. For a blended clip, mix those of its two labels by their shares."""
    losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if share == 1:
        return losses
    other = cross_entropy(logits, others, reduction="none", label_smoothing=smoothing)
    return torch.lerp(other, losses, share)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + rank
