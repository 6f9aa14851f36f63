"""`starlab submit -- train penn_action` runs the same command as a job on a Ray cluster and follows its log.

The job gets a working folder with this package and the YAML files that the command names, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import aiohttp
from ray.job_submission import JobSubmissionClient

from starlab.experiments.catalog import read_experiment
from starlab.experiments.credentials import without_password, without_secrets
from starlab.experiments.paths import resolve_overrides
from starlab.platform.cluster.connect import SETTINGS
from starlab.platform.cluster.dashboard import Dashboard, find_dashboard
from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.package import copy_package, package_version

_SILENCE_SECONDS = 60.0
"""A log that is silent for this long is requested again: the connection may have died unnoticed."""
_AGENT_SECONDS = 60.0
"""Time for a head that has just started: it answers before it can start jobs."""
_STOPPING = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Without it `ray job stop` gives a job 3 seconds, and a checkpoint may take longer; --env overrides it."""
_WHERE_SECRETS_GO = (
    "Set secrets where the cluster's nodes start Ray (for MLflow MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD), or "
    "write tracking.uri into an experiment file that you name by its path: it is sent as a file"
)
_RETRY_SECONDS = 3.0
_MAX_RETRIES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """A command to run as a job, and what the job gets."""

    arguments: Sequence[str]
    """As typed after `starlab`. An experiment given as a path (*.yaml) is shipped, with its base."""
    runs: str | None = None
    """An absolute path that every node shares; None leaves the STARLAB_RUNS of the cluster's nodes."""
    environment: Sequence[str] = ()
    """NAME (with its value here) or NAME=VALUE, for the job and its workers; Ray expands $VARIABLES in it. Everyone who can
    open the dashboard can read it: no secrets."""
    files: Sequence[Path] = ()
    """More files to copy into the job's working folder, under their own names."""
    submission_id: str | None = None
    """Letters, digits, '_', '.' and '-'; None makes one from the command and the time."""
    module: str = "starlab.platform.cli"
    """What `python -m` runs with the arguments."""


def submit(request: JobRequest, *, address: str | None = None, follow: bool = True, insecure: bool = False) -> int:
    """Run `starlab ARGUMENTS` as a job of the cluster and follow its log to the end.

    Args:
        request: the command, and what the job gets.
        address: of the dashboard; None takes RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's port 8265.
        follow: print the log until the job ends; False returns once the cluster has accepted the job.
        insecure: accept a cluster on another machine that asks for no token.

    Returns:
        Exit code: 0 if the job succeeded (without `follow`: was accepted), 2 if it ended with a user's mistake, 1 if it
        failed or was stopped, 130 after Ctrl-C here, which leaves the job running.

    Raises:
        UserError: no cluster answers, the token is missing or wrong, the cluster runs another Ray, or a file is missing.
        SpecError: an experiment file cannot be read.
        RunFailedError: the cluster did not accept the job, or could not be reached again.
    """
    if not request.arguments:
        raise UserError("nothing to submit: write the command after --, e.g. starlab submit -- train penn_action")
    runs = request.runs
    if runs is not None and not PurePosixPath(runs).is_absolute():
        raise UserError(f"--runs is {runs}; the cluster needs an absolute path that all its nodes share")
    job = request.submission_id or _make_id(request.arguments)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", job):
        raise UserError(f"--id is {job!r}; use up to 100 letters, digits, '_', '.' and '-', a letter or digit first")
    _refuse_passwords(request.arguments)
    job_environment = SETTINGS | _STOPPING | _read_environment(request.environment)
    if runs is not None:
        job_environment["STARLAB_RUNS"] = runs
    dashboard = find_dashboard(address, insecure=insecure)
    for name in ("dashboard_sdk", "job.sdk"):  # they log every upload and every closed connection
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    client = JobSubmissionClient(dashboard.address, headers=dict(dashboard.headers))
    with tempfile.TemporaryDirectory(prefix="starlab-submit-") as folder:
        copy_package(Path(folder))
        arguments = resolve_overrides(_ship_files(request.arguments, request.files, Path(folder)))
        submission = {
            "entrypoint": _entrypoint(request.module, arguments, runs),
            "submission_id": job,
            "runtime_env": {"working_dir": folder, "env_vars": job_environment},
            "metadata": {"starlab": package_version(), "command": shlex.join(arguments)},
        }
        _hand_over(client, submission, dashboard)
    print(f"Submitted {job} to {dashboard.address}", flush=True)
    if not follow:
        print(_how_to_go_on(job, dashboard))
        return 0
    return _follow(client, job, dashboard)


def _hand_over(client: JobSubmissionClient, submission: dict[str, Any], dashboard: Dashboard) -> None:
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            client.submit_job(**submission)
        except (RuntimeError, OSError) as error:
            if "already exists" in str(error):
                raise UserError(f"the cluster already knows a job {submission['submission_id']}; give another --id") from None
            if "No available agent" not in str(error):
                raise RunFailedError(f"the cluster at {dashboard.address} did not accept the job: {error}") from None
            if time.monotonic() > deadline:
                raise RunFailedError(
                    f"the head behind {dashboard.address} starts no jobs because its agent is missing: perhaps another "
                    "Ray on that machine holds its port (ray start --dashboard-agent-listen-port)"
                ) from None
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _follow(client: JobSubmissionClient, job: str, dashboard: Dashboard) -> int:
    try:
        asyncio.run(_print_log(client, job))
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        print(f"\n{job} goes on without this terminal.\n{_how_to_go_on(job, dashboard)}")
        return 130
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        lost = f"lost the cluster at {dashboard.address} ({error}); {job} may still run there"
        raise RunFailedError(f"{lost}\n{_how_to_go_on(job, dashboard)}") from None
    print(f"{job}: {info.status.value.lower()}", flush=True)
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None and info.message:  # it never ran, so its log does not give the reason
        print(info.message, file=sys.stderr)
    return 2 if info.driver_exit_code == 2 else 1


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    """Print the log as it grows until the job has ended. A new connection starts it over; what was printed is skipped."""
    printed = retries = 0
    ended = False
    while True:
        skip, silence = printed, asyncio.timeout(_SILENCE_SECONDS)
        try:
            async with silence, contextlib.aclosing(client.tail_job_logs(job)) as log:
                async for text in log:
                    silence.reschedule(asyncio.get_running_loop().time() + _SILENCE_SECONDS)
                    fresh, skip = text[skip:], max(0, skip - len(text))
                    sys.stdout.write(fresh)
                    sys.stdout.flush()
                    printed += len(fresh)
                    retries = 0 if fresh else retries
            complete = True
        except (RuntimeError, OSError, aiohttp.ClientError):
            gave_up = not silence.expired() and retries >= _MAX_RETRIES
            if gave_up and not ended:
                raise
            complete = ended and (gave_up or silence.expired())  # no more of it will come
            retries += not silence.expired()
        with contextlib.suppress(OSError):  # unreachable just now; the next connection shows whether it stays so
            ended = client.get_job_status(job).is_terminal()
        if ended and complete:
            return
        await asyncio.sleep(_RETRY_SECONDS)


def _how_to_go_on(job: str, dashboard: Dashboard) -> str:
    ray = "RAY_AUTH_MODE=token ray" if dashboard.headers else "ray"
    return (
        f"  follow it: {ray} job logs --follow --address {dashboard.address} {job}\n"
        f"  stop it:   {ray} job stop --address {dashboard.address} {job}"
    )


def _entrypoint(module: str, arguments: Sequence[str], runs: str | None) -> str:
    # Without it the runs would go to the working folder, which Ray removes some time after the job.
    need_runs = "" if runs else ': "${STARLAB_RUNS:?is not set on the cluster; submit with --runs}" && '
    return f"{need_runs}exec python -m {shlex.join([module, *arguments])}"


def _make_id(arguments: Sequence[str]) -> str:
    words = "-".join(PurePosixPath(argument).stem for argument in arguments[:2])
    safe = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("_.-")[:60] or "job"
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def _read_environment(entries: Sequence[str]) -> dict[str, str]:
    found = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals and name not in os.environ:
            raise UserError(f"--env {name}: it is not set here; set it or write --env {name}=VALUE")
        if name.startswith("RAY_AUTH_TOKEN"):
            raise UserError(f"--env {name}: the dashboard shows a job's environment, and the cluster has its token")
        found[name] = value if equals else os.environ[name]
        if without_secrets(found[name], {name: found[name]}) != found[name]:
            raise UserError(
                f"--env {name}: the dashboard shows a job's environment to everyone who can open it; {_WHERE_SECRETS_GO}"
            )
    return found


def _refuse_passwords(arguments: Sequence[str]) -> None:
    """Refuse a command with a password in it: it would be the job's entrypoint, which the dashboard shows."""
    for argument in arguments:
        if (shown := without_password(argument)) != argument:
            says = "the dashboard shows a job's command to everyone who can open it; leave the password out"
            raise UserError(f"{shown}: {says}. {_WHERE_SECRETS_GO}")


def _ship_files(arguments: Sequence[str], files: Sequence[Path], folder: Path) -> list[str]:
    """Copy the named files below `folder`. Returns the arguments with the paths that the files have there."""
    for file in files:
        if not file.is_file():
            raise UserError(f"no file {file} to ship")
        _ship(str(file.absolute()), folder)
    shipped = []
    for argument in arguments:
        if argument.endswith((".yaml", ".yml")) and "=" not in argument:
            base = str(read_experiment(argument).get("base", ""))
            if base.endswith((".yaml", ".yml")) and _ship(base, folder) != base:
                raise UserError(f"{argument}: its base {base} can be shipped only from below this folder; copy it here")
            argument = _ship(argument, folder)
        shipped.append(argument)
    return shipped


def _ship(name: str, folder: Path) -> str:
    """Copy a file to the same relative path below `folder`, or to its top if it is outside this folder. Returns the path."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        name = path.name
    target = folder / name
    if target.exists() and target.read_bytes() != path.read_bytes():
        raise UserError(f"{path}: another file to ship has that name; rename one of them")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return name
