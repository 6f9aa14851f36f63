"""The data commands: prepare, verify, data init, data joints, data show, data stats."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from starlab.pipelines.prepare import Progress

data = typer.Typer(name="data", help="Look at data: pictures of a clip, counts of a prepared store.", no_args_is_help=True)

Store = Annotated[str, typer.Argument(help="A prepared store: a folder, or a URI such as s3://bucket/penn.")]


def prepare(
    dataset: Annotated[str, typer.Argument(help="penn-action, ntu60, ntu120, …; custom for your own videos.")],
    source: Annotated[Path, typer.Argument(help="The folder with the authors' files, or with your own.")],
    store: Annotated[str, typer.Argument(help="Where to: a new folder, or a URI such as s3://bucket/penn.")],
    short_side: Annotated[int, typer.Option(help="Pixels that a video's short side is scaled to.")] = 256,
    shard: Annotated[int, typer.Option(help="Clips per file.")] = 64,
    max_bad: Annotated[float, typer.Option(help="Fail as a whole when a larger share of the clips cannot be used.")] = 0.05,
    retry: Annotated[
        bool, typer.Option("--retry", help="Rewrite shards that are damaged, have bad clips, or whose files changed.")
    ] = False,
    joints: Annotated[
        Path | None, typer.Option(help="Store the joints of this Parquet file instead of the data set's own.")
    ] = None,
    skeleton: Annotated[str | None, typer.Option(help="Their skeleton: coco, penn_action or ntu.")] = None,
    pose: Annotated[
        bool, typer.Option("--pose", help="Estimate the joints first, as starlab data pose, into STORE.joints.parquet.")
    ] = False,
) -> None:
    """Check every clip and write a store that trains fast, or resume: starlab prepare penn-action Penn_Action data/penn"""
    from starlab.pipelines.browse import open_to_prepare
    from starlab.pipelines.skeletons import NO_JOINTS

    name = dataset.replace("-", "_")
    if pose:
        from starlab.platform.pose_run import joints_for_store

        joints, skeleton = joints_for_store(name, source, store, given=joints or skeleton), "coco"
    opened, about = open_to_prepare(name, source, joints, skeleton)
    left_out = f", {len(opened.skipped)} left out" if opened.skipped else ""
    print(f"source   {source}: {len(opened.clips):,} clips of {len(opened.classes)} classes{left_out}", flush=True)
    for line in about:
        print(f"split    {line}", flush=True)
    from starlab.pipelines import prepare as preparing
    from starlab.pipelines.statistics import note_lines
    from starlab.platform.cluster.connect import connect
    from starlab.platform.cluster.quiet import quiet_ray_data

    connect()
    quiet_ray_data()
    result = preparing.prepare(
        opened,
        name,
        store,
        preparing.StoreLayout(short_side_px=short_side, clips_per_shard=shard),
        max_bad_fraction=max_bad,
        retry=retry,
        on_progress=_Line("prepare"),
    )
    for clip in result.skipped[:5]:
        print(f"bad      {clip.clip_id}: {clip.reason}")
    if len(result.skipped) > 5:
        print(f"bad      and {len(result.skipped) - 5} more: starlab data stats {shlex.quote(str(store))}")
    for line in note_lines(sorted(result.notes.items())) if result.notes else []:
        print(line)
    megabytes = sum(shard["num_bytes"] for shard in result.manifest["shards"]) / 1e6
    print(
        f"store    {result.folder.uri}: {len(result.clips):,} clips, {result.manifest['frames']:,} frames, "
        f"{megabytes:,.0f} MB, {len(result.skipped)} clips in quarantine; fingerprint {result.fingerprint[:12]}"
    )
    with_joints = (
        " model.modality=both model.joint_position=index_xy" if name == "custom" and result.skeleton != NO_JOINTS else ""
    )
    print(f"train on it with data.store={shlex.quote(str(store))}{with_joints}")


def verify(
    store: Store,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every frame; hashes alone prove the bytes.")] = False,
) -> None:
    """Read a whole store again and list its problems; exit code 1 if there are any: starlab verify data/penn"""
    from starlab.pipelines import prepare as preparing
    from starlab.pipelines.statistics import note_lines
    from starlab.pipelines.store import StoreSource
    from starlab.platform.cluster.connect import connect
    from starlab.platform.cluster.quiet import quiet_ray_data

    StoreSource(store)  # a wrong folder is reported before Ray starts
    connect()
    quiet_ray_data()
    source, problems = preparing.verify(store, decode=decode, on_progress=_Line("verify"))
    for line in note_lines(sorted(source.notes.items())) if source.notes else []:
        print(line)
    for problem in problems:
        print(f"PROBLEM  {problem}")
    if problems:
        print(f"{len(problems)} problems in {source.folder.uri}; the same `starlab prepare` with --retry rewrites them")
        raise typer.Exit(1)
    shards = len(source.manifest["shards"])
    print(f"ok       {source.folder.uri}: {len(source.clips):,} clips in {shards} shards are what was written")


@data.command()
def init(folder: Annotated[Path, typer.Argument(help="A folder of videos, best with one folder per class in it.")]) -> None:
    """Look at a folder of videos; write its list, its settings and a first experiment: starlab data init my_videos"""
    from starlab.pipelines.custom.look import init_folder

    experiment = init_folder(folder, lambda line: print(line, flush=True))
    if experiment is None:
        return
    prepared = shlex.quote(f"{str(folder).rstrip('/')}-prepared")
    print(f"next     starlab prepare custom {shlex.quote(str(folder))} {prepared}")
    print(f"         starlab train {shlex.quote(str(experiment))} data.store={prepared}")


@data.command()
def joints(
    source: Annotated[
        Path, typer.Argument(help="A pickle of PYSKL or MMAction2, or a folder of COCO JSON files, one a video.")
    ],
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
) -> None:
    """Make one file of joints of others' annotations, without running code: starlab data joints hrnet.pkl joints.parquet"""
    from starlab.pipelines.custom.annotations import convert_joints

    made = convert_joints(source, out)
    print(f"joints   {out}: {made.clips:,} clips, {made.num_joints} joints, up to {made.max_bodies} people a clip")
    print(f"skeleton {made.skeleton or 'none that is known has so many joints: describe it in data.yaml'}")


@data.command()
def show(
    place: Annotated[str, typer.Argument(help="A prepared store, or a folder with the authors' files.")],
    clip: Annotated[str | None, typer.Option(help="Its id; else the first.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="penn-action, ntu60, …: what the authors' files are; else it is found out.")
    ] = None,
    estimated_joints: Annotated[Path | None, typer.Option(help="Draw the joints of this file instead.")] = None,
    estimated_skeleton: Annotated[str | None, typer.Option(help="Their skeleton: coco, penn_action or ntu.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames that a model would see.")] = 16,
    size: Annotated[int, typer.Option(min=1, help="Their side in pixels.")] = 224,
    out: Annotated[Path | None, typer.Option(help="The PNG to write; else CLIP.png here.")] = None,
) -> None:
    """Draw a clip's sampled frames with their joints, as evaluated and as augmented: starlab data show data/penn --clip 0042"""
    from starlab.pipelines.browse import open_place
    from starlab.pipelines.clip import UnreadableClipError, find_clip
    from starlab.pipelines.contact_sheet import write_contact_sheet
    from starlab.platform.errors import RunFailedError

    source = open_place(place, dataset and dataset.replace("-", "_"), estimated_joints, estimated_skeleton)
    row = find_clip(source, clip, place) if clip is not None else source.clips[0]
    path = out or Path(f"{row.clip_id}.png")
    try:
        write_contact_sheet(source, row, path, num_frames=frames, size_px=size)
    except (UnreadableClipError, OSError) as error:
        raise RunFailedError(f"{row.clip_id} cannot be shown: {error}") from error
    print(f"clip     {row.clip_id}: {source.classes[row.label]}, {row.split}, {row.num_frames} frames")
    print(f"picture  {path}: {frames} frames as evaluated, below them augmented")


@data.command()
def stats(
    store: Annotated[str, typer.Argument(help="A prepared store, or a Parquet file of joints.")],
    joints: Annotated[
        bool, typer.Option("--joints", help="Also read every joint of the store and say what looks wrong.")
    ] = False,
) -> None:
    """Print statistics: of a store its classes, lengths, missing joints, quarantine; of a file of joints, how they look."""
    if store.endswith(".parquet"):
        from starlab.platform.pose_run import file_health_lines

        for line in file_health_lines(Path(store)):
            print(line)
        return
    from rich.console import Console
    from rich.table import Table

    from starlab.pipelines.datasets import DATASETS, differs_from_official
    from starlab.pipelines.statistics import store_statistics
    from starlab.pipelines.store import StoreSource

    source = StoreSource(store)
    statistics = store_statistics(source)
    table = Table(
        "class", "train", "test", "frames", "joints unseen", title=f"{source.folder.uri} ({source.manifest['dataset']})"
    )
    for row in statistics.classes:
        table.add_row(*row.cells())
    console = Console()
    Console(width=None if console.is_terminal else 400).print(table)
    for line in statistics.lines():
        print(line)
    dataset, everything = source.manifest["dataset"], statistics.classes[-1]
    if dataset in DATASETS:
        protocol = (*DATASETS[dataset].protocols, None)[0]  # the split that its clips were prepared with
        if difference := differs_from_official(dataset, protocol, everything.train, everything.test):
            print(f"official   {difference}")
    if joints:
        from starlab.platform.pose.health import joint_health

        for line in joint_health((row.clip_id, source.joints(row), None) for row in source.clips).lines():
            print(line)


class _Line:
    """Prints progress: at a terminal one line that is overwritten, elsewhere a line every few seconds."""

    def __init__(self, verb: str) -> None:
        self._verb, self._terminal = verb, sys.stdout.isatty()
        self._said_at = -1e9

    def __call__(self, progress: Progress) -> None:
        last = progress.clips_done >= progress.clips
        if not last and time.monotonic() - self._said_at < (0.2 if self._terminal else 10.0):
            return
        self._said_at = time.monotonic()
        line = f"{self._verb:<9}{progress.line()}"
        if self._terminal:
            print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)
