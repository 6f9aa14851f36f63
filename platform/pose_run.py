"""An extraction of joints as a command shows it: Ray is started, progress printed, and the joints are looked at."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from starlab.pipelines.clip import DataError
from starlab.platform.cluster.connect import connect
from starlab.platform.cluster.quiet import quiet_ray_data
from starlab.platform.pose.clips import Clips
from starlab.platform.pose.extract import Extraction, PoseProgress, extract
from starlab.platform.pose.health import joint_health
from starlab.platform.pose.joints_file import PoseSettings, read_clips


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
    result = extract(clips, out.absolute(), settings, workers=workers, fresh=fresh, on_progress=_Line())
    for clip_id, reason in list(result.bad.items())[:10]:
        print(f"bad      {clip_id}: {reason}")
    if len(result.bad) > 10:
        print(f"bad      and {len(result.bad) - 10} more")
    for line in joint_health(read_clips(out)).lines():
        print(line)
    kept = f", {result.kept:,} of them estimated earlier" if result.kept else ""
    print(f"file     {out}: {result.videos:,} videos{kept}, {len(result.bad)} bad")
    return result


class _Line:
    """Prints progress: at a terminal one line that is overwritten, elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._said_at = -1e9

    def __call__(self, progress: PoseProgress) -> None:
        last = progress.videos_done >= progress.videos
        if not last and time.monotonic() - self._said_at < (0.2 if self._terminal else 10.0):
            return
        self._said_at = time.monotonic()
        line = f"pose     {progress.line()}"
        if self._terminal:
            print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)
