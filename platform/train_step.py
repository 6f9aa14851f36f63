"""One optimizer step: a batch's gradients over all ranks, and what they do to the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from starlab.experiments.sections import TrainConfig
from starlab.pipelines.batch import Batch
from starlab.platform.device import compiles
from starlab.platform.mixing import mix, mixing_share
from starlab.platform.optimization import learning_rate
from starlab.platform.precision import AUTOCAST
from starlab.platform.ranks import Ranks
from starlab.platform.training_state import TrainingState


class TrainStep:
    """`gradients`, then either `apply` (after `clip`) or `drop`; each rank with its slice of the global batch."""

    def __init__(self, state: TrainingState, config: TrainConfig, ranks: Ranks, device: torch.device, total_steps: int) -> None:
        self._state, self._config, self._ranks, self._device = state, config, ranks, device
        self._total_steps = total_steps
        self._model: nn.Module = state.model
        if compiles(config.compile, device):
            # The forward pass alone: hooks (the watchdog's beat) and DDP's own work stay outside of the graph.
            state.model.forward = torch.compile(state.model.forward)
        if ranks.world > 1:
            # Batch-norm's running statistics are rank 0's, handed round before each evaluation: nothing reads them earlier.
            self._model = DistributedDataParallel(state.model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def gradients(self, batch: Batch) -> Tensor:
        """Gradients of the global batch's mean loss. Returns this rank's sums, float64 (4,): loss, hits, clips, unreadable."""
        config, state, clips = self._config, self._state, len(batch.labels)
        torch.manual_seed(_step_seed(config.seed, state.step, self._ranks.rank))  # dropout and drop-path of this step
        share = mixing_share(config.mixup, config.seed, state.step)
        state.guard.keep_buffers(state.model)
        counts = torch.tensor([clips, len(batch.unreadable)], dtype=torch.float64, device=self._device)
        sums = torch.cat([torch.zeros_like(counts), counts])
        for number in range(config.accumulate):
            part = slice(clips * number // config.accumulate, clips * (number + 1) // config.accumulate)
            frames = torch.from_numpy(batch.frames[part]).to(self._device, non_blocking=True)
            joints = torch.from_numpy(batch.joints[part]).to(self._device, non_blocking=True)
            labels = torch.from_numpy(batch.labels[part]).to(self._device)
            with self._alone(number + 1 < config.accumulate):
                dtype = AUTOCAST[state.precision]
                with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
                    logits: Tensor = self._model(*mix(frames, joints, share))
                losses = _losses(logits.float(), labels, config.label_smoothing, share)
                # DDP averages over ranks; ranks may hold unequal slices. So: the sum here, times world / G, is the global mean.
                state.scaler.scale(losses.sum() * self._ranks.world / config.global_batch).backward()
            hits = (logits.detach().argmax(dim=1) == labels).sum()
            sums[:2] += torch.stack([losses.detach().double().sum(), hits.double()])
        return sums

    def clip(self) -> bool:
        """Clip the gradient. False where it is not finite, on all ranks alike; in fp16 the loss scaler takes care of those."""
        if self._config.clip_norm is None:
            return True
        self._state.scaler.unscale_(self._state.optimizer)
        norm = nn.utils.clip_grad_norm_(self._state.model.parameters(), self._config.clip_norm)
        return self._state.precision == "fp16" or bool(norm.isfinite())

    def _alone(self, wanted: bool) -> AbstractContextManager[None]:
        """Gradients stay on this rank until the last part of its share."""
        return self._model.no_sync() if wanted and isinstance(self._model, DistributedDataParallel) else nullcontext()

    def apply(self) -> None:
        """Move the weights, and their average."""
        state = self._state
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(self._config, state.step, self._total_steps)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.average:
            state.average.update(state.step)

    def drop(self) -> None:
        """Leave the weights as they are, and batch-norm's statistics as they were."""
        self._state.optimizer.zero_grad(set_to_none=True)
        self._state.guard.restore_buffers(self._state.model)


def _losses(logits: Tensor, labels: Tensor, smoothing: float, share: float) -> Tensor:
    """(B,) cross-entropies; of a blended clip, those of its two labels by their shares."""
    losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if share == 1:
        return losses
    other = cross_entropy(logits, labels.roll(1), reduction="none", label_smoothing=smoothing)
    return torch.lerp(other, losses, share)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + rank
