"""Does one optimizer step: computes the gradients of a batch over all ranks and applies them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from starlab.experiments.sections import TrainConfig
from starlab.models.backbone import Backbone
from starlab.models.layers import StarLayer
from starlab.models.star import StarTransformer
from starlab.models.tokens import Bodies
from starlab.pipelines.batch import Batch
from starlab.platform.recipe.mixup import Mixing, draw_mixing
from starlab.platform.recipe.optimizer import learning_rate, set_rate, update_unless
from starlab.platform.recipe.pose_training import PoseTraining
from starlab.platform.recipe.precision import AUTOCAST, compiles, set_gpu_arithmetic
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.sums import Sums
from starlab.platform.recipe.training_state import TrainingState
from starlab.platform.recipe.transfers import Uploads


class TrainStep:
    """Trains the model one step at a time, each rank with its slice of the global batch.

    Call `gradients`, then `apply`. Neither waits for the device, so that a GPU always has work.
    """

    def __init__(
        self, state: TrainingState, config: TrainConfig, ranks: Ranks, device: torch.device, schedule_steps: int
    ) -> None:
        self._state, self._config, self._ranks, self._device = state, config, ranks, device
        self._schedule_steps = schedule_steps
        self._upload = Uploads(device)
        self._loss_is_bad = torch.tensor(False)
        self._parameters = list(state.model.parameters())
        self._model: nn.Module = state.model
        if isinstance(state.model, StarTransformer) and state.model.pose is not None:
            self._model = PoseTraining(state.model, config.pose_teacher_forcing)
        if device.type == "cuda":
            set_gpu_arithmetic(state.precision, tf32=config.tf32, deterministic=config.deterministic)
        if compiles(config, device):
            compile_regions(state.model)
        if ranks.world > 1:
            # Running statistics of batch norm are copied from rank 0 before each evaluation; nothing reads them earlier.
            self._model = DistributedDataParallel(self._model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def gradients(self, batch: Batch) -> Sums:
        """Compute the gradients of the mean loss over the global batch. Returns this rank's sums."""
        config, state, clips = self._config, self._state, len(batch.labels)
        torch.manual_seed(_step_seed(config.seed, state.step, self._ranks.rank))  # dropout and drop-path of this step
        mixing = draw_mixing(config, state.step, batch.frames.shape[1])
        state.guard.keep_buffers(state.model)
        sums = Sums.of(self._device, clips=clips, unreadable=len(batch.unreadable))
        for number in range(config.accumulate):
            low, high = clips * number // config.accumulate, clips * (number + 1) // config.accumulate
            part = batch.take(slice(low, high))
            with self._alone(number + 1 < config.accumulate):
                if mixing.share < 1:
                    neighbours = batch.take(np.arange(low - 1, high - 1))  # that of the first clip is the last one
                    losses, hits = self._mixed(part, neighbours, mixing)
                    objective = losses
                else:
                    losses, hits, objective = self._plain(part)
                # DDP averages over ranks, whose slices may differ in size: the local sum times world / G gives the global mean.
                state.scaler.scale(objective.sum() * self._ranks.world / config.global_batch).backward()
            sums.count(losses.detach(), hits)
        self._loss_is_bad = self._ranks.sum((~sums.tensor[0].isfinite()).float()) > 0
        return sums

    def _plain(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the losses of some clips, (B,), whether each was recognised, bool (B,), and what to minimise, (B,)."""
        batch, bodies = batch.by_bodies()
        frames, joints, labels = self._inputs(batch)
        logits, pose_losses = self._outputs(frames, joints, bodies)
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=self._config.label_smoothing)
        objective = losses
        if pose_losses is not None:
            objective = self._config.action_loss_weight * losses + self._config.pose_loss_weight * pose_losses
        return losses, logits.detach().argmax(1) == labels, objective

    def _mixed(self, batch: Batch, neighbours: Batch, mixing: Mixing) -> tuple[Tensor, Tensor]:
        """Compute losses and hits of clips that are mixed with their neighbours; the losses of their labels are mixed too."""
        frames, joints, labels = self._inputs(batch)
        other_frames, other_joints, others = self._inputs(neighbours)
        logits, _ = self._outputs(*mixing(frames, joints, other_frames, other_joints), None)
        smoothing = self._config.label_smoothing
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        other_losses = cross_entropy(logits, others, reduction="none", label_smoothing=smoothing)
        return torch.lerp(other_losses, losses, mixing.share), logits.detach().argmax(1) == labels

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Copy frames, joints and labels to the device."""
        return self._upload(batch.frames), self._upload(batch.joints), self._upload(batch.labels)

    def _outputs(self, frames: Tensor, joints: Tensor, bodies: Bodies | None) -> tuple[Tensor, Tensor | None]:
        """Compute logits, and the loss of each clip's pose if the model learns it."""
        dtype = AUTOCAST[self._state.precision]
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            found = self._model(frames, joints, bodies)
        logits, pose_losses = found if isinstance(found, tuple) else (found, None)
        return logits.float(), pose_losses

    def _alone(self, wanted: bool) -> AbstractContextManager[None]:
        """Return a context that skips the gradient exchange between ranks, if `wanted`."""
        return self._model.no_sync() if wanted and isinstance(self._model, DistributedDataParallel) else nullcontext()

    def apply(self) -> Tensor:
        """Update the weights and their average by the gradient, unless it is not finite.

        A step is bad if its loss or gradient is not finite on any rank. It changes nothing: weights, average, loss scale and
        the statistics of batch norm stay. In fp16 a loss scale that is too large makes the gradient infinite; that step is left
        out, the scale is halved, and the step counts as good. Once the scale is below 1, the gradient itself is bad.

        Returns:
            Whether the step was bad: a bool scalar on the device, equal on all ranks.
        """
        config, state, scaler = self._config, self._state, self._state.scaler
        scaler.unscale_(state.optimizer)
        parameters = [p for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
        scale = scaler.scale(torch.ones_like(norm))  # 1 except in fp16
        is_infinite = ~norm.isfinite()
        bad = self._loss_is_bad | is_infinite & (scale < 1) if scaler.is_enabled() else self._loss_is_bad | is_infinite
        set_rate(state.optimizer, learning_rate(config, state.step, self._schedule_steps))
        update_unless(bad | is_infinite, state.optimizer)
        if scaler.is_enabled():
            scaler.update()
            scaler.update(torch.where(bad, scale, scaler.scale(torch.ones_like(scale))))
        state.optimizer.zero_grad(set_to_none=True)
        state.guard.restore_buffers(bad)
        state.step += 1
        if state.average:
            state.average.update(state.step, unless=bad)
        return bad


def compile_regions(model: nn.Module) -> None:
    """Compile the training pass of the backbone and of each layer; layers of the same structure share their code.

    This takes less time than one graph of everything, and hooks, checkpointing and DDP stay outside. An evaluation has batches
    of other sizes, which would have to be compiled too, so it is not compiled. A copy of the model would compute with the
    weights of this one: copy it before.
    """
    torch._dynamo.config.recompile_limit = 64  # layers share one limit, and each may have several sizes of batch
    for region in model.modules():
        if isinstance(region, Backbone | StarLayer):
            region.forward = _compiled_in_training(region)  # type: ignore[method-assign]


def _compiled_in_training(region: nn.Module) -> Callable[..., Any]:
    eager = region.forward
    compiled = torch.compile(eager)

    def forward(*inputs: Any) -> Any:
        return compiled(*inputs) if region.training else eager(*inputs)

    return forward


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + rank
