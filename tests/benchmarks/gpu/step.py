"""A training step that can be repeated and timed, built from a `Setup` around the library's own `TrainStep`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from gpu.measure import matrix_flags
from gpu.setup import Bench, Setup, host_batch, model_config
from gpu.variants import EveryRowStar, VarlenAttention, residuals_in_fp32, stem_on_pixels, without_mask
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from starlab.experiments.sections import TrainConfig
from starlab.models import attention as attention_module
from starlab.models.star import StarTransformer
from starlab.models.tokens import Bodies
from starlab.pipelines.batch import Batch
from starlab.platform.recipe.loss_guard import Verdict
from starlab.platform.recipe.precision import AUTOCAST
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.train_step import TrainStep
from starlab.platform.recipe.training_state import TrainingState

T = TypeVar("T")
Inputs = tuple[Tensor, Tensor, Tensor]

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Kernels of fused attention that can be asked for."""


class StagedStep(TrainStep):
    """The library's step with inputs from `stage` instead of the batch's arrays, and absent bodies masked unless told."""

    stage: Callable[[], Inputs]

    def _inputs(self, batch: Batch) -> Inputs:
        return self.stage()


class MaskedBatch(Batch):
    """A batch whose absent bodies are masked by the model."""

    def by_bodies(self) -> tuple[Batch, None]:
        """Say nothing about bodies."""
        return self, None


class OwnThread:
    """Runs calls in a thread of its own, the backward passes included.

    cuDNN's choices of algorithms are kept by thread, and the first choice for a shape stays, whatever
    `torch.backends.cudnn.benchmark` says later. So a setup with benchmarking needs a thread that nothing else uses.
    """

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        torch.autograd.set_multithreading_enabled(False)
        while (call := self.calls.get()) is not None:
            function, future = call
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del call, function, future

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, or its exception."""
        future: Future[T] = Future()
        self.calls.put((function, future))
        return future.result()

    def close(self) -> None:
        """End the thread once it is idle."""
        self.calls.put(None)


class Step:
    """`step()` does one training step of a setup and returns the sum of its losses as a tensor on the device."""

    def __init__(self, setup: Setup, bench: Bench) -> None:
        """Build the model and everything around it; the weights are the same for all setups with the same parameters.

        Raises:
            ValueError: an option needs a GPU.
        """
        if not bench.on_gpu and (reason := needs_gpu(setup)):
            raise ValueError(f"{reason} needs a GPU")
        self.setup, self.device = setup, bench.device
        self.dropped = 0
        """Steps left out because a loss or gradient was not finite."""
        self.first_loss: Tensor | None = None
        """The sum of the first step's losses."""
        self.varlen = VarlenAttention() if setup.mask == "varlen" else None
        self.thread = OwnThread() if setup.cudnn_benchmark else None
        self._call(lambda: self._build(bench))

    def __call__(self) -> Tensor:
        """One step, under the flags of the setup."""
        loss = self._call(self._step)
        if self.first_loss is None:
            self.first_loss = loss
        return loss

    def close(self) -> None:
        """End the step's thread, if it has one."""
        if self.thread:
            self.thread.close()

    def _call(self, function: Callable[[], T]) -> T:
        return self.thread.call(function) if self.thread else function()

    def _build(self, bench: Bench) -> None:
        setup, device = self.setup, bench.device
        torch.manual_seed(0)
        with torch.device(device):
            self.model = (StarTransformer if setup.class_rows_last else EveryRowStar)(model_config(setup, bench.scale)).train()
        if not setup.stem_cells:
            stem_on_pixels(self.model)
        if setup.residuals == "fp32":
            residuals_in_fp32(self.model)
        if setup.mask == "none":
            self.model.tokens.register_forward_hook(without_mask)
        config = TrainConfig(
            global_batch=setup.clips,
            lr=setup.lr,
            optimizer=setup.optimizer,
            compile="on" if setup.compile == "regions" else "off",
            deterministic=setup.deterministic,
        )
        self.state = TrainingState(self.model, config, device, setup.precision)
        if setup.compile == "forward":
            self.model.forward = torch.compile(self.model.forward)  # type: ignore[method-assign]
        batch = host_batch(setup, bench.scale)
        self.batch = (
            batch if setup.mask == "left out" else MaskedBatch(**{f.name: getattr(batch, f.name) for f in fields(batch)})
        )
        self.stage = self._stage(bench)
        arguments = (self.state, config, Ranks(0, 1), device, 10**6)
        if setup.inputs == "library":
            self.train_step = TrainStep(*arguments)
        else:
            staged = StagedStep(*arguments)
            staged.stage = self.stage
            self.train_step = staged
        if setup.cuda_graphs:
            self._capture()
        torch.backends.cudnn.benchmark = False  # TrainStep sets it for the process; `flags` sets it for the step

    def _stage(self, bench: Bench) -> Callable[[], Inputs]:
        """The clips in the order of the batch that the model sees."""
        ordered, _ = self.batch.by_bodies()
        arrays = (ordered.frames, ordered.joints, ordered.labels)
        host = tuple(torch.from_numpy(array) for array in arrays)
        if self.setup.inputs == "pageable":
            return lambda: tuple(tensor.to(self.device) for tensor in host)  # type: ignore[return-value]
        inputs = tuple(tensor.to(self.device) for tensor in host)
        return lambda: inputs  # type: ignore[return-value]

    def _capture(self) -> None:
        """Put the model's forward and backward pass into CUDA graphs."""
        dtype = AUTOCAST[self.setup.precision]
        frames, joints, _ = self.stage()
        with self.flags(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            torch.cuda.make_graphed_callables(self.model, (frames, joints), allow_unused_input=True)
        graphed = self.model.forward  # which the call above has replaced

        def forward(frames: Tensor, joints: Tensor | None = None, bodies: Bodies | None = None) -> Tensor:
            return graphed(frames, joints)  # a graph takes tensors alone

        self.model.forward = forward  # type: ignore[method-assign]

    def _step(self) -> Tensor:
        with self.flags():
            return self._lean_step() if self.setup.loop == "lean" else self._library_step()

    def _library_step(self) -> Tensor:
        """What the library's training loop does with a batch on one worker, its guards included."""
        state, step = self.state, self.train_step
        sums = step.gradients(self.batch)
        state.guard.note(state.step, step.apply())
        judged = state.guard.verdicts(except_last=0 if self.setup.loop == "waiting" else 1)
        self.dropped += sum(verdict is not Verdict.GOOD for _, verdict in judged)
        return sums.tensor[0]

    def _lean_step(self) -> Tensor:
        """Forward, backward and optimizer, without guards."""
        state, (frames, joints, labels) = self.state, self.stage()
        dtype = AUTOCAST[state.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.model(frames, joints)
        loss = cross_entropy(logits.float(), labels)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        return loss.detach() * len(labels)

    @contextmanager
    def flags(self) -> Iterator[None]:
        """The process-wide switches of the setup, put back afterwards."""
        setup, before = self.setup, torch.backends.cudnn.benchmark
        with ExitStack() as stack:
            # In half precision there is no fp32 convolution, but some releases of torch take "no TF32" to forbid tensor cores.
            conv_tf32 = setup.tf32 or setup.precision != "fp32"
            stack.enter_context(matrix_flags(matmul_tf32=setup.tf32, conv_tf32=conv_tf32))
            stack.enter_context(nullcontext() if setup.attention == "auto" else sdpa_kernel([BACKENDS[setup.attention]]))
            if self.varlen:
                stack.enter_context(patch.object(attention_module, "scaled_dot_product_attention", self.varlen))
            torch.backends.cudnn.benchmark = setup.cudnn_benchmark
            torch.use_deterministic_algorithms(setup.deterministic)
            try:
                yield
            finally:
                torch.backends.cudnn.benchmark = before
                torch.use_deterministic_algorithms(False)


def needs_gpu(setup: Setup) -> str | None:
    """The option of a setup that only a GPU has, or that takes too long elsewhere; None if it has none."""
    wanted = {  # by the reason
        f"attention {setup.attention!r}": setup.attention != "auto",
        "variable-length attention": setup.mask == "varlen",
        "torch.compile here": setup.compile != "off",
        "a CUDA graph": setup.cuda_graphs,
    }
    return next((reason for reason, is_wanted in wanted.items() if is_wanted), None)
