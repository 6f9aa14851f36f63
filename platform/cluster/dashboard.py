"""Finds a cluster's dashboard and checks its address, its token and its versions of Ray and Python."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import ray

from starlab.platform.cluster.connect import spare_loopback
from starlab.platform.cluster.token import find_token
from starlab.platform.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """A dashboard that answers, runs the same Ray as starlab and accepts the token."""

    address: str
    """URL without a slash at the end."""
    headers: Mapping[str, str]
    """Headers of every request: the token, or nothing on a cluster without one."""
    token: str | None = field(default=None, repr=False, compare=False)
    """The token that the cluster accepted; None where it asks for none."""
    session: str = field(default="", compare=False)
    """Ray's name for this start of the head."""


def find_dashboard(address: str | None = None, *, insecure: bool = False) -> Dashboard:
    """Ask the dashboard for its version. The first request carries no token, so that only a dashboard that demands it sees it.

    Args:
        address: None takes RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's port 8265.
        insecure: accept a cluster on another machine that asks for no token.

    Raises:
        UserError: nothing answers, the token is missing or wrong, the cluster asks for no token, or it runs another Ray or
            Python.
    """
    spare_loopback()
    address = _resolve(address)
    status, body = _get(address, {})
    headers: dict[str, str] = {}
    token = None
    if status in (401, 403):
        token, source = find_token()
        if token is None:
            raise UserError(
                f"the cluster at {address} asks for its token and there is none here: put it into ~/.ray/auth_token, "
                "or name its file in RAY_AUTH_TOKEN_PATH"
            )
        headers = {"Authorization": f"Bearer {token}"}
        status, body = _get(address, headers)
        if status in (401, 403):
            raise UserError(f"the cluster at {address} refuses the token from {source}: ask its owner for the right one")
    elif status == 200 and not insecure and not _is_loopback(address):
        raise UserError(
            f"the cluster at {address} asks for no token: whoever reaches it can run anything on it. "
            "Restart it with RAY_AUTH_MODE=token (docs/cluster.md), or say --insecure"
        )
    try:
        answer = json.loads(body)
        version, session = str(answer["ray_version"]), str(answer.get("session_name", ""))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{address} answers (HTTP {status}), but not as Ray does: check host and port") from None
    if version.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise UserError(
            f"the cluster at {address} runs Ray {version}, starlab needs {ray.__version__}: "
            "install requirements.lock on the cluster, as cluster.yaml does"
        )
    _check_python(address, headers)
    return Dashboard(address=address, headers=headers, token=token, session=session)


def _check_python(address: str, headers: Mapping[str, str]) -> None:
    status, body = _get(address, headers, "api/v0/cluster_metadata")
    try:
        version = str(json.loads(body)["data"]["pythonVersion"])
    except (ValueError, KeyError, TypeError):
        return  # a head that does not say it; its packages are asked for before a job is sent
    if status == 200 and version.split(".")[:2] != platform.python_version().split(".")[:2]:
        raise UserError(
            f"the cluster at {address} runs Python {version}, and starlab here Python {platform.python_version()}: use the "
            "same minor version on both, as requirements.lock is made for one"
        )


def _resolve(address: str | None) -> str:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if value := os.environ.get(name):
            # Ray's client prefers these variables to its argument; stopping is better than talking to another cluster.
            if address is not None and address.rstrip("/") != value.rstrip("/"):
                raise UserError(f"--address is {address}, but {name} is {value} and Ray obeys that: unset one of them")
            address = value
            break
    address = address or DEFAULT_ADDRESS
    address = (address if "://" in address else f"http://{address}").rstrip("/")
    if not address.startswith(("http://", "https://")) or not urlsplit(address).hostname:
        raise UserError(f"{address} is no dashboard: jobs go to an address such as {DEFAULT_ADDRESS}")
    return address


def _get(address: str, headers: Mapping[str, str], path: str = "api/version") -> tuple[int, bytes]:
    request = urllib.request.Request(f"{address}/{path}", headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"no cluster answers at {address} ({reason}): start one (ray up cluster.yaml), "
            "open the tunnel to it (ray dashboard cluster.yaml), or give its --address"
        ) from None


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
