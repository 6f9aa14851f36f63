"""`starlab submit -- train penn_action` runs the same command as a job on a Ray cluster and follows its log.

The job gets a working folder with this package and the YAML files that the command names, and nothing else. The same command
submitted twice is one job: the second submission follows the first one's log, or resumes the run if that job has ended.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ray.job_submission import JobSubmissionClient

from starlab.experiments.credentials import without_password, without_secrets
from starlab.platform.cluster import job_log, job_secrets
from starlab.platform.cluster.connect import SETTINGS
from starlab.platform.cluster.dashboard import Dashboard, find_dashboard
from starlab.platform.cluster.job_client import JobExistsError, open_client, reach, send_job
from starlab.platform.cluster.shipping import ship_files
from starlab.platform.cluster.verbs import check_command, with_absolute_paths
from starlab.platform.cluster.versions import check_versions
from starlab.platform.errors import UserError
from starlab.platform.package import code_hash, copy_package, package_root, package_version

COMMAND_LINE = "starlab.platform.cli"
STOP_SECONDS = 60
"""How long a job that is asked to stop has for its checkpoint. Ray's own 3 seconds may not be enough; --env overrides it."""
_STOPPING = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
_WHERE_SECRETS_GO = "Send secrets with --secret NAME: they are encrypted with the cluster's token, and nothing shows them"


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
    secrets: Sequence[str] = ()
    """NAME (with its value here) or NAME=FILE, for the job and its workers; readable with the cluster's token only."""
    files: Sequence[Path] = ()
    """More files to copy into the job's working folder, under their own names."""
    submission_id: str | None = None
    """Letters, digits, '_', '.' and '-'; None makes one from the command, the same for the same command."""
    module: str = COMMAND_LINE
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
        UserError: no cluster answers, the token is missing or wrong, the cluster runs another Ray, Python or torch, or a file
            is missing.
        SpecError: an experiment cannot be read, or an override is wrong.
        RunFailedError: the cluster did not accept the job, or could not be reached again.
    """
    verb = check_command(request.arguments, load=request.module == COMMAND_LINE)
    runs = request.runs
    if runs is not None and not PurePosixPath(runs).is_absolute():
        raise UserError(f"--runs is {runs}; the cluster needs an absolute path that all its nodes share")
    if request.submission_id and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", request.submission_id):
        raise UserError(
            f"--id is {request.submission_id!r}; use up to 100 letters, digits, '_', '.' and '-', a letter or digit first"
        )
    _refuse_passwords(request.arguments)
    job_environment = SETTINGS | _STOPPING | _read_environment(request.environment)
    if runs is not None:
        job_environment["STARLAB_RUNS"] = runs
    secrets = job_secrets.read_secrets(request.secrets)
    dashboard = find_dashboard(address, insecure=insecure)
    if secrets and dashboard.token is None:
        raise UserError(
            f"--secret {next(iter(secrets))}: the cluster at {dashboard.address} asks for no token, so everyone who reaches it "
            "could read the secret; restart it with RAY_AUTH_MODE=token (docs/cluster.md)"
        )
    with reach(dashboard):
        client = open_client(dashboard)
    with tempfile.TemporaryDirectory(prefix="starlab-submit-") as made:
        folder = Path(made)
        shipped = ship_files(request.arguments, request.files, folder)
        arguments = with_absolute_paths(shipped, verb)
        command = [request.module, *arguments]
        identity = _identity(command, runs, folder)
        with reach(dashboard):
            check_versions(client, dashboard)
        copy_package(folder)
        runtime_env: dict[str, Any] = {"working_dir": made, "env_vars": job_environment}
        if secrets and dashboard.token:
            (folder / job_secrets.FILE).write_text(job_secrets.seal_secrets(secrets, dashboard.token))
            job_environment[job_secrets.VARIABLE] = job_secrets.FILE
            runtime_env["worker_process_setup_hook"] = job_secrets.HOOK
        submission = {
            "entrypoint": _entrypoint(command, runs),
            "runtime_env": runtime_env,
            "metadata": {
                "starlab": package_version(),
                "starlab.command": shlex.join(arguments),
                "starlab.identity": identity,
                "starlab.code": code_hash(package_root()),
            },
        }
        words = "-".join(PurePosixPath(argument).stem for argument in arguments[:2])
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("_.-")[:60] or "job"
        wanted = request.submission_id or f"{name}-{identity[:8]}"
        with reach(dashboard):
            job = _start_or_join(client, submission, wanted, dashboard, named=request.submission_id is not None)
    if not follow:
        print(job_log.how_to_go_on(job, dashboard))
        return 0
    return job_log.follow(client, job, dashboard)


def _start_or_join(
    client: JobSubmissionClient, submission: dict[str, Any], wanted: str, dashboard: Dashboard, *, named: bool
) -> str:
    """Submit the job, unless a job of the same identity is under way. Returns the id of the one or the other.

    The ids of one command are NAME, NAME-2, NAME-3, …, one after the other. Two submissions at the same moment want the same
    id, which the cluster gives to one of them; the other joins it.
    """
    metadata = submission["metadata"]
    while True:
        jobs = {str(job.submission_id): job for job in client.list_jobs() if job.submission_id}
        for job, info in jobs.items():
            theirs = info.metadata or {}
            if not info.status.is_terminal() and theirs.get("starlab.identity") == metadata["starlab.identity"]:
                print(f"{job} is running this command on {dashboard.address} already", flush=True)
                if theirs.get("starlab.code") != metadata["starlab.code"]:
                    print(f"  It runs other code than yours. To run yours: starlab stop {job}, then submit again", flush=True)
                return job
        job, attempt = wanted, 1
        while job in jobs and not named:
            attempt += 1
            job = f"{wanted}-{attempt}"
        try:
            send_job(client, submission | {"submission_id": job}, dashboard)
        except JobExistsError as error:
            if named:
                raise UserError(f"{error}; give another --id") from None
        else:
            print(f"Submitted {job} to {dashboard.address}", flush=True)
            return job


def _identity(command: Sequence[str], runs: str | None, folder: Path) -> str:
    """A hash of what the command computes: its words, the files that it names, and where its runs go."""
    digest = hashlib.sha256("\0".join([*command, runs or ""]).encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"\0{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _entrypoint(command: Sequence[str], runs: str | None) -> str:
    # Without it the runs would go to the working folder, which Ray removes some time after the job.
    need_runs = "" if runs else ': "${STARLAB_RUNS:?is not set on the cluster; submit with --runs}" && '
    return f"{need_runs}exec python -m {shlex.join(command)}"


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
                f"--env {name}: the dashboard shows a job's environment to everyone who can open it. {_WHERE_SECRETS_GO}"
            )
    return found


def _refuse_passwords(arguments: Sequence[str]) -> None:
    """Refuse a command with a password in it: it would be the job's entrypoint, which the dashboard shows."""
    for argument in arguments:
        if (shown := without_password(argument)) != argument:
            says = "the dashboard shows a job's command to everyone who can open it; leave the password out"
            raise UserError(
                f"{shown}: {says}. {_WHERE_SECRETS_GO} (MLFLOW_TRACKING_PASSWORD, PGPASSWORD). An address with a password may "
                "also be in an experiment file that you name by its path"
            )
