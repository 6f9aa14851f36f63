"""Ray Data behind an iterator: positions → read → pick frames → decode → augment → uint8 batches, in order.

Each rank streams its own slice of every step, in *windows* of at most `WINDOW_STEPS` steps. Each window is a small Ray Data
pipeline, and the next one starts before the current one has drained. So the first batch never waits for the plan of a long
run, and a stream can start at any step. With `data.decode: worker`, threads of the training process do the same work
(loading.py).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import ray.data
from ray.data import ExecutionOptions, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from starlab.pipelines.batch import Batch
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.loading import Columns, LoadClips, as_batch
from starlab.pipelines.prefetch import LOOK_UP_SECONDS, Prefetch, Waiting
from starlab.pipelines.schedule import EvalPlan, Plan, TrainPlan, rank_slice
from starlab.pipelines.sources import DataConfig

Batches = Waiting[Batch]
"""An iterator of batches; `next(give_up)` waits for one and looks up at intervals, `close()` ends the work behind it."""

WINDOW_STEPS = 1000
BATCHES_AHEAD = 3
_WINDOW_BATCHES_AHEAD = 3
_BLOCK_BYTES = 64 * 2**20
"""The largest output of a decode task. A task should take longer than a round of the executor, which starts the next one."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Resources of one rank's stream. The sum over ranks and their two overlapping windows must fit the cluster."""

    cpus: float
    """Logical CPUs of all its decode tasks together."""
    cpus_per_task: float
    object_store_bytes: int
    threads: int = 1
    """Threads of the training process that decode with `data.decode: worker`."""


def train_batches(
    source: ClipSource,
    config: DataConfig,
    plan: TrainPlan,
    num_steps: int,
    limits: StreamLimits,
    window_steps: int = WINDOW_STEPS,
) -> Batches:
    """This rank's slice of each of `num_steps` steps from `plan.first_step` on, in order, one batch a step.

    Loading starts at once, before the first batch is asked for. `config.decode` says where it happens.
    """
    low, high = rank_slice(plan.global_batch, plan.rank, plan.world)
    return _stream(source, config, plan, num_steps * (high - low), high - low, limits, window_steps)


def eval_batches(source: ClipSource, config: DataConfig, plan: EvalPlan, batch: int, limits: StreamLimits) -> Batches:
    """This rank's clips of `plan`, in order, in batches of `batch` (the last may be smaller)."""
    return _stream(source, config, plan, plan.num_rows(), batch, limits, WINDOW_STEPS)


def _stream(
    source: ClipSource,
    config: DataConfig,
    plan: Plan,
    num_rows: int,
    batch: int,
    limits: StreamLimits,
    window_steps: int,
) -> Batches:
    """Start at once, so that the first batches are loaded while the caller builds its model."""
    if config.decode == "worker":
        return Waiting(_load_in_threads(LoadClips(source, config, plan, 0), num_rows, batch, limits.threads))
    window_rows = window_steps * batch
    windows = []
    for first in range(0, num_rows, window_rows):
        rows = min(window_rows, num_rows - first)
        load = LoadClips(source, config, plan, first)
        windows.append(_Window(-(-rows // batch), Prefetch(_load_in_tasks(load, rows, batch, limits), _WINDOW_BATCHES_AHEAD)))
    return Waiting(_drain(windows))


@dataclass(frozen=True, slots=True)
class _Window:
    """One Ray Data pipeline, drained by a thread of its own."""

    num_batches: int
    batches: Prefetch[Batch]


def _drain(windows: list[_Window]) -> Generator[Batch | None, None, None]:
    """The batches of all windows in order, None while none is ready."""
    if windows:
        windows[0].batches.start()
    try:
        yield None  # for `Waiting`: the work has begun
        for window, following in itertools.zip_longest(windows, windows[1:]):
            step = 0
            for batch in window.batches.poll():
                if following is not None and step == window.num_batches * 6 // 10:
                    following.batches.start()
                    following = None
                yield batch
                step += batch is not None
    finally:
        for window in windows:
            window.batches.close()


def _load_in_threads(load: LoadClips, num_rows: int, batch: int, threads: int) -> Generator[Batch | None, None, None]:
    """Batches in order, None while none is ready; `BATCHES_AHEAD` are being loaded. Decoders release Python's lock."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="starlab-decode")
    starts = iter(range(0, num_rows, batch))
    loading: deque[tuple[Columns, list[Future[None]]]] = deque()

    def begin() -> None:
        first = next(starts, None)
        if first is not None:
            count = min(batch, num_rows - first)
            columns = load.empty(count)
            loading.append((columns, [pool.submit(load.load, first + slot, columns, slot) for slot in range(count)]))

    try:
        for _ in range(BATCHES_AHEAD):
            begin()
        yield None  # for `Waiting`: the work has begun
        while loading:
            columns, parts = loading.popleft()
            while wait(parts, timeout=LOOK_UP_SECONDS).not_done:
                yield None
            for part in parts:
                part.result()
            begin()
            yield as_batch(columns)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _load_in_tasks(load: LoadClips, num_rows: int, batch: int, limits: StreamLimits) -> Generator[Batch, None, None]:
    """Batches of one Ray Data pipeline, in order."""
    clip_bytes = load.config.frames * load.config.size**2 * 3
    block_bytes = min(_BLOCK_BYTES, limits.object_store_bytes // 8)  # several blocks fit side by side
    block_rows = batch * max(1, min(8, block_bytes // (clip_bytes * batch)))
    # One tiny row per block, made here: `ray.data.range` and `from_arrow` would plan by tasks that each want a whole CPU,
    # which is never free on a small machine with two trials.
    spans = [{"first": first, "rows": min(block_rows, num_rows - first)} for first in range(0, num_rows, block_rows)]

    def load_clips(span: Columns) -> Columns:
        return load({"id": span["first"][0] + np.arange(span["rows"][0])})

    clips = ray.data.from_items(spans, override_num_blocks=len(spans)).map_batches(
        load_clips, batch_size=None, batch_format="numpy", num_cpus=limits.cpus_per_task
    )
    # The context of this data set: the process-wide one is shared with the other window's thread.
    clips.context.enable_progress_bars = False
    clips.context.custom_execution_callback_classes = [_WholeShare, _Breather]
    clips.context.execution_options = ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources(cpu=limits.cpus, object_store_memory=limits.object_store_bytes),
    )
    for columns in clips.iter_batches(batch_size=batch, batch_format="numpy", prefetch_batches=1):
        yield as_batch(columns)


class _WholeShare(ExecutionCallback):
    """Lets a stream use all of its `StreamLimits`.

    Ray Data 2.60 divides what is free on each node among all streams of the cluster, and rounds every part down to a whole
    CPU. So where a node has fewer CPUs than there are streams, none of them gets any, and each runs one task at a time. The
    limits of all streams of a run, a search or an ablation together already fit the cluster; the tasks of other jobs wait
    for each other in Ray's queue.
    """

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        """Let the limits of the options be all that the executor counts with."""
        limits, manager = executor._options.resource_limits, executor._resource_manager
        whole_store = limits.object_store_memory / manager._object_store_memory_limit_fraction
        total = ExecutionResources(cpu=limits.cpu, object_store_memory=whole_store)
        manager._get_total_resources = lambda: total


class _Breather(ExecutionCallback):
    """Lets the executor's control loop rest between two rounds.

    While finished blocks wait for a slow consumer, the control loop of Ray Data 2.60 spins and would take half of this
    process's time from the training step. A round handles every task that is ready, so fewer rounds lose nothing. While the
    consumer waits, the rest is shorter so that the next tasks start soon.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Sleep; called after each round."""
        _, output = executor._output_node  # no public attribute of the executor shows the output queue
        time.sleep(0.05 if len(output.output_queue) else 0.01)
