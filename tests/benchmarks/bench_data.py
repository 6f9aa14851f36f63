"""How fast clips come to a model, as ratios within one run: `make bench-data`, or `python tests/benchmarks/bench_data.py`.

Prints a table and writes the same as JSON; about eight minutes on two quiet cores. The clips are generated: 90 frames of
textured, moving 1080p H.264 in AVI with B-frames, as NTU RGB+D ships them. Nothing here is a test: a busy machine moves every
figure. Rates "per core" are clips per second of processor time, of the process and the workers it starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from starlab.pipelines.clip import ClipSource
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES, SyntheticNtuConfig, write_ntu, write_video
from starlab.pipelines.loading import LoadClips
from starlab.pipelines.ntu import NtuSource
from starlab.pipelines.prepare import StoreLayout, prepare
from starlab.pipelines.sampling import pick_frames
from starlab.pipelines.schedule import Schedule, TrainPlan
from starlab.pipelines.sources import DataConfig
from starlab.pipelines.store import StoreSource
from starlab.pipelines.stream import StreamLimits, train_batches
from starlab.platform.cluster.connect import connect

FRAMES, SIZE, BATCH = 16, 224, 8
CLIP_FRAMES = 90
OBJECT_STORE_BYTES = 2_000_000_000
TARGET_CLIPS_PER_SECOND = 200
NTU120_CLIPS, NTU_MEAN_FRAMES = 114_480, 85
CONFIG = DataConfig(dataset="synthetic_ntu", protocol="xsub", frames=FRAMES, size=SIZE)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    measured: float
    unit: str
    target: str = ""
    reached: bool | None = None
    """None where there is no target."""


def at_least(what: str, measured: float, limit: float, unit: str = "×") -> Row:
    """A figure that should reach its limit."""
    return Row(what, measured, unit, f"≥ {limit}", measured >= limit)


def at_most(what: str, measured: float, limit: float, unit: str = "×") -> Row:
    """A figure that should not exceed its limit."""
    return Row(what, measured, unit, f"≤ {limit}", measured <= limit)


# --- the clips --------------------------------------------------------------------------------------------------------


def picture_sequence(seed: int) -> Iterator[NDArray[np.uint8]]:
    """A room with texture on several scales, somebody large and textured who walks through it, and a sensor's noise.

    Contrast and noise were set so that JPEGs have the bytes of real ones (16 kB). A video has less than a real one (4 kB
    a frame where NTU's have 10), so it decodes a little faster, and the ratios are on the safe side.
    """
    rng = np.random.default_rng(seed)
    height, width = 1080, 1920
    room = np.full((height, width, 3), 120, np.float32)
    for scale, contrast in {16: 2, 64: 6, 256: 30}.items():
        coarse = rng.normal(0, contrast, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        room += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    body = np.clip(cv2.resize(rng.normal(110, 25, (90, 40, 3)).astype(np.float32), (320, 720)), 0, 255)
    noise = [rng.normal(0, 1.8, (height, width, 1)).astype(np.float32) for _ in range(7)]
    for frame in range(CLIP_FRAMES):
        picture = room.copy()
        left, top = 200 + 12 * frame, 200 + int(10 * np.sin(frame / 3))
        picture[top : top + 720, left : left + 320] = body
        yield np.clip(picture + noise[frame % 7], 0, 255).astype(np.uint8)


def make_authors_folder(root: Path) -> NtuSource:
    """A folder in NTU's format: generated skeletons beside four textured 1080p videos, each under several names."""
    config = SyntheticNtuConfig(
        train_performers=1, test_performers=1, cameras=1, height_px=72, min_frames=CLIP_FRAMES, max_frames=CLIP_FRAMES
    )
    write_ntu(root, config, workers=os.cpu_count() or 1)
    videos = []
    for seed in range(4):
        videos.append(root.parent / f"{seed}.avi")
        write_video(videos[-1], picture_sequence(seed), 1080, 1920)
    for index, path in enumerate(sorted(root.rglob("*_rgb.avi"))):
        path.unlink()
        path.hardlink_to(videos[index % len(videos)])
    return NtuSource(root, "xsub", classes=SYNTHETIC_NTU_CLASSES, setups=range(1, 33))


def shrink_to_mp4(source: Path, target: Path) -> None:
    """The short side at 256, H.264 in mp4 with the encoder's defaults: what people do to get rid of 1080p."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 456, 256, "yuv420p"
        for frame in given.decode(video=0):
            small = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24", width=456, height=256), format="rgb24")
            made.mux(stream.encode(small))
        made.mux(stream.encode())


class PlainClips(Dataset):  # type: ignore[type-arg]
    """The loop that most projects have: decode the whole video, pick, resize."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with av.open(str(self.paths[index])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        picked = pick_frames(len(frames), FRAMES, None)
        small = [cv2.resize(frames[i], (SIZE, SIZE), interpolation=cv2.INTER_AREA) for i in picked]
        return torch.from_numpy(np.stack(small))


# --- measuring --------------------------------------------------------------------------------------------------------

Run = Callable[[], object]


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def rounds(runs: dict[str, Run], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every run in every round; the runs take turns, so that a disturbance meets them alike."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster, the median over the rounds."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def loader(source: ClipSource, positions: int = 10**9) -> LoadClips:
    """Every clip of a source, shuffled, for one rank."""
    plan = TrainPlan(Schedule(0, len(source.clips)), tuple(range(len(source.clips))), BATCH, 0, 1, 0)
    return LoadClips(source, CONFIG, plan, 0)


def one_by_one(source: ClipSource, clips: int) -> Run:
    """Load so many clips in this thread."""
    load = loader(source)
    columns = load.empty(1)

    def run() -> None:
        for row in range(clips):
            load.load(row, columns, 0)

    return run


# --- the parts --------------------------------------------------------------------------------------------------------


def bench_formats(raw: NtuSource, store: StoreSource, folder: Path) -> list[Row]:
    """What preparing is worth, per core."""
    originals = [raw.paths(row)[0] for row in raw.clips[:4]]
    small = [folder / f"{index}.mp4" for index in range(4)]
    for original, target in zip(originals, small, strict=True):
        shrink_to_mp4(original, target)

    def plain(paths: list[Path]) -> Run:
        return lambda: list(DataLoader(PlainClips(paths), batch_size=None, num_workers=1))

    clips = {"raw": 4, "plain raw": 4, "plain mp4": 24, "store": 96}
    runs = {
        "raw": one_by_one(raw, clips["raw"]),
        "plain raw": plain(originals),
        "plain mp4": plain(small * 6),
        "store": one_by_one(store, clips["store"]),
    }
    seconds = rounds(runs, 5, cpu_seconds)
    each = {name: [value / clips[name] for value in values] for name, values in seconds.items()}
    encode = statistics.median(_timed(partial(raw.encode, row, 256)) for row in raw.clips[:5])
    rates = {name: 1 / statistics.median(values) for name, values in each.items()}
    megabytes = sum(clip.num_bytes for clip in store.stored) / len(store.stored) / 1e6
    return [
        Row("a frame in the AVI", originals[0].stat().st_size / CLIP_FRAMES / 1e3, "kB"),
        Row("a frame in the store", megabytes / CLIP_FRAMES * 1e3, "kB"),
        Row("raw 1080p AVI, our reader", rates["raw"], "clips/s per core"),
        Row("raw 1080p AVI, PyAV and DataLoader", rates["plain raw"], "clips/s per core"),
        Row("short-side-256 mp4, PyAV and DataLoader", rates["plain mp4"], "clips/s per core"),
        Row("prepared store", rates["store"], "clips/s per core"),
        at_least("store / raw", ratio(each, "raw", "store"), 30),
        at_least("store / PyAV and DataLoader on raw", ratio(each, "plain raw", "store"), 30),
        at_least("store / PyAV and DataLoader on mp4", ratio(each, "plain mp4", "store"), 2),
        Row("preparing one clip (decode, check, JPEG)", encode, "s of one core"),
        Row("store, one clip of 90 frames", megabytes, "MB"),
        *plan_rows(rates["store"], encode, megabytes / CLIP_FRAMES),
    ]


def _timed(run: Run) -> float:
    start = cpu_seconds()
    run()
    return cpu_seconds() - start


def plan_rows(store_rate: float, encode_seconds: float, megabytes_per_frame: float) -> list[Row]:
    """What NTU RGB+D 120 needs at the target rate, from the figures above."""
    per_clip = megabytes_per_frame * NTU_MEAN_FRAMES
    return [
        Row(f"plan: cores that decode {TARGET_CLIPS_PER_SECOND} clips/s", TARGET_CLIPS_PER_SECOND / store_rate, "cores"),
        Row("plan: reading for that", TARGET_CLIPS_PER_SECOND * per_clip, "MB/s"),
        Row("plan: decoded clips for that", TARGET_CLIPS_PER_SECOND * FRAMES * SIZE**2 * 3 / 1e6, "MB/s"),
        Row("plan: 10,000 clips on disk", 10_000 * per_clip / 1e3, "GB"),
        Row("plan: NTU RGB+D 120 on disk", NTU120_CLIPS * per_clip / 1e3, "GB"),
        Row("plan: preparing 10,000 clips", 10_000 * encode_seconds / 3600, "core hours"),
        Row("plan: preparing NTU RGB+D 120", NTU120_CLIPS * encode_seconds / 3600, "core hours"),
    ]


def limits(cpus: int) -> StreamLimits:
    """The whole machine for one stream: two decode tasks a CPU and a quarter of the object store, as a training has them."""
    return StreamLimits(cpus=cpus, cpus_per_task=0.5, object_store_bytes=OBJECT_STORE_BYTES // 4, threads=cpus)


def batches(store: StoreSource, decode: str, steps: int, cpus: int) -> Iterator[object]:
    """One rank's stream of training batches."""
    config = dataclasses.replace(CONFIG, decode=decode)  # type: ignore[arg-type]
    return train_batches(store, config, loader(store).plan, steps, limits(cpus))  # type: ignore[arg-type]


def family() -> list[psutil.Process]:
    """This process and all below it, Ray's workers too."""
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def family_cpu_seconds() -> float:
    """Processor time of the family so far."""
    total = 0.0
    for process in family():
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        total += times.user + times.system
    return total


def bench_stream(store: StoreSource) -> list[Row]:
    """The stream against a loop in this process over the same clips, on the same cores, in steady state."""
    cpus = os.cpu_count() or 1
    steps, warm = 200, 10  # many, so that what is in the making at the start and at the end counts for little
    load = loader(store)

    def loop() -> None:
        columns = load.empty(cpus)

        def part(thread: int) -> None:
            for row in range(thread, steps * BATCH, cpus):
                load.load(row, columns, thread)

        with ThreadPoolExecutor(cpus) as pool:
            list(pool.map(part, range(cpus)))

    def stream(decode: str) -> Run:
        given = batches(store, decode, warm + steps, cpus)
        for _ in islice(given, warm):
            pass
        return lambda: sum(1 for _ in given)

    loop()
    wall: dict[str, list[float]] = {"loop": [], "worker": [], "cluster": []}
    cpu: dict[str, list[float]] = {name: [] for name in wall}
    for _ in range(5):
        for name in wall:
            run = loop if name == "loop" else stream(name)
            wall_start, cpu_start = time.perf_counter(), family_cpu_seconds()
            run()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(family_cpu_seconds() - cpu_start)

    first = {}
    for decode in ("cluster", "worker"):
        start = time.perf_counter()
        given = batches(store, decode, 1_000_000, cpus)
        next(given)
        first[decode] = time.perf_counter() - start
        given.close()  # type: ignore[attr-defined]
    rates = {name: steps * BATCH / statistics.median(seconds) for name, seconds in wall.items()}
    return [
        Row(f"loop in this process, {cpus} threads", rates["loop"], "clips/s"),
        Row("stream, decode: worker", rates["worker"], "clips/s"),
        Row("stream, decode: cluster", rates["cluster"], "clips/s"),
        at_least("stream / loop, decode: worker", ratio(wall, "loop", "worker"), 0.85),
        at_least("stream / loop, decode: cluster", ratio(wall, "loop", "cluster"), 0.60),
        Row("  the same by processor time, worker", ratio(cpu, "loop", "worker"), "×"),
        Row("  the same by processor time, cluster", ratio(cpu, "loop", "cluster"), "×"),
        at_most("first batch of 1,000,000 steps, cluster", first["cluster"], 5, "s"),
        at_most("first batch of 1,000,000 steps, worker", first["worker"], 5, "s"),
    ]


def resident() -> float:
    """MB of this process and all below it; what they share is counted once."""
    total = 0
    for process in family():
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return total / 1e6


def bench_memory(store: StoreSource) -> list[Row]:
    """Growth after the first 500 of 5,000 clips."""
    rows = []
    for decode in ("cluster", "worker"):
        given = batches(store, decode, 5000 // BATCH, os.cpu_count() or 1)
        for _ in islice(given, 500 // BATCH):
            pass
        before = resident()
        largest = 0.0
        for index, _ in enumerate(given):
            if index % 50 == 49:
                largest = max(largest, resident())
        rows.append(Row(f"resident after 500 clips, {decode}", before, "MB"))
        rows.append(at_most(f"growth to the largest over 5,000 clips, {decode}", largest - before, 300, "MB"))
    return rows


def main() -> None:
    """Measure, print, write."""
    parts = ("formats", "stream", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, help="one part instead of all")
    parser.add_argument("--json", type=Path, default=Path("runs/bench_data.json"), help="where the figures go")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load_before:.1f} before"
    print(f"{machine}\n")
    connect(object_store_bytes=OBJECT_STORE_BYTES)
    folder = Path(tempfile.mkdtemp(prefix="starlab-bench-"))
    rows = []
    try:
        raw = make_authors_folder(folder / "authors")
        store = prepare(raw, "synthetic_ntu", folder / "store", StoreLayout(clips_per_shard=8), max_bad_fraction=0.2)
        benches: dict[str, Callable[[], list[Row]]] = {
            "formats": lambda: bench_formats(raw, store, folder),
            "stream": lambda: bench_stream(store),
            "memory": lambda: bench_memory(store),
        }
        for part in [arguments.only] if arguments.only else parts:
            for row in benches[part]():
                verdict = {True: "reached", False: "NOT REACHED", None: ""}[row.reached]
                print(f"{row.what:<52} {row.measured:10.3f} {row.unit:<17} {row.target:<7} {verdict}", flush=True)
                rows.append({"part": part, **dataclasses.asdict(row)})
    finally:
        shutil.rmtree(folder)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "load_after": os.getloadavg()[0], "rows": rows}
    arguments.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten to {arguments.json}")


if __name__ == "__main__":
    main()
