"""One loader of clips in a process of its own, for bench_peers.py: `python peers.py NAME STORE THREADS`.

First it prints the sum of an epoch's pixels. Then it loads one epoch for each line that it reads, and prints the seconds of
processor time, its own and its child processes'.

Every loader takes whole clips in shuffled order from the same storage, picks the same 16 frames, and gives batches of 8 clips
as uint8 (8, 16, 224, 224, 3) with their joints and labels.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
from plain_reader import BATCH, FRAMES, SIZE, Batch, Reader, collate

MOST_EPOCHS = 100
SETTLE_SECONDS = 1.0
"""After an epoch, until what was begun ahead is done: a stream then has begun and ended as many clips as were taken."""
Epoch = Callable[[int], Iterable[Any]]
"""Makes the batches of the epoch of that number; the first array of each batch holds the frames."""


def starlab_worker(store: Path, threads: int) -> Epoch:
    """The threads of a training worker: `data.decode: worker`."""
    return _starlab(store, threads, "worker")


def starlab_ray_data(store: Path, threads: int) -> Epoch:
    """Tasks of Ray Data: `data.decode: cluster`."""
    from starlab.platform.cluster.connect import connect

    connect(object_store_bytes=2_000_000_000)
    return _starlab(store, threads, "cluster")


def _starlab(store: Path, threads: int, decode: Any) -> Epoch:
    from starlab.pipelines.schedule import Schedule, TrainPlan
    from starlab.pipelines.sources import DataConfig
    from starlab.pipelines.store import StoreSource
    from starlab.pipelines.stream import StreamLimits, train_batches

    source = StoreSource(store)
    clips = tuple(range(len(source.clips)))
    steps = len(clips) // BATCH
    config = DataConfig(dataset="synthetic_ntu", protocol="xsub", frames=FRAMES, size=SIZE, decode=decode)
    limits = StreamLimits(cpus=threads, cpus_per_task=0.5, object_store_bytes=500_000_000, threads=threads)

    plan = TrainPlan(Schedule(0, len(clips)), clips, BATCH, 0, 1, 0)
    # One stream for all epochs, as a training has it.
    stream = train_batches(source, config, plan, MOST_EPOCHS * steps, limits)
    return lambda _: ((batch.frames, batch.joints, batch.labels) for batch in islice(stream, steps))


def plain(store: Path, threads: int) -> Epoch:
    """A loop over the clips with a pool of threads, and nothing else."""
    return _plain(Reader(store), threads)


def plain_fast_upsampling(store: Path, threads: int) -> Epoch:
    """The same loop with the decoder's fast upsampling of colours, which gives other pixels."""
    return _plain(Reader(store, fast_upsampling=True), threads)


def _plain(reader: Reader, threads: int) -> Epoch:
    pool = ThreadPoolExecutor(threads)

    def batches(epoch: int) -> Iterator[Batch]:
        order = reader.order(epoch)
        for first in range(0, len(order), BATCH):
            frames = np.empty((BATCH, FRAMES, SIZE, SIZE, 3), np.uint8)
            clips = list(pool.map(reader.load, order[first : first + BATCH], frames))
            yield frames, np.stack([joints for _, joints, _ in clips]), np.asarray([label for _, _, label in clips])

    return batches


def jpeg_only(store: Path, threads: int) -> Epoch:
    """The floor: JPEGs that are in memory already are decoded, and nothing else is done."""
    reader, pool = Reader(store), ThreadPoolExecutor(threads)
    stored = [[bytes(jpeg) for jpeg in reader.stored(number)[0]] for number in range(len(reader.index))]

    def decode(jpegs: list[bytes]) -> int:
        return sum(len(simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)) for jpeg in jpegs)

    return lambda _: ((np.zeros(1),) for _ in pool.map(decode, stored))


def torch_dataloader(store: Path, threads: int) -> Epoch:
    """torch's DataLoader with worker processes that stay, and the plain loader in them."""
    return _dataloader(Reader(store).load, Reader(store), threads)


def torchvision(store: Path, threads: int) -> Epoch:
    """The same with torchvision's decoder and antialiased resizing."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2.functional import resize

    reader = Reader(store)

    def load(number: int) -> Any:
        jpegs, joints, label = reader.stored(number)
        encoded = [torch.from_numpy(np.frombuffer(jpeg, np.uint8).copy()) for jpeg in jpegs]
        pictures = torch.stack(decode_jpeg(encoded, ImageReadMode.RGB))
        return resize(pictures, [SIZE, SIZE]).permute(0, 2, 3, 1).contiguous().numpy(), joints, label

    return _dataloader(load, reader, threads)


def _dataloader(load: Callable[[int], Any], reader: Reader, threads: int) -> Epoch:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Clips(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(reader.index)

        def __getitem__(self, number: int) -> Any:
            torch.set_num_threads(1)
            return load(number)

    loader = DataLoader(Clips(), BATCH, shuffle=True, num_workers=threads, persistent_workers=True, prefetch_factor=2)
    return lambda _: loader


def spdl(store: Path, threads: int) -> Epoch:
    """SPDL's pipeline of threads with the plain loader in it, as many threads as CPUs."""
    return _spdl(Reader(store).load, Reader(store), threads)


def spdl_decoder(store: Path, threads: int) -> Epoch:
    """SPDL's pipeline with its own decoder and scaler, a thread of FFmpeg for each picture."""
    import spdl.io

    reader = Reader(store)
    size = spdl.io.get_video_filter_desc(scale_width=SIZE, scale_height=SIZE, scale_algo="bilinear", scale_mode=None)
    one_thread = spdl.io.decode_config(decoder_options={"threads": "1"})

    def load(number: int) -> Any:
        jpegs, joints, label = reader.stored(number)
        frames = spdl.io.load_image_batch(
            [bytes(jpeg) for jpeg in jpegs],
            width=None,
            height=None,
            pix_fmt=None,
            filter_desc=size,
            decode_config=one_thread,
        )
        return spdl.io.to_numpy(frames), joints, label

    return _spdl(load, reader, threads)


def _spdl(load: Callable[[int], Any], reader: Reader, threads: int) -> Epoch:
    from spdl.pipeline import PipelineBuilder

    def batches(epoch: int) -> Iterator[Batch]:
        builder = PipelineBuilder().add_source(reader.order(epoch)).pipe(load, concurrency=threads)
        pipeline = builder.aggregate(BATCH).pipe(collate).add_sink(3).build(num_threads=threads)
        with pipeline.auto_stop():
            yield from pipeline

    return batches


def litdata(store: Path, threads: int) -> Epoch:
    """LitData's streaming data set, optimized into chunks, with worker processes and the plain decoder in them."""
    import litdata_clips

    folder = Path(tempfile.mkdtemp(prefix="litdata-", dir=store.parent))
    loader = litdata_clips.make_loader(store, folder, threads)
    return lambda _: loader


LOADERS: dict[str, Callable[[Path, int], Epoch]] = {
    maker.__name__: maker
    for maker in (
        starlab_worker,
        starlab_ray_data,
        plain,
        plain_fast_upsampling,
        jpeg_only,
        torch_dataloader,
        torchvision,
        spdl,
        spdl_decoder,
        litdata,
    )
}


def cpu_seconds() -> float:
    """Processor time of this process, of its living descendants, and of its children that have ended."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        total += times.user + times.system
    return total


def main() -> None:
    """Load an epoch per line of input."""
    name, store, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    epoch = LOADERS[name](store, threads)
    pixels = sum(int(np.asarray(batch[0]).sum(dtype=np.int64)) for batch in epoch(0))
    time.sleep(SETTLE_SECONDS)
    print(json.dumps({"pixels": pixels}), flush=True)
    for number, _ in enumerate(sys.stdin, 1):
        began = cpu_seconds()
        for _ in epoch(number):
            pass
        time.sleep(SETTLE_SECONDS)
        print(json.dumps({"cpu_seconds": cpu_seconds() - began}), flush=True)
    for left in store.parent.glob("litdata-*"):
        shutil.rmtree(left, ignore_errors=True)


if __name__ == "__main__":
    main()
