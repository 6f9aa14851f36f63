"""Limits of the service: size of an upload, length of a video, time of a request, and who may ask."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starlab.platform.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "STARLAB_SERVE_TOKEN"
_LEAST_TOKEN = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a request may cost."""

    max_megabytes: float = 100.0
    """Largest body of a request, in units of 10^6 bytes."""
    max_seconds: float = 120.0
    """Longest video."""
    timeout_seconds: float = 120.0
    """Longest time from the end of the upload to the answer."""

    def __post_init__(self) -> None:
        for name in ("max_megabytes", "max_seconds", "timeout_seconds"):
            if not getattr(self, name) > 0:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is {getattr(self, name):g}; it must be above 0")


def check_binding(host: str, token: str | None) -> None:
    """Refuse an address that others can reach unless a token protects it.

    Raises:
        UserError: There is no token, or it is short.
    """
    if host in LOOPBACK and token is None:
        return
    if token is None:
        raise UserError(
            f"--host is {host}, which other machines can reach; set a token of {_LEAST_TOKEN} characters or more in "
            f"{TOKEN_VARIABLE}, which requests then carry as 'Authorization: Bearer TOKEN', or use --host 127.0.0.1"
        )
    if len(token) < _LEAST_TOKEN:
        raise UserError(f"the token in {TOKEN_VARIABLE} has {len(token)} characters; it must have {_LEAST_TOKEN} or more")


class Gate:
    """ASGI middleware in front of everything: who may ask, and how much they may send.

    A body above the limit is refused by its declared length before any of it is read, and by its real length as soon as it is
    passed, so it is never held in memory or on disk as a whole.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, token: str | None) -> None:
        self._app, self._max_bytes, self._token = app, max_bytes, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with its body counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            code, says = refusal
            headers = {"WWW-Authenticate": "Bearer"} if code == 401 else {}
            headers["Connection"] = "close"  # what the client still sends is not read
            await JSONResponse({"detail": says}, code, headers)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            return message

        await self._app(scope, counted, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self._token is None and host not in LOOPBACK:  # a page of another site whose name was pointed at this machine
            return 400, f"the host {host!r} is not this service"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "a page of another site may not use this service"
        if self._token is not None and scope["path"] == "/predict":
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return 401, "this service wants 'Authorization: Bearer TOKEN'"
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._max_bytes:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"the request is larger than {self._max_bytes / 1e6:g} MB, the largest that is taken"
