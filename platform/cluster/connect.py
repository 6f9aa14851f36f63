"""Starts or joins Ray; no other module does.

A local cluster belongs to this process and ends with it. A remote one is named by RAY_ADDRESS, which Ray sets in every
submitted job.
"""

from __future__ import annotations

import atexit
import getpass
import logging
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from starlab.platform.errors import RunFailedError, UserError

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line a train worker prints appears twice
    # Ray Train's 2 s between two looks at its workers: a finished group ended 4.5 s late (0.9 s at 0.3).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's controller does that by design
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # a field of DataContext would not reach datasets built inside workers
    "RAY_AIR_NEW_OUTPUT": "0",  # search.py reports the progress; Tune's own tables would repeat it
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run starlab …` makes Ray ship the current folder to every worker
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal and MLflow hold the metrics; no CSV, JSON, TensorBoard
}
"""Environment variables for the driver and every worker. A variable that is already set keeps its value."""
_LOOPBACK = "localhost,127.0.0.1,::1"
_TIMED_OUT = ("timed out during startup", "Failed to connect to GCS", "GCS server did not start")
_IDLE_WORKERS = 32
_TEMP_DIR_LIMIT = 40
"""Characters. Ray's sockets have paths about 65 characters longer, and a socket's path may have 107."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The cluster that this process is connected to, as it is now. A remote cluster that scales by itself may still grow."""

    local: bool
    """Started on this machine with a fixed size, not named by RAY_ADDRESS."""
    nodes: int
    cpus: float
    """Logical CPUs."""
    gpus: float
    accelerators: tuple[str, ...]
    """Kinds of GPU, as Ray names them: ("V100",)."""


def connect(*, num_cpus: int | None = None, object_store_bytes: int = 500_000_000) -> Cluster:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine. If Ray runs in this process, only describe it.

    Outside a submitted job every node of a remote cluster must have this version of starlab installed.

    Args:
        num_cpus: logical CPUs of a local cluster; None counts this machine's (a container's limit is respected).
        object_store_bytes: shared memory of a local cluster, 75 MB or more; what does not fit spills to disk.

    Raises:
        UserError: RAY_ADDRESS does not name a cluster that can be joined.
    """
    if not ray.is_initialized():
        spare_loopback()
        missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
        os.environ.update(missing)
        if (address := _remote_address()) is None:
            _start(num_cpus, object_store_bytes)
        else:
            _join(address, missing)
    return describe_cluster()


def check_ray_can_start() -> None:
    """Check that a local Ray could write its files, before any work is done that would be lost.

    Raises:
        UserError: its temporary folder or its token's folder belongs to somebody else; says which variable to set.
    """
    if ray.is_initialized() or _remote_address() is not None:
        return
    temp = Path(_temp_dir() or f"{_temp_root()}/ray")
    if not _is_writable(temp):
        raise UserError(
            f"Ray's temporary folder {temp} cannot be written by this user; set RAY_TMPDIR to a folder of your own with a "
            f"short path, e.g. RAY_TMPDIR=/tmp/{getpass.getuser()}"
        )
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not os.environ.get("RAY_AUTH_TOKEN") and not (os.access(token, os.R_OK) or _is_writable(token)):
        raise UserError(
            f"Ray keeps the token of local clusters in {token}, which cannot be written by this user; set HOME to a folder of "
            "your own, or RAY_AUTH_TOKEN_PATH to a file in one"
        )


def spare_loopback() -> None:
    """Make this machine's own addresses bypass the proxy that http_proxy and the like name. Without a proxy, do nothing."""
    if any(os.environ.get(name) for kind in ("http", "https", "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())):
        for name in ("no_proxy", "NO_PROXY"):
            if _LOOPBACK not in os.environ.get(name, ""):
                os.environ[name] = ",".join(filter(None, (os.environ.get(name), _LOOPBACK)))


def describe_cluster() -> Cluster:
    """Count what the connected cluster has now."""
    resources = ray.cluster_resources()
    kinds = (name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:"))
    machines = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        local=_remote_address() is None and len(set(machines)) == 1,
        nodes=len(machines),
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        accelerators=tuple(sorted(kinds)),
    )


def _remote_address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def _start(num_cpus: int | None, object_store_bytes: int) -> None:
    for is_last in (False, True):  # a busy machine may be too slow for Ray's own time limit once
        try:
            _start_once(num_cpus, object_store_bytes)
        except Exception as error:
            if not any(words in str(error) for words in _TIMED_OUT):
                raise
            ray.shutdown()
            if is_last:
                raise RunFailedError(
                    f"Ray did not start on this machine in two tries, most likely because it is too busy; try again later "
                    f"(Ray says: {str(error).splitlines()[0]})"
                ) from None
        else:
            break
    atexit.register(_end, ray._private.worker._global_node.get_session_dir_path(), os.getpid())


def _end(session: str, pid: int) -> None:
    """End the local cluster and delete its files: sockets and some megabytes of logs that nobody would look for."""
    if os.getpid() == pid:
        ray.shutdown()
        shutil.rmtree(session, ignore_errors=True)


def _temp_root() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _temp_dir() -> str | None:
    """Ray's temporary folder where its own choice, None, would have too long a path."""
    return "/tmp/ray" if len(f"{_temp_root()}/ray") > _TEMP_DIR_LIMIT else None


def _is_writable(path: Path) -> bool:
    """Whether this user can create `path` or, if it is there, write to it."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0))


def _start_once(num_cpus: int | None, object_store_bytes: int) -> None:
    _init(
        address="local",  # not a cluster that happens to run on this machine
        num_cpus=num_cpus,
        object_store_memory=object_store_bytes,
        include_dashboard=False,
        # Ray ends a worker process after one idle second when there are more processes than CPUs. A run's actors alone
        # exceed that, so every decode task would start, and import, in a new process.
        _system_config={
            "num_workers_soft_limit": _IDLE_WORKERS,
            "idle_worker_killing_time_threshold_ms": 60_000,
            "worker_maximum_startup_concurrency": 8,  # its default, the number of CPUs, warns at every search's start
        },
        _temp_dir=_temp_dir(),
    )


def _join(address: str, missing: dict[str, str]) -> None:
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS is {address}, where jobs are submitted: run `starlab submit -- …`, "
            "or unset RAY_ADDRESS to compute on this machine"
        )
    try:
        _init(address=address, runtime_env={"env_vars": missing} if missing else None)
    except AuthenticationError as error:
        raise UserError(
            f"the cluster at RAY_ADDRESS={address} wants its token: set RAY_AUTH_MODE=token and put the token into "
            f"~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH (Ray says: {str(error).splitlines()[0]})"
        ) from None
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at RAY_ADDRESS={address}: start it, or unset RAY_ADDRESS to compute on this machine "
            f"(Ray says: {str(error).splitlines()[0]})"
        ) from None


def _init(**options: object) -> None:
    if os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0":  # Ray has read the variable already, when it was imported
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Ray's own advice about its next release
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
