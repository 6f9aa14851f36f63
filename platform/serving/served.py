"""Runs the web service: this process takes uploads and cuts videos, and Ray Serve computes clips, in batches over all requests.

Ray Serve's own HTTP proxy is not started. It takes in a body as fast as it comes, before anything can refuse it: an upload of
2 GB without a length took 1.3 GB of memory.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import uvicorn
from numpy.typing import NDArray

from starlab.platform.cluster.connect import connect
from starlab.platform.errors import UserError
from starlab.platform.serving.limits import Limits, check_binding
from starlab.platform.serving.recogniser import Place
from starlab.platform.serving.windows import Clip

_APP = "starlab"
_CONNECTIONS = 32
"""Connections at a time; the next ones are answered with 503."""


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


class Service:
    """A service that answers."""

    def __init__(self, address: str, server: uvicorn.Server, thread: threading.Thread) -> None:
        self.address, self._server, self._thread = address, server, thread

    def stop(self) -> None:
        """End the service. Ray itself ends with this process."""
        from ray import serve

        self._server.should_exit = True
        self._thread.join(timeout=10)
        serve.shutdown()


def start(place: Place, options: ServeOptions) -> Service:
    """Start the service and return once it answers.

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

    from starlab.platform.serving.service import make_app

    serve.start(proxy_location="Disabled")
    handle = serve.run(_model(place, options), name=_APP, route_prefix=None, logging_config={"log_level": "WARNING"})
    app = make_app(place.card(), _Remote(handle), options.limits, options.token)
    server = uvicorn.Server(
        uvicorn.Config(
            app, host=options.host, port=options.port, log_level="warning", limit_concurrency=_CONNECTIONS, access_log=False
        )
    )
    thread = threading.Thread(target=server.run, name="serve", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            serve.shutdown()
            raise UserError(f"the service could not listen on port {options.port} of {options.host}")
        time.sleep(0.05)
    return Service(f"http://{options.host}:{options.port}", server, thread)


def serve_until_asked_to_end(place: Place, options: ServeOptions, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        say: Called with the address once the service answers.

    Raises:
        UserError: As `start`.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    service = start(place, options)
    ended = threading.Event()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda *_: ended.set()) for kind in kinds}
    say(f"serve    {service.address} shows a page to try; {service.address}/docs the requests; Ctrl-C ends it")
    try:
        while not ended.wait(1.0):
            pass
        say("serve    ends")
        service.stop()
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _model(place: Place, options: ServeOptions) -> Any:
    from ray import serve

    class Model:
        def __init__(self) -> None:
            self._recogniser = place.load()

        @serve.batch(max_batch_size=options.batch, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
        async def logits(self, clips: list[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
            frames, joints = (np.stack(part) for part in zip(*clips, strict=True))
            found = await asyncio.to_thread(self._recogniser.logits, frames, joints)  # meanwhile the next batch gathers
            return list(found)

    model = serve.deployment(
        name="Model",
        num_replicas=options.replicas,
        max_ongoing_requests=4 * options.batch,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if torch.cuda.is_available() else 0},
    )
    return model(Model).bind()


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
