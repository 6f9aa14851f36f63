"""Recognises the actions in videos: one in this process, several in parallel through Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ray.data
import torch

from starlab.platform.cluster.connect import connect
from starlab.platform.errors import UserError
from starlab.platform.serving.annotate import write_annotated
from starlab.platform.serving.joints_input import Joints, JointsOf, joints_from_file
from starlab.platform.serving.recognise import Sampling, recognise
from starlab.platform.serving.recogniser import ModelCard, Place, Recogniser
from starlab.platform.serving.video_input import VideoInput
from starlab.platform.serving.video_prediction import VideoPrediction, WindowPrediction, prediction_from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest:
    """What is the same for all videos."""

    place: Place
    joints: Path | None = None
    """Parquet file of the joints of all videos."""
    sampling: Sampling = Sampling()

    def joints_of(self, card: ModelCard) -> JointsOf | None:
        """Return the function that gives the joints of a video; None if the model reads none.

        Raises:
            UserError: The file cannot be read, or the model reads no joints, or it does and no file is named.
        """
        if self.joints is None:
            if card.needs_joints:
                raise UserError(
                    f"{card.name} reads joints ({card.why_joints}): estimate them with --pose, or "
                    "name a file of them with --joints; docs/serving.md has its columns"
                )
            return None
        if not card.needs_joints:
            why = "model.modality is rgb" if card.spec.model.modality == "rgb" else "model.pose is learned"
            raise UserError(f"{card.name} reads no joints ({why}): leave --joints out")
        return joints_from_file(self.joints, card.spec.data.facts().skeleton)


@dataclass(frozen=True, slots=True)
class Failure:
    """A video that could not be recognised."""

    video: str
    problem: str


def predict_video(
    recogniser: Recogniser,
    video: str,
    *,
    joints_of: JointsOf | None = None,
    sampling: Sampling | None = None,
    annotated: Path | None = None,
    say: Callable[[WindowPrediction], None] = lambda _: None,
) -> VideoPrediction:
    """Recognise one video, and draw the result into a copy of it if `annotated` names the file to write.

    Raises:
        UserError: As `recognise` and `write_annotated`; also a live video that is to be annotated.
    """
    source = VideoInput(video)
    if annotated and source.is_live:
        raise UserError(f"{source.name} can be read once only, so it cannot be annotated: record it to a file first")
    known: list[Joints] = []

    def remember(path: str, frames: int) -> Joints:
        assert joints_of is not None
        known.append(joints_of(path, frames))
        return known[0]

    prediction = recognise(recogniser, source, remember if joints_of else None, sampling, say)
    if annotated:
        write_annotated(annotated, source, prediction, known[0] if known else None, recogniser.spec.data.facts().skeleton)
    return prediction


def predict_videos(
    request: PredictRequest, videos: Sequence[str], annotated: Sequence[Path | None]
) -> Iterator[VideoPrediction | Failure]:
    """Recognise videos in parallel and yield each as soon as it is done, in any order.

    Each CPU of the cluster takes a video at a time. All nodes must see the videos and the model under the same
    paths.

    Args:
        request: The model, joints and sampling.
        videos: Paths of the videos.
        annotated: The annotated video to write for each; None writes none.
    """
    connect()
    rows = [{"video": video, "annotated": str(path or "")} for video, path in zip(videos, annotated, strict=True)]
    # Tasks and not actors, whose start makes Ray print a warning.
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_predict_row, fn_args=(request,), num_cpus=1)
    data.context.enable_progress_bars = False
    for row in data.iter_rows():
        yield Failure(row["video"], row["problem"]) if row["problem"] else prediction_from_json(row["prediction"])


@lru_cache(maxsize=1)
def _loaded(request: PredictRequest) -> tuple[Recogniser, JointsOf | None]:
    """Load the model, once per process of Ray Data."""
    torch.set_num_threads(1)  # there is a process per CPU
    recogniser = request.place.load()
    return recogniser, request.joints_of(recogniser)


def _predict_row(row: dict[str, str], request: PredictRequest) -> dict[str, str]:
    recogniser, joints_of = _loaded(request)
    annotated = Path(row["annotated"]) if row["annotated"] else None
    try:
        found = predict_video(recogniser, row["video"], joints_of=joints_of, sampling=request.sampling, annotated=annotated)
    except UserError as error:
        return {"video": row["video"], "problem": str(error), "prediction": ""}
    return {"video": row["video"], "problem": "", "prediction": found.to_json()}
