"""The web service: upload a video, get its actions. Any server of ASGI runs it; served.py runs it on Ray Serve.

GET  /          a page that shows the timeline over a video
POST /predict   video (and joints, a Parquet file) as multipart/form-data → JSON
GET  /about     the model: classes, skeleton, limits
GET  /docs      every request, to try out
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from numpy.typing import NDArray

from starlab.pipelines.skeletons import Skeleton
from starlab.platform.errors import UserError
from starlab.platform.serving.joints_input import JointsOf, joints_from_file
from starlab.platform.serving.limits import Gate, Limits
from starlab.platform.serving.recognise import Sampling, Totals, cut, whole_prediction
from starlab.platform.serving.recogniser import ModelCard
from starlab.platform.serving.video_input import VideoInput, VideoTooLongError
from starlab.platform.serving.video_prediction import VideoPrediction, WindowPrediction
from starlab.platform.serving.windows import Clip

_SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
_CLIPS_AHEAD = 32
"""Clips of one request that wait for the model at most."""
_MOST_JOINT_NUMBERS = 20_000_000
"""Of an upload of joints; two minutes of six people at 60 frames a second are 3 million."""


class Model(Protocol):
    """Computes logits."""

    async def logits(self, clip: Clip) -> NDArray[np.float32]:
        """Return the logits (C,) of a clip."""
        ...


def make_app(card: ModelCard, model: Model, limits: Limits, token: str | None = None) -> FastAPI:
    """Build the application.

    Args:
        card: What is known of the model.
        model: Computes the logits; several requests call it at the same time.
        limits: What a request may cost.
        token: What requests to /predict must carry; None asks for nothing and serves this machine only.
    """
    app = FastAPI(title=f"starlab: {card.name}", description="Recognises actions in videos.", docs_url=None, redoc_url=None)
    app.add_middleware(Gate, max_bytes=int(limits.max_megabytes * 1e6), token=token)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return files("starlab.platform.serving").joinpath("page.html").read_text()

    @app.get("/about")
    def about() -> dict[str, Any]:
        """Return the model's name, classes, joints and limits."""
        return {
            "name": card.name,
            "classes": card.classes,
            "needs_joints": card.needs_joints,
            "skeleton": card.spec.data.facts().skeleton.name if card.needs_joints else None,
            "calibrated": card.temperature is not None,
            "needs_token": token is not None,
            "max_megabytes": limits.max_megabytes,
            "max_seconds": limits.max_seconds,
        }

    @app.post("/predict")
    async def predict(
        video: Annotated[UploadFile, File(description="The video.")],
        joints: Annotated[UploadFile | None, File(description="Parquet file of its joints (docs/serving.md).")] = None,
        top: Annotated[int, Form(ge=1, le=1000, description="Number of actions to name.")] = 5,
        window_seconds: Annotated[float | None, Form(gt=0, description="Length of a window.")] = None,
        people: Annotated[Literal["auto", "together", "each"], Form(description="One clip of all, or one of each.")] = "auto",
    ) -> dict[str, Any]:
        """Recognise the actions in a video: the most likely ones and a timeline, for each person."""
        with tempfile.TemporaryDirectory(prefix="starlab-upload-") as folder:
            own = _Upload(Path(folder), Path(video.filename or "").name or "the video")
            try:
                await asyncio.to_thread(own.keep, video, joints)
                sampling = Sampling(window_seconds=window_seconds, people=people)
                found = await asyncio.wait_for(
                    _recognise(card, model, own, sampling, limits.max_seconds), limits.timeout_seconds
                )
            except VideoTooLongError as error:
                raise HTTPException(413, own.public(error)) from None
            except UserError as error:
                raise HTTPException(422, own.public(error)) from None
            except TimeoutError:
                raise HTTPException(504, f"the video took longer than {limits.timeout_seconds:g} s to recognise") from None
        return found.to_dict(top) | {"video": video.filename}

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"/docs/{_SWAGGER[0]}",
            swagger_css_url=f"/docs/{_SWAGGER[1]}",
            swagger_favicon_url=f"/docs/{_SWAGGER[2]}",
        )

    @app.get("/docs/{name}", include_in_schema=False)
    def docs_file(name: str) -> FileResponse:
        """Serve the files of the page from the installed package, so that it loads nothing from the internet."""
        if name not in _SWAGGER:
            raise HTTPException(404)
        import swagger_ui_bundle

        return FileResponse(Path(str(swagger_ui_bundle.swagger_ui_path)) / name)

    return app


async def _recognise(card: ModelCard, model: Model, own: _Upload, sampling: Sampling, max_seconds: float) -> VideoPrediction:
    """Cut the video in a thread, while the model computes the clips that are cut already."""
    video, totals = VideoInput(str(own.video), max_seconds), Totals()
    joints_of = await asyncio.to_thread(own.joints_of, card.spec.data.facts().skeleton) if card.needs_joints else None
    windows = cut(card, video, joints_of, sampling, totals)
    free = asyncio.Semaphore(_CLIPS_AHEAD)

    async def compute(person: int | None, start: float, end: float, clip: Clip) -> WindowPrediction:
        try:
            logits = await model.logits(clip)
        finally:
            free.release()
        return WindowPrediction(person, start, end, card.probabilities(logits[None])[0])

    tasks: list[asyncio.Task[WindowPrediction]] = []
    try:
        while (item := await asyncio.to_thread(next, windows, None)) is not None:
            window, clips = item
            for clip in clips:
                await free.acquire()
                tasks.append(asyncio.create_task(compute(clip.person, window.start_seconds, window.end_seconds, clip)))
        return whole_prediction(card, video, totals, list(await asyncio.gather(*tasks)))
    finally:
        for task in tasks:
            task.cancel()


class _Upload:
    """What one request sent, in files whose names the client did not choose."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.video, self._joints = folder / "video", folder / "joints"

    def keep(self, video: UploadFile, joints: UploadFile | None) -> None:
        """Copy the uploads to their files."""
        for upload, path in ((video, self.video), (joints, self._joints)):
            if upload is not None:
                with path.open("xb") as file:
                    shutil.copyfileobj(upload.file, file)

    def joints_of(self, skeleton: Skeleton) -> JointsOf | None:
        """Return the function that gives the joints of the video by the name that the client gave it; None without joints.

        Raises:
            UserError: The file is not one of joints, or would need too much memory.
        """
        if not self._joints.is_file():
            return None
        try:
            columns = pq.read_metadata(self._joints)
            numbers = sum(
                columns.row_group(group).column(column).num_values
                for group in range(columns.num_row_groups)
                for column in range(columns.num_columns)
            )
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"the joints cannot be read: {error}") from None
        if numbers > _MOST_JOINT_NUMBERS:  # a small file may hold any amount of equal numbers
            raise UserError(f"the joints are {numbers:,} numbers, more than the {_MOST_JOINT_NUMBERS:,} that are taken")
        read = joints_from_file(self._joints, skeleton)
        return lambda _, frames: read(self._name, frames)

    def public(self, error: Exception) -> str:
        """Return the message with the client's name of the video, and without names of files of this machine."""
        text = str(error)
        for folder in (self._folder.resolve(), self._folder):
            text = text.replace(f"{folder}/video", self._name).replace(f"{folder}/joints", "the file of joints")
        return text.replace("with --joints", "as joints").replace("--window", "window_seconds")
