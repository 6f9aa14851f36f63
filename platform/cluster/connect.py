"""Starts or joins Ray; no other module does.

A local cluster belongs to this process and ends with it. A remote one is named by RAY_ADDRESS, which Ray sets in every
submitted job.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from dataclasses import dataclass

import ray
from ray.exceptions import AuthenticationError

from starlab.platform.errors import UserError

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line a train worker prints appears twice
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # a field of DataContext would not reach datasets built inside workers
    "RAY_AIR_NEW_OUTPUT": "0",  # search.py reports the progress; Tune's own tables would repeat it
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal and MLflow hold the metrics; no CSV, JSON, TensorBoard
}
"""Environment variables for the driver and every worker. A variable that is already set keeps its value."""
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
        missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
        os.environ.update(missing)
        if (address := _remote_address()) is None:
            _start(num_cpus, object_store_bytes)
        else:
            _join(address, missing)
    return describe_cluster()


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
    temp = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
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
        _temp_dir="/tmp/ray" if len(f"{temp}/ray") > _TEMP_DIR_LIMIT else None,
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Ray's own advice about its next release
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
