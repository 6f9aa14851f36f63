"""An extraction of joints as a command shows it: Ray is started, progress printed, and the joints are looked at."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import ray

from starlab.pipelines.clip import DataError
from starlab.pipelines.recording import VIDEO_ENDINGS
from starlab.pipelines.skeletons import COCO
from starlab.platform.cluster.connect import connect
from starlab.platform.cluster.quiet import quiet_ray_data
from starlab.platform.errors import UserError
from starlab.platform.pose.clips import Clips, Video, VideoFiles, open_clips
from starlab.platform.pose.estimators import pose_settings
from starlab.platform.pose.extract import Extraction, extract
from starlab.platform.pose.health import joint_health
from starlab.platform.pose.joints_file import PoseSettings, read_clips, settings_of
from starlab.platform.pose.progress import PoseProgress
from starlab.platform.serving.recogniser import ModelCard
from starlab.platform.serving.video_input import VideoInput


def run_extraction(
    clips: Clips, out: Path, settings: PoseSettings, *, workers: int | None = None, fresh: bool = False
) -> Extraction:
    """Estimate joints and print progress, the videos that cannot be read, and the health of the joints.

    Raises:
        DataError: `out` is a folder or has joints by other settings, or none of the videos can be read.
    """
    if out.is_dir():
        raise DataError(f"{out} is a folder: name the file to write, e.g. {out / 'joints.parquet'}")
    connect(num_cpus=workers)
    quiet_ray_data()
    result = extract(clips, out.absolute(), settings, workers=workers, fresh=fresh, on_progress=_Line(sys.stdout))
    for clip_id, reason in list(result.bad.items())[:10]:
        print(f"bad      {clip_id}: {reason}")
    if len(result.bad) > 10:
        print(f"bad      and {len(result.bad) - 10} more")
    for line in joint_health(read_clips(out)).lines():
        print(line)
    kept = f", {result.kept:,} of them estimated earlier" if result.kept else ""
    print(f"file     {out}: {result.videos:,} videos{kept}, {len(result.bad)} bad")
    return result


def joints_for_store(dataset: str, source: Path, store: str, given: object) -> Path:
    """Estimate the joints of the videos of a data set of one's own, for `starlab prepare --pose`. Returns the file.

    Args:
        dataset: The data set's name.
        source: Its folder.
        store: Where the store will be; the file is beside it, or in the current folder if that is a URI.
        given: What else was said about joints; must be None.

    Raises:
        UserError: the data set is another one, or joints were given as well.
        DataError: see `run_extraction`.
    """
    if dataset != "custom":
        raise UserError(
            f"--pose is for data sets of your own (custom); for {dataset} use `starlab data pose {source} joints.parquet`, and "
            "train with data.estimated_joints=joints.parquet data.estimated_skeleton=coco"
        )
    if given is not None:
        raise UserError("give --pose, or --joints and --skeleton, not both")
    clips, settings = open_clips(str(source), dataset), pose_settings()
    name = f"{store.rstrip('/')}.joints.parquet"
    out = Path(name.rpartition("/")[2] if "://" in store else name).expanduser()
    print(f"pose     {source}: {len(clips.clip_ids):,} videos", flush=True)
    run_extraction(clips, out, settings)
    return out


@contextmanager
def joints_for_prediction(
    videos: Sequence[str], card: ModelCard, out: Path | None = None, *, quiet: bool = False
) -> Iterator[Path]:
    """Estimate the joints of videos that are to be recognised, for `starlab predict --pose`.

    Videos that cannot be read are left out; recognising them says why.

    Args:
        videos: Paths of the videos, which are the names of their clips in the file.
        card: The model.
        out: The file to write and keep, or to go on with; None writes one that is deleted at the end.
        quiet: Print progress on standard error.

    Yields:
        The file.

    Raises:
        UserError: The model reads no joints, or those of another skeleton.
        DataError: None of the videos can be read, or the file has joints by other settings.
    """
    if not card.needs_joints:
        raise UserError(f"{card.name} reads no joints (model.modality is rgb): leave --pose out")
    if (skeleton := card.spec.data.facts().skeleton.name) != COCO.name:
        raise UserError(
            f"{card.name} was trained on the joints of the skeleton {skeleton}, and --pose estimates those of "
            f"{COCO.name}: name a file of the former with --joints, or train with estimated joints (docs/pose.md)"
        )
    if any(VideoInput(video).is_live for video in videos):
        raise UserError("the joints of a pipe or camera cannot be estimated: record it to a file first")
    if unknown := next((video for video in videos if not video.lower().endswith(VIDEO_ENDINGS)), None):
        raise UserError(f"the joints of {unknown} cannot be estimated: its name must end in {', '.join(VIDEO_ENDINGS)}")
    settings, stream = pose_settings(), sys.stderr if quiet else sys.stdout
    with tempfile.TemporaryDirectory(prefix="starlab-joints-") as folder:
        path = Path(folder) / "joints.parquet" if out is None else out.absolute()
        print(f"pose     {len(videos):,} videos", file=stream, flush=True)
        connect()
        quiet_ray_data()
        if out is None and len(ray.nodes()) > 1:
            raise UserError(
                "on several machines, --pose needs a file for the joints that all of them see: name it with --joints"
            )
        extract(VideoFiles({video: Video(Path(video)) for video in videos}), path, settings, on_progress=_Line(stream))
        if out is not None:
            print(f"joints   {out}", file=stream, flush=True)
        yield path


def file_health_lines(path: Path) -> list[str]:
    """What a file of estimated joints is like, whoever wrote it.

    Raises:
        DataError: it is missing or has other columns.
    """
    settings = settings_of(path)
    made = "by another program"
    if settings is not None:
        made = f"by {settings.estimator}, skeleton {settings.skeleton}, every {settings.every}, size {settings.long_side_px} px"
    return [f"made       {made}", *joint_health(read_clips(path)).lines()]


class _Line:
    """Prints progress: at a terminal one line that is overwritten, elsewhere a line every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._said_at = -1e9

    def __call__(self, progress: PoseProgress) -> None:
        last = progress.videos_done >= progress.videos
        if not last and time.monotonic() - self._said_at < (0.2 if self._terminal else 10.0):
            return
        self._said_at = time.monotonic()
        line = f"pose     {progress.line()}"
        if self._terminal:
            print(f"\r\033[K{line}", end="\n" if last else "", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)
