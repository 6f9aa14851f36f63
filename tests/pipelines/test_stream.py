import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import ray

from starlab.pipelines.batch import Batch
from starlab.pipelines.clip import ClipRow, DecodedClip, SkippedClip, UnreadableClipError
from starlab.pipelines.loading import LoadClips
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.schedule import EvalPlan, Schedule, TrainPlan
from starlab.pipelines.skeletons import PENN_ACTION
from starlab.pipelines.sources import DataConfig
from starlab.pipelines.stream import StreamLimits, eval_batches, train_batches

LIMITS = StreamLimits(cpus=0.5, cpus_per_task=0.5, object_store_bytes=40_000_000)
CONFIG = DataConfig(dataset="synthetic_penn_action", frames=4, size=16, augment="standard", color_jitter=0.2)


class PaintedSource:
    """Clips whose every pixel tells the clip's number; those in `broken` cannot be read."""

    def __init__(self, num_clips: int, broken: tuple[int, ...] = ()) -> None:
        self.classes, self.skeleton, self.max_bodies, self.fingerprint = ("even", "odd"), PENN_ACTION, 1, "painted"
        self.clips = tuple(
            ClipRow(clip_id=f"{index:04d}", label=index % 2, split="train", subject=None, num_frames=9)
            for index in range(num_clips)
        )
        self.skipped: tuple[SkippedClip, ...] = ()
        self.broken = broken

    def read(self, row: ClipRow, frame_indices: list[int], min_side_px: int) -> DecodedClip:
        number = int(row.clip_id)
        if number in self.broken:
            raise UnreadableClipError(f"painted clip {row.clip_id} is broken")
        frames = [np.full((20, 24, 3), number, np.uint8) for _ in frame_indices]
        return DecodedClip(frames, np.full((len(frame_indices), 1, 13, 3), 0.5, np.float32))


def plan(num_clips: int, rank: int = 0, world: int = 1, first_step: int = 0, batch: int = 8, seed: int = 3) -> TrainPlan:
    return TrainPlan(Schedule(seed, num_clips), tuple(range(num_clips)), batch, rank, world, first_step)


def join(batches: list[Batch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.concatenate([getattr(batch, name) for batch in batches]) for name in ("positions", "clips", "frames"))  # type: ignore[return-value]


def steps_of_all_ranks(
    source: PaintedSource, world: int, steps: int, first_step: int = 0
) -> list[tuple[list[int], list[int], bytes]]:
    """What a step trains on, over all ranks: positions, clips and the bytes of the frames."""
    config = dataclasses.replace(CONFIG, color_jitter=0.0)
    streams = [
        train_batches(source, config, plan(30, rank, world, first_step), steps, LIMITS, window_steps=7) for rank in range(world)
    ]
    result = []
    for _ in range(steps):
        positions, clips, frames = join([next(stream) for stream in streams])
        result.append((positions.tolist(), clips.tolist(), frames.tobytes()))
    assert [next(stream, None) for stream in streams] == [None] * world
    return result


@pytest.mark.usefixtures("local_ray")
def test_the_global_order_is_the_same_for_one_two_and_four_workers() -> None:
    source = PaintedSource(30)
    alone = steps_of_all_ranks(source, 1, 20)
    assert [positions for positions, _, _ in alone] == [list(range(8 * step, 8 * step + 8)) for step in range(20)]
    schedule = Schedule(3, 30)
    assert [clip for _, clips, _ in alone for clip in clips] == [schedule.at(position).clip for position in range(160)]
    assert steps_of_all_ranks(source, 2, 20) == alone
    assert steps_of_all_ranks(source, 4, 20) == alone


@pytest.mark.usefixtures("local_ray")
def test_a_stream_started_at_any_step_goes_on_as_if_it_had_never_stopped() -> None:
    source = PaintedSource(30)
    whole = steps_of_all_ranks(source, 1, 20)
    for first in (1, 7, 13):
        assert steps_of_all_ranks(source, 1, 20 - first, first_step=first) == whole[first:]


@pytest.mark.usefixtures("local_ray")
def test_a_run_of_a_million_steps_plans_no_more_before_its_first_batch_than_one_of_a_hundred() -> None:
    """No clock: what makes a first batch late is the number of blocks that are planned before it."""
    planned = []

    def counting(spans: list[object], *, override_num_blocks: int) -> ray.data.Dataset:
        planned.append(override_num_blocks)
        return from_items(spans, override_num_blocks=override_num_blocks)

    from_items = ray.data.from_items
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.data, "from_items", counting)
        for steps in (100, 1_000_000):
            stream = train_batches(PaintedSource(30), CONFIG, plan(30), steps, LIMITS)
            assert next(stream).positions.tolist() == list(range(8))
            stream.close()  # type: ignore[attr-defined]
    assert planned[1] <= 10 * planned[0]
    assert planned[1] <= 1000


@pytest.mark.usefixtures("local_ray")
def test_a_clip_that_cannot_be_read_is_replaced_reported_and_shifts_nothing() -> None:
    broken = (4, 11)
    config = dataclasses.replace(CONFIG, augment="none")
    clean = list(train_batches(PaintedSource(30), config, plan(30), 8, LIMITS))
    patched = list(train_batches(PaintedSource(30, broken), config, plan(30), 8, LIMITS))
    for one, other in zip(clean, patched, strict=True):
        assert one.positions.tolist() == other.positions.tolist()
        same = ~np.isin(one.clips, broken)
        assert (one.frames[same] == other.frames[same]).all()
        assert not np.isin(other.clips, broken).any()
        assert {clip for clip, _ in other.unreadable} >= {f"{clip:04d}" for clip in one.clips[~same]}
        assert len(other.labels) == 8
    reasons = {reason for batch in patched for _, reason in batch.unreadable}
    assert reasons == {"painted clip 0004 is broken", "painted clip 0011 is broken"}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_clip_exactly_once_and_leaves_out_the_unreadable(world: int) -> None:
    listed = (5, 3, 9, 21, 22, 1, 17)
    source = PaintedSource(30, broken=(9,))
    batches = [
        batch for rank in range(world) for batch in eval_batches(source, CONFIG, EvalPlan(listed, rank, world), 3, LIMITS)
    ]
    positions, clips, frames = join(batches)
    assert sorted(zip(positions.tolist(), clips.tolist(), strict=True)) == [
        (i, clip) for i, clip in enumerate(listed) if clip != 9
    ]
    assert (frames[:, 0, 0, 0, 0] == clips).all()
    assert [pair for batch in batches for pair in batch.unreadable] == [("0009", "painted clip 0009 is broken")]


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("rank", [0, 1])
def test_the_worker_decodes_the_same_batches_to_the_last_bit_as_the_cluster(small_source: PennActionSource, rank: int) -> None:
    source = PaintedSource(30, broken=(4, 11))
    for opened, clips in ((source, 30), (small_source, 60)):
        train = plan(clips, rank, world=2, first_step=3)
        listed = EvalPlan(tuple(range(0, clips, 4)), rank, 2, times=2, places=3)
        streams = []
        for decode in ("cluster", "worker"):
            config = dataclasses.replace(CONFIG, decode=decode, test_crop=0.8)
            limits = dataclasses.replace(LIMITS, threads=3)
            streams.append(
                [
                    *train_batches(opened, config, train, 9, limits, window_steps=4),
                    *eval_batches(opened, config, listed, 5, limits),
                ]
            )
        for one, other in zip(*streams, strict=True):
            for name in ("frames", "joints", "labels", "clips", "positions"):
                mine, theirs = getattr(one, name), getattr(other, name)
                assert mine.dtype == theirs.dtype
                assert mine.shape == theirs.shape
                assert mine.tobytes() == theirs.tobytes()
            assert one.unreadable == other.unreadable
            assert other.frames.flags.writeable


def test_a_failure_in_a_decoding_thread_reaches_the_consumer_and_a_dropped_stream_ends_its_threads() -> None:
    config = dataclasses.replace(CONFIG, decode="worker")
    source = PaintedSource(30)
    source.clips = ()  # an index out of range
    with pytest.raises(IndexError):
        next(train_batches(source, config, plan(30), 5, LIMITS))
    stream = train_batches(PaintedSource(30), config, plan(30), 1_000_000, dataclasses.replace(LIMITS, threads=2))
    next(stream)
    assert any(thread.name.startswith("starlab-decode") for thread in threading.enumerate())
    stream.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("starlab-decode"):
            thread.join(timeout=60)
    assert not any(thread.name.startswith("starlab-decode") for thread in threading.enumerate())


class SlowSource(PaintedSource):
    """Decoding sleeps, as a disk far away does."""

    def read(self, row: ClipRow, frame_indices: list[int], min_side_px: int) -> DecodedClip:
        time.sleep(0.01)
        return super().read(row, frame_indices, min_side_px)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("decode", ["cluster", "worker"])
def test_32_ranks_at_once_with_a_sleeping_decoder_are_all_served_and_evenly(decode: str) -> None:
    """Many more streams than CPUs, all of them believing the cluster theirs, and every step waits for all, as training does."""
    world, steps = 32, 12
    config = dataclasses.replace(CONFIG, decode=decode)
    limits = StreamLimits(cpus=1, cpus_per_task=0.5, object_store_bytes=4_000_000)
    step = threading.Barrier(world)

    def consume(rank: int) -> None:
        positions: list[int] = []
        for batch in train_batches(SlowSource(64), config, plan(64, rank, world, batch=64), steps, limits, window_steps=5):
            positions += batch.positions.tolist()
            step.wait(timeout=240)  # a guard against hanging: a rank that is never served breaks it for all
        assert positions == [64 * number + 2 * rank + i for number in range(steps) for i in range(2)]

    with ThreadPoolExecutor(world) as pool:
        for done in [pool.submit(consume, rank) for rank in range(world)]:
            done.result(timeout=250)


class Rendezvous(PaintedSource):
    """The first clip of each block of eight is read once the first clips of `blocks` blocks are being read at the same time."""

    def __init__(self, folder: Path, num_clips: int, blocks: int) -> None:
        super().__init__(num_clips)
        self.folder, self.blocks = folder, blocks

    def read(self, row: ClipRow, frame_indices: list[int], min_side_px: int) -> DecodedClip:
        (self.folder / f"block-{int(row.clip_id) // 8}").touch()
        give_up = time.monotonic() + 100
        while len(list(self.folder.glob("block-*"))) < self.blocks:
            assert time.monotonic() < give_up, "no other block was read meanwhile"
            time.sleep(0.05)
        return super().read(row, frame_indices, min_side_px)


@pytest.mark.usefixtures("local_ray")
def test_a_stream_runs_two_tasks_at_once_where_there_are_more_streams_than_cpus(tmp_path: Path) -> None:
    """Ray Data alone divides the four CPUs among five streams and rounds down to none, and then runs one task at a time."""
    limits = StreamLimits(cpus=0.8, cpus_per_task=0.4, object_store_bytes=8_000_000)
    two_blocks = EvalPlan(tuple(range(16)), 0, 1)
    streams = [eval_batches(Rendezvous(tmp_path, 16, 2), CONFIG, two_blocks, 1, limits)]
    one_block = EvalPlan(tuple(range(8)), 0, 1)
    streams += [eval_batches(Rendezvous(tmp_path, 8, 2), CONFIG, one_block, 1, limits) for _ in range(4)]
    assert [len(list(stream)) for stream in streams] == [16, 8, 8, 8, 8]


@pytest.mark.usefixtures("local_ray")
def test_every_view_of_every_clip_is_seen_exactly_once_over_all_ranks() -> None:
    listed = (5, 3, 9, 21, 22)
    config = dataclasses.replace(CONFIG, test_crop=0.5, decode="worker")
    seen = []
    for rank in range(3):
        for batch in eval_batches(PaintedSource(30), config, EvalPlan(listed, rank, 3, times=2, places=2), 3, LIMITS):
            seen += zip(batch.positions.tolist(), batch.clips.tolist(), strict=True)
    assert sorted(seen) == [(4 * index + view, clip) for index, clip in enumerate(listed) for view in range(4)]


@pytest.mark.usefixtures("local_ray")
def test_an_evaluation_with_fewer_clips_than_ranks_leaves_a_rank_idle() -> None:
    assert list(eval_batches(PaintedSource(5), CONFIG, EvalPlan((2,), 1, 2), 4, LIMITS)) == []


@pytest.mark.usefixtures("local_ray")
def test_a_failure_that_is_no_bad_clip_reaches_the_consumer() -> None:
    source = PaintedSource(30)
    source.classes = None  # type: ignore[assignment]
    source.clips = ()  # an index out of range in every task
    with pytest.raises(Exception, match="IndexError"):
        next(train_batches(source, CONFIG, plan(30), 5, LIMITS))


@pytest.mark.usefixtures("local_ray")
def test_batches_have_the_shapes_and_types_that_the_model_takes(small_source: PennActionSource) -> None:
    config = dataclasses.replace(CONFIG, frames=16, size=48)
    batch = next(iter(islice(train_batches(small_source, config, plan(60), 3, LIMITS), 1)))
    assert batch.frames.shape == (8, 16, 48, 48, 3)
    assert batch.frames.dtype == np.uint8
    assert batch.joints.shape == (8, 16, 1, 13, 3)
    assert batch.joints.dtype == np.float32
    assert batch.labels.tolist() == [small_source.clips[clip].label for clip in batch.clips]
    assert batch.frames.flags.writeable


def test_loading_is_a_pure_function_of_the_rows(small_source: PennActionSource) -> None:
    load = LoadClips(small_source, CONFIG, plan(60), first_row=5)
    together = load({"id": np.arange(6)})
    for row in range(6):
        alone = load({"id": np.array([row])})
        assert all((alone[name][0] == together[name][row]).all() for name in ("frames", "joints", "position", "clip"))


def test_evaluation_reads_uniform_frames_and_draws_nothing(small_source: PennActionSource) -> None:
    load = LoadClips(small_source, CONFIG, EvalPlan(tuple(range(10)), 0, 1), first_row=0)
    first, second = load({"id": np.arange(10)}), load({"id": np.arange(10)})
    assert (first["frames"] == second["frames"]).all()


def test_a_corrupt_jpeg_on_disk_is_named_with_its_file(small_folder: Path, tmp_path: Path) -> None:
    import shutil

    from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES

    root = shutil.copytree(small_folder, tmp_path / "copy")
    victim = sorted((root / "frames" / "0003").glob("*.jpg"))
    for path in victim:
        path.write_bytes(path.read_bytes()[:200])
    source = PennActionSource(root, classes=SYNTHETIC_CLASSES)
    index = next(i for i, row in enumerate(source.clips) if row.clip_id == "0003")
    columns = LoadClips(source, CONFIG, EvalPlan((index,), 0, 1), 0)({"id": np.array([0])})
    assert columns["clip"].tolist() == [-1]
    assert str(columns["problems"][0]).startswith("0003\t")
    assert "0003" in str(columns["problems"][0]).split("\t")[1]
