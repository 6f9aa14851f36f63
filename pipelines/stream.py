"""Ray Data behind an iterator: positions → read → pick frames → decode → augment → uint8 batches, in order.

Each rank streams its own slice of every step, in *windows* of at most `WINDOW_STEPS` steps, each a small Ray Data
pipeline; the next window starts before the current one drains. So the first batch never waits for the plan of a long run,
and a stream can start at any step. With `data.decode: worker` the same work (batch.py) is done by threads of the training
process.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray.data
from ray.data import ExecutionOptions, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from starlab.pipelines.batch import Batch, Columns, LoadClips, as_batch
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.schedule import EvalPlan, Plan, TrainPlan, rank_slice
from starlab.pipelines.sources import DataConfig

WINDOW_STEPS = 1000
BATCHES_AHEAD = 3
_BLOCK_BYTES = 64 * 2**20
"""What a decode task makes at most: a task should take longer than a round of the executor, which starts the next one."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one rank's stream may use; the sum over ranks and their two overlapping windows must fit the cluster."""

    cpus: float
    """Logical CPUs of all its decode tasks together."""
    cpus_per_task: float
    object_store_bytes: int
    threads: int = 1
    """Of the training process, where it decodes by itself."""


def train_batches(
    source: ClipSource,
    config: DataConfig,
    plan: TrainPlan,
    num_steps: int,
    limits: StreamLimits,
    window_steps: int = WINDOW_STEPS,
) -> Generator[Batch, None, None]:
    """This rank's slice of each of `num_steps` steps from `plan.first_step` on, in order, one batch a step.

    Loading starts at once, before the first batch is asked for; where it happens, `config.decode` says.
    """
    low, high = rank_slice(plan.global_batch, plan.rank, plan.world)
    return _stream(source, config, plan, num_steps * (high - low), high - low, limits, window_steps)


def eval_batches(
    source: ClipSource, config: DataConfig, plan: EvalPlan, batch: int, limits: StreamLimits
) -> Generator[Batch, None, None]:
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
) -> Generator[Batch, None, None]:
    """Start at once: the first batches are loaded while the caller builds its model."""
    if config.decode == "worker":
        return _load_in_threads(LoadClips(source, config, plan, 0), num_rows, batch, limits.threads)
    window_rows = window_steps * batch
    windows = [
        _Window(source, config, plan, first, min(window_rows, num_rows - first), batch, limits)
        for first in range(0, num_rows, window_rows)
    ]
    if windows:
        windows[0].start()
    return _drain(windows)


def _drain(windows: list[_Window]) -> Generator[Batch, None, None]:
    try:
        for window, following in itertools.zip_longest(windows, windows[1:]):
            for step in range(window.num_batches):
                if following is not None and step == window.num_batches * 6 // 10:
                    following.start()
                yield window.next()
    finally:
        for window in windows:
            window.stop()


def _load_in_threads(load: LoadClips, num_rows: int, batch: int, threads: int) -> Generator[Batch, None, None]:
    """Batches in order, `BATCHES_AHEAD` of them in the making; the decoders work outside Python's lock."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="starlab-decode")
    starts = iter(range(0, num_rows, batch))
    loading: deque[tuple[Columns, list[Future[None]]]] = deque()

    def begin() -> None:
        first = next(starts, None)
        if first is not None:
            count = min(batch, num_rows - first)
            columns = load.empty(count)
            loading.append((columns, [pool.submit(load.load, first + slot, columns, slot) for slot in range(count)]))

    def drain() -> Generator[Batch, None, None]:
        try:
            while loading:
                columns, parts = loading.popleft()
                for part in parts:
                    part.result()
                begin()
                yield as_batch(columns)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    for _ in range(BATCHES_AHEAD):
        begin()
    return drain()


class _Window:
    """One Ray Data pipeline, drained by a thread of its own into a short queue."""

    def __init__(
        self,
        source: ClipSource,
        config: DataConfig,
        plan: Plan,
        first_row: int,
        num_rows: int,
        batch: int,
        limits: StreamLimits,
    ) -> None:
        self.num_batches = -(-num_rows // batch)
        self._load = LoadClips(source, config, plan, first_row)
        self._num_rows, self._batch, self._limits = num_rows, batch, limits
        self._clip_bytes = config.frames * config.size**2 * 3
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._drain, name="starlab-stream", daemon=True)

    def start(self) -> None:
        """Plan and run the pipeline in the background."""
        self._thread.start()

    def next(self) -> Batch:
        """The next batch; waits for it. A failure of the pipeline is raised here."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the thread; batches not yet taken are dropped."""
        self._stopped.set()

    def _drain(self) -> None:
        try:
            for columns in self._dataset().iter_batches(batch_size=self._batch, batch_format="numpy", prefetch_batches=1):
                if not self._offer(as_batch(columns)):
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            self._offer(error)

    def _offer(self, item: Batch | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def _dataset(self) -> ray.data.Dataset:
        block_bytes = min(_BLOCK_BYTES, self._limits.object_store_bytes // 8)  # so that several fit beside each other
        steps_per_block = max(1, min(8, block_bytes // (self._clip_bytes * self._batch)))
        block_rows, load = steps_per_block * self._batch, self._load
        # One tiny row per block, made here: `ray.data.range` and `from_arrow` would plan by tasks that each want a whole CPU,
        # which on a small machine with two trials is never free.
        spans = [
            {"first": first, "rows": min(block_rows, self._num_rows - first)} for first in range(0, self._num_rows, block_rows)
        ]

        def load_clips(span: Columns) -> Columns:
            return load({"id": span["first"][0] + np.arange(span["rows"][0])})

        clips = ray.data.from_items(spans, override_num_blocks=len(spans)).map_batches(
            load_clips, batch_size=None, batch_format="numpy", num_cpus=self._limits.cpus_per_task
        )
        # The data set's own context: the process-wide one is shared with the other window's thread.
        clips.context.enable_progress_bars = False
        clips.context.custom_execution_callback_classes = [_Breather]
        clips.context.execution_options = ExecutionOptions(
            preserve_order=True,
            resource_limits=ExecutionResources(cpu=self._limits.cpus, object_store_memory=self._limits.object_store_bytes),
        )
        return clips


class _Breather(ExecutionCallback):
    """Lets the executor's control loop rest between two rounds.

    While finished blocks wait for a slow consumer the loop of Ray Data 2.60 does not wait for anything: it would take half
    of this process's time from the training step. A round handles every task that is ready, so nothing is lost by fewer
    then; while the consumer waits, the next tasks should start soon.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Called after each round."""
        _, output = executor._output_node  # Ray Data tells a callback nothing more public
        time.sleep(0.05 if len(output.output_queue) else 0.01)
