"""Runs the web service on Ray Serve.

One process takes uploads and cuts videos. Others compute clips, in batches over all requests.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starlab.platform.cluster.connect import connect
from starlab.platform.errors import UserError
from starlab.platform.serving.limits import Limits, check_binding
from starlab.platform.serving.recogniser import Place
from starlab.platform.serving.windows import Clip

_APP, _MODEL = "starlab", "Model"
_QUEUED = 64
"""Requests that wait at most; the next ones are answered with 503."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """How a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    limits: Limits = Limits()
    batch: int = 8
    """Clips that the model computes at once, at most."""
    replicas: int = 1
    """Processes that hold the model."""


def start(place: Place, options: ServeOptions) -> str:
    """Start the service and return its address once it answers.

    Raises:
        UserError: Packages are missing, the address needs a token, the port is taken, or the model cannot be loaded.
    """
    if not all(importlib.util.find_spec(name) for name in ("multipart", "grpc_reflection", "swagger_ui_bundle")):
        raise UserError("starlab serve needs packages of an extra: pip install 'starlab[serve]'")
    check_binding(options.host, options.token)
    _check_port(options.host, options.port)
    place.load()  # a model that cannot be loaded is refused before Ray starts
    connect()
    from ray import serve

    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": options.host,
            "port": options.port,
            "request_timeout_s": options.limits.timeout_seconds + 60,
        },
    )
    serve.run(_application(place, options), name=_APP, route_prefix="/", logging_config={"log_level": "WARNING"})
    return f"http://{options.host}:{options.port}"


def serve_until_asked_to_end(place: Place, options: ServeOptions, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        say: Called with the address once the service answers.

    Raises:
        UserError: As `start`.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = start(place, options)
    ended = threading.Event()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda *_: ended.set()) for kind in kinds}
    say(f"serve    {address} shows a page to try; {address}/docs the requests; Ctrl-C ends it")
    try:
        while not ended.wait(1.0):
            pass
        say("serve    ends")
        stop()
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def stop() -> None:
    """End the service. Ray itself ends with this process."""
    from ray import serve

    serve.shutdown()


def _application(place: Place, options: ServeOptions) -> Any:
    from ray import serve

    gpus = 1 if torch.cuda.is_available() else 0

    class Model:
        def __init__(self) -> None:
            self._recogniser = place.load()

        @serve.batch(max_batch_size=options.batch, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
        async def logits(self, clips: list[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
            frames, joints = (np.stack(part) for part in zip(*clips, strict=True))
            found = await asyncio.to_thread(self._recogniser.logits, frames, joints)  # meanwhile the next batch gathers
            return list(found)

    def build() -> Any:
        from ray import serve

        from starlab.platform.serving.service import make_app

        return make_app(place.card(), _Remote(serve.get_deployment_handle(_MODEL, _APP)), options.limits, options.token)

    model = serve.deployment(
        name=_MODEL,
        num_replicas=options.replicas,
        max_ongoing_requests=4 * options.batch,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
    )
    front = serve.deployment(
        name="Front", max_ongoing_requests=16, max_queued_requests=_QUEUED, ray_actor_options={"num_cpus": 0}
    )
    return front(serve.ingress(build)()).bind(model(Model).bind())


class _Remote:
    """The model behind a handle of Ray Serve."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def logits(self, clip: Clip) -> NDArray[np.float32]:
        """Return the logits (C,) of a clip."""
        found: NDArray[np.float32] = await self._handle.logits.remote((clip.frames, clip.joints))
        return found


def _check_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(f"port {port} of {host} cannot be used ({error.strerror}); name another with --port") from None
