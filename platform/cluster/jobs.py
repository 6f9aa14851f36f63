"""Lists, follows and stops the jobs that `starlab submit` started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from starlab.platform.cluster import job_log
from starlab.platform.cluster.dashboard import Dashboard, find_dashboard
from starlab.platform.cluster.job_client import open_client, reach
from starlab.platform.cluster.submit import STOP_SECONDS
from starlab.platform.errors import UserError

_STOP_EXTRA_SECONDS = 30.0
"""Time that Ray needs beside the job's own until it calls a job stopped."""
_LOOK_SECONDS = 0.5
_LOG_SHARE = 0.1
"""Ray sends a job's whole log each time. On a slow link to a long log, this share of the time at most goes to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job that `starlab submit` started."""

    id: str
    status: str
    """pending, running, stopped, succeeded or failed."""
    command: str
    """As typed after `starlab`."""
    started: datetime | None
    """When the cluster accepted it, in this machine's time zone."""
    seconds: float | None
    """From then to its end, or to now."""


def list_jobs(*, address: str | None = None, insecure: bool = False) -> list[Job]:
    """The jobs that `starlab submit` started on a cluster, the newest last.

    Raises:
        UserError: as `find_dashboard`.
    """
    dashboard = find_dashboard(address, insecure=insecure)
    with reach(dashboard):
        found = [_describe(job) for job in _ours(open_client(dashboard))]
    return sorted(found, key=lambda job: (job.started is None, job.started.timestamp() if job.started else 0.0))


def show_log(name: str, *, address: str | None = None, follow: bool = True, insecure: bool = False) -> int:
    """Print the log of a job from its beginning; with `follow`, until the job ends.

    Args:
        name: of the job, or a beginning that only one job has.

    Returns:
        Exit code: of the job as `submit` returns it; without `follow` 0.

    Raises:
        UserError: there is no such job, or as `find_dashboard`.
        RunFailedError: the cluster could not be reached again.
    """
    dashboard = find_dashboard(address, insecure=insecure)
    with reach(dashboard):
        client = open_client(dashboard)
        job = _find(client, name, dashboard)
        if not follow:
            print(client.get_job_logs(job), end="", flush=True)
            return 0
    return job_log.follow(client, job, dashboard)


def stop_job(name: str, *, address: str | None = None, insecure: bool = False) -> int:
    """Ask a job to write its checkpoint and end, and wait until it has ended, printing what it still says.

    Args:
        name: of the job, or a beginning that only one job has.

    Returns:
        Exit code: 0 if the job has ended, 1 if it was killed because it did not end within its time.

    Raises:
        UserError: there is no such job, or as `find_dashboard`.
    """
    dashboard = find_dashboard(address, insecure=insecure)
    with reach(dashboard):
        client = open_client(dashboard)
        job = _find(client, name, dashboard)
        status = client.get_job_status(job)
        if status.is_terminal():
            print(f"{job} has ended already: {status.value.lower()}", flush=True)
            return 0
        log = _Log(client, job)
        client.stop_job(job)
    print(f"Asked {job} to end; it has about {STOP_SECONDS} s for its checkpoint", flush=True)
    began = time.monotonic()
    while not status.is_terminal():
        if time.monotonic() > began + 2 * STOP_SECONDS + _STOP_EXTRA_SECONDS:
            print(f"{job} is still {status.value.lower()}; follow it: starlab logs {job}", flush=True)
            return 1
        time.sleep(_LOOK_SECONDS)
        with suppress(RuntimeError, OSError):  # the link is broken, perhaps for a while; the job was asked already
            status = client.get_job_status(job)
            log.print_new(now=status.is_terminal())
    print(f"{job}: {status.value.lower()}", flush=True)
    if status is JobStatus.STOPPED and time.monotonic() - began > STOP_SECONDS:
        print("It did not end within its time and was killed; it goes on from its newest checkpoint", flush=True)
        return 1
    return 0


class _Log:
    """The part of a job's log that was not there at the beginning."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job, self._next = client, job, 0.0
        self._printed = len(self._read())

    def print_new(self, *, now: bool) -> None:
        """Print what was not printed yet, but not more often than the link allows unless it must be `now`."""
        if now or time.monotonic() >= self._next:
            log = self._read()
            print(log[self._printed :], end="", flush=True)
            self._printed = max(self._printed, len(log))

    def _read(self) -> str:
        began = time.monotonic()
        log: str = self._client.get_job_logs(self._job)
        ended = time.monotonic()
        self._next = ended + (ended - began) / _LOG_SHARE
        return log


def _ours(client: JobSubmissionClient) -> list[JobDetails]:
    return [job for job in client.list_jobs() if "starlab" in (job.metadata or {}) and job.submission_id]


def _find(client: JobSubmissionClient, name: str, dashboard: Dashboard) -> str:
    names = [str(job.submission_id) for job in client.list_jobs() if job.submission_id]
    near = [one for one in names if one.startswith(name)]
    if name in names:
        return name
    if len(near) == 1:
        return near[0]
    if near:
        raise UserError(f"{name} is the beginning of several jobs: {', '.join(sorted(near))}")
    ours = [str(job.submission_id) for job in _ours(client)]
    there = f"it has {', '.join(sorted(ours))}" if ours else "it has none"
    raise UserError(f"the cluster at {dashboard.address} has no job {name}; {there}")


def _describe(job: JobDetails) -> Job:
    metadata = job.metadata or {}
    started = job.start_time / 1000 if job.start_time else None
    ended = job.end_time / 1000 if job.end_time else time.time()
    return Job(
        id=str(job.submission_id),
        status=job.status.value.lower(),
        command=metadata.get("starlab.command", job.entrypoint),
        started=datetime.fromtimestamp(started).astimezone() if started else None,
        seconds=ended - started if started else None,
    )


def job_rows(jobs: Sequence[Job]) -> list[tuple[str, str, str, str, str]]:
    """Rows of (id, status, started, took, command) for a terminal."""
    return [
        (
            job.id,
            job.status,
            f"{job.started:%Y-%m-%d %H:%M}" if job.started else "",
            _duration(job.seconds) if job.seconds is not None else "",
            job.command,
        )
        for job in jobs
    ]


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s" if minutes else f"{left} s"
