"""Talks to a cluster's dashboard about jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.job_submission import JobSubmissionClient

from starlab.platform.cluster.dashboard import Dashboard
from starlab.platform.errors import RunFailedError, StarlabError

_AGENT_SECONDS = 60.0
"""Time for a head that has just started: it answers before it can start jobs."""
_RETRY_SECONDS = 3.0


class JobExistsError(StarlabError):
    """The cluster has a job of that id."""


def open_client(dashboard: Dashboard) -> JobSubmissionClient:
    """Ray's client for the jobs of a cluster, without its lines about every upload and every closed connection."""
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    return JobSubmissionClient(dashboard.address, headers=dict(dashboard.headers))


@contextmanager
def reach(dashboard: Dashboard) -> Iterator[None]:
    """Within this context, a connection that breaks ends the command in one line.

    Raises:
        RunFailedError: the cluster could not be reached any more, or refused a request.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:  # what Ray's client raises
        raise RunFailedError(
            f"lost the cluster at {dashboard.address} ({error}). Its jobs go on; run the command again when it can be reached"
        ) from None


def send_job(client: JobSubmissionClient, submission: dict[str, Any], dashboard: Dashboard) -> None:
    """Submit a job. A head that has just started gets a minute until it can start jobs.

    Raises:
        JobExistsError: the cluster has a job of that id.
        RunFailedError: the cluster did not accept the job.
    """
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            client.submit_job(**submission)
        except (RuntimeError, OSError) as error:
            if "already exists" in str(error):
                raise JobExistsError(f"the cluster already knows a job {submission['submission_id']}") from None
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
