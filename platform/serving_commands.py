"""The commands that use a trained model: predict, export, serve, promote."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from starlab.platform.serving.predict import Failure, PredictRequest
    from starlab.platform.serving.video_prediction import VideoPrediction, WindowPrediction

Runs = Annotated[Path | None, typer.Option(help="Folder of runs. Default: STARLAB_RUNS, else ./runs.")]
Model = Annotated[str, typer.Argument(help="A run, an experiment with a single run, a model's folder, or models:/NAME@best.")]


def predict(
    run: Model,
    videos: Annotated[list[str], typer.Argument(help="Files, folders, - for a pipe, or /dev/video0 for a camera.")],
    joints: Annotated[Path | None, typer.Option(help="Parquet file with the joints of the videos (docs/serving.md).")] = None,
    pose: Annotated[
        bool,
        typer.Option("--pose", help="Estimate the joints first, as starlab data pose; --joints names a file to keep them."),
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Number of actions to name.")] = 5,
    window: Annotated[float | None, typer.Option(help="Seconds of a window. Default: the median training clip.")] = None,
    stride: Annotated[float | None, typer.Option(help="Seconds between windows. Default: a quarter of the window.")] = None,
    people: Annotated[
        Literal["auto", "together", "each"],
        typer.Option(
            help="Recognise all people as one clip, or each of them; auto: each, if they are more than the model takes."
        ),
    ] = "auto",
    video: Annotated[Path | None, typer.Option(help="Annotated video to write; a folder if there are several.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Parquet file to write, with a row per window.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
    runs: Runs = None,
) -> None:
    """Recognise the actions in videos: starlab predict demo-1a2b3c4d film.mp4 --pose --video out.mp4"""
    from contextlib import ExitStack
    from dataclasses import replace

    from starlab.platform.errors import UserError
    from starlab.platform.runs.folder import runs_folder
    from starlab.platform.serving.annotate import check_ending
    from starlab.platform.serving.predict import PredictRequest
    from starlab.platform.serving.recognise import Sampling
    from starlab.platform.serving.recogniser import locate_recogniser
    from starlab.platform.serving.video_input import find_videos

    sampling = Sampling(window_seconds=window, stride_seconds=stride, people=people)
    found = find_videos(videos)
    several = len(found) > 1
    if several and any(source == "-" or source.startswith("/dev/") for source in found):
        raise UserError("a pipe or camera is recognised alone: name no other video with it")
    if video is not None and (several == bool(video.suffix)):
        raise UserError(
            f"--video is {video}; it must be {'a folder for several videos' if several else 'a file such as out.mp4'}"
        )
    if video is not None and not several:
        check_ending(video)  # before joints are estimated
    request = PredictRequest(place=locate_recogniser(run, runs_folder(runs), _complain), joints=joints, sampling=sampling)
    with ExitStack() as kept:
        if pose:
            from starlab.platform.pose_run import joints_for_prediction

            estimated = joints_for_prediction(found, request.place.card(), joints, quiet=as_json)
            request = replace(request, joints=kept.enter_context(estimated))
        if several:
            results = _predict_several(request, found, video, as_json)
        else:
            results = [_predict_one(request, found[0], video, quiet=as_json)]
    from starlab.platform.serving.predict import Failure
    from starlab.platform.serving.video_prediction import write_windows

    failures = [result for result in results if isinstance(result, Failure)]
    done = [result for result in results if not isinstance(result, Failure)]
    if as_json:
        print(json.dumps([result.to_dict(top) for result in done], indent=1))
    else:
        for result in done:
            print("\n".join(["", *_lines(result, top)]))
    if video is not None and done:
        _note(f"annotated {video}", as_json)
    if parquet is not None and done:
        _note(f"parquet  {parquet}: {write_windows(parquet, done)} windows", as_json)
    for failure in failures:
        _complain(failure.problem)
    if failures:
        raise typer.Exit(1)


def export(
    run: Model,
    kind: Annotated[Literal["pt2", "onnx", "safetensors"], typer.Option("--format", help="Format of the file.")] = "pt2",
    out: Annotated[Path | None, typer.Option(help="File to write. Default: RUN.FORMAT here.")] = None,
    runs: Runs = None,
) -> None:
    """Write a run's best weights for use elsewhere, and check the logits: starlab export demo-1a2b3c4d --format onnx"""
    from starlab.platform.runs.folder import runs_folder
    from starlab.platform.serving.export import BATCHES
    from starlab.platform.serving.export import export as write
    from starlab.platform.serving.recogniser import locate

    place = locate(run, runs_folder(runs), _complain)
    path = out or Path(f"{Path(place.name).name.replace(':', '-').replace('@', '-')}.{kind}")
    found = write(place.load(), path, kind)
    batches = ", ".join(map(str, BATCHES))
    print(f"checked  batches of {batches} clips: logits differ by {found.difference:.1e}, the largest is {found.largest:.2f}")
    print(f"export   {path}: {found.num_bytes / 1e6:.1f} MB")
    if kind == "onnx":
        print("note     ONNX is for other runtimes; on a CPU, ONNX Runtime takes about twice the time of PyTorch")


def promote(
    name: Annotated[str, typer.Argument(help="A run, or an experiment, whose best run on validation is then taken.")],
    alias: Annotated[str, typer.Option(help="Alias of the registered model's version.")] = "best",
    runs: Runs = None,
) -> None:
    """Give a run's registered model an alias, so that models:/NAME@best is it: starlab promote demo-1a2b3c4d"""
    from starlab.platform.runs.folder import runs_folder
    from starlab.platform.serving.promotion import promote as set_alias

    done = set_alias(name, alias, runs_folder(runs), _complain)
    before = "" if done.before is None else ", as before" if done.before == done.version else f"; it was version {done.before}"
    top1 = f", validation top-1 {done.val['top1']:.3f}" if "top1" in done.val else ""
    print(f"promoted models:/{done.model}@{done.alias} is version {done.version}, run {done.run_id}{top1}{before}")
    print(f"use it   MLFLOW_TRACKING_URI={done.uri} starlab predict models:/{done.model}@{done.alias} VIDEO")


def serve(
    run: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    max_megabytes: Annotated[float, typer.Option(help="Largest upload.")] = 100.0,
    max_seconds: Annotated[float, typer.Option(help="Longest video.")] = 120.0,
    timeout_seconds: Annotated[float, typer.Option(help="Longest time for one request.")] = 120.0,
    batch: Annotated[int, typer.Option(min=1, help="Clips that the model computes at once, at most.")] = 8,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that hold the model.")] = 1,
    runs: Runs = None,
) -> None:
    """Serve a run's model until Ctrl-C, with a page to try it; STARLAB_SERVE_TOKEN sets a token: starlab serve demo-1a2b3c4d"""
    from starlab.platform.runs.folder import runs_folder
    from starlab.platform.serving.limits import TOKEN_VARIABLE, Limits
    from starlab.platform.serving.recogniser import locate_recogniser
    from starlab.platform.serving.served import ServeOptions, serve_until_asked_to_end

    limits = Limits(max_megabytes=max_megabytes, max_seconds=max_seconds, timeout_seconds=timeout_seconds)
    options = ServeOptions(
        host=host,
        port=port,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        limits=limits,
        batch=batch,
        replicas=replicas,
    )
    serve_until_asked_to_end(
        locate_recogniser(run, runs_folder(runs), _complain), options, lambda line: print(line, flush=True)
    )


def _predict_one(request: PredictRequest, source: str, video: Path | None, *, quiet: bool) -> VideoPrediction:
    from starlab.platform.serving.predict import predict_video
    from starlab.platform.serving.video_input import VideoInput

    recogniser = request.place.load()

    def say(window: WindowPrediction) -> None:
        best = int(window.probabilities.argmax())
        who = "" if window.person is None else f"person {window.person + 1}  "
        action = f"{recogniser.classes[best]} {window.probabilities[best]:.0%}"
        print(f"{window.start_seconds:8.1f} s to {window.end_seconds:.1f} s  {who}{action}", flush=True)

    live = VideoInput(source).is_live and not quiet
    if live:
        print(f"window   each line is one; Ctrl-C ends a camera; model {recogniser.name}", flush=True)
    return predict_video(
        recogniser,
        source,
        joints_of=request.joints_of(recogniser),
        sampling=request.sampling,
        annotated=video,
        say=say if live else lambda _: None,
    )


def _predict_several(
    request: PredictRequest, sources: list[str], folder: Path | None, quiet: bool
) -> list[VideoPrediction | Failure]:
    import logging
    import time

    from starlab.platform.serving.predict import predict_videos

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
    request.joints_of(request.place.card())  # a model or file that cannot be used is refused before Ray starts
    targets = _targets(sources, folder)
    began, results = time.monotonic(), dict[str, "VideoPrediction | Failure"]()
    for result in predict_videos(request, sources, targets):
        results[result.video] = result
        done, seconds = len(results), time.monotonic() - began
        left = seconds / done * (len(sources) - done)
        line = (
            f"predict  {done} of {len(sources)} videos, {60 * done / seconds:.0f} a minute, {left:.0f} s left: {result.video}"
        )
        print(line, file=sys.stderr if quiet else sys.stdout, flush=True)
    return [results[source] for source in dict.fromkeys(sources)]


def _targets(sources: list[str], folder: Path | None) -> list[Path | None]:
    """Name the annotated video of each source; names that would be equal get a number."""
    if folder is None:
        return [None] * len(sources)
    taken: dict[str, int] = {}
    targets: list[Path | None] = []
    for source in sources:
        stem = Path(source).stem
        taken[stem] = taken.get(stem, 0) + 1
        targets.append(folder / f"{stem}{f'-{taken[stem]}' if taken[stem] > 1 else ''}.mp4")
    return targets


def _lines(result: VideoPrediction, top: int) -> list[str]:
    note = "" if result.calibrated else "; probabilities are not calibrated (docs/serving.md)"
    lines = [f"video    {result.video}: {result.frames} frames, {result.seconds:.1f} s, {len(result.windows)} windows{note}"]
    segments = result.timeline()
    for person in result.people:
        if person is not None:
            lines.append(f"person {person + 1}")
        lines += [f"  {name:<34}{value:7.1%}" for name, value in result.top(top, person)]
        for segment in segments:
            if segment.person == person:
                times = f"{segment.start_seconds:.1f} s to {segment.end_seconds:.1f} s"
                lines.append(f"timeline {times:<20} {segment.action} {segment.probability:.0%}")
    return lines


def _note(line: str, quiet: bool) -> None:
    print(line, file=sys.stderr if quiet else sys.stdout, flush=True)


def _complain(line: str) -> None:
    print(f"starlab: {line}", file=sys.stderr)
