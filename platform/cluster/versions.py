"""Checks that a cluster has the packages that starlab needs, before anything of the user's is sent to it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from uuid import uuid4

from packaging.requirements import Requirement
from ray.job_submission import JobStatus, JobSubmissionClient

from starlab.platform.cluster.dashboard import Dashboard
from starlab.platform.cluster.job_client import JobExistsError, send_job
from starlab.platform.errors import RunFailedError, UserError

PROBE = "starlab-versions-"
"""How the ids of the jobs begin that ask a cluster for its versions."""
_MARK = "STARLAB VERSIONS "
_PROBE_SECONDS = 180.0
_POLL_SECONDS = 0.3
_PROGRAM = """\
import importlib.metadata as found, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = found.version(name)
    except found.PackageNotFoundError:
        versions[name] = None
print("STARLAB VERSIONS " + json.dumps(versions))
"""


def requirements() -> list[Requirement]:
    """The packages that starlab needs, in the ranges of its own metadata; of an uninstalled copy torch alone."""
    try:
        listed = importlib.metadata.requires("starlab") or ["torch"]
    except importlib.metadata.PackageNotFoundError:
        listed = ["torch"]
    parsed = [Requirement(text) for text in listed]
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]


def check_versions(client: JobSubmissionClient, dashboard: Dashboard) -> None:
    """Ask the cluster for the versions of its packages with a small job, and compare them.

    The answer counts for the life of a head, unless it would refuse the submission: then the cluster is asked again.

    Raises:
        UserError: a package is missing or outside the range that starlab needs; names each with the fix.
        RunFailedError: the cluster did not run the small job.
    """
    wanted = requirements()
    job = _probe_id(dashboard, wanted)
    versions, asked_now = _cluster_versions(client, dashboard, job, wanted)
    problems = mismatches(wanted, versions)
    if problems and not asked_now:  # somebody may have installed them since that answer
        problems = mismatches(wanted, _cluster_versions(client, dashboard, f"{job}-{uuid4().hex[:6]}", wanted)[0])
    if problems:
        raise UserError(
            f"the Python of the cluster at {dashboard.address} does not fit starlab: {'; '.join(problems)}. Install "
            "requirements.lock there (on V100s with PyTorch's CUDA 12.6 build, as cluster.yaml does). Nothing was sent"
        )


def mismatches(wanted: list[Requirement], found: Mapping[str, str | None]) -> list[str]:
    """A phrase for each package that is missing or whose version is outside its range."""
    problems = []
    for requirement in wanted:
        version = found.get(requirement.name)
        if version is None:
            problems.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version} and must be {requirement.specifier}")
    return problems


def _probe_id(dashboard: Dashboard, wanted: list[Requirement]) -> str:
    """The same for every submission to this start of the head, so that the answer of an earlier one is found again."""
    asked = " ".join([dashboard.session, *(one.name for one in wanted)])
    return f"{PROBE}{hashlib.sha256(asked.encode()).hexdigest()[:10]}"


def _cluster_versions(
    client: JobSubmissionClient, dashboard: Dashboard, job: str, wanted: list[Requirement]
) -> tuple[dict[str, str | None], bool]:
    """Return the cluster's versions by package, and whether this call asked for them or found an earlier answer."""
    program = f"python -c {shlex.quote(_PROGRAM)} {shlex.join(one.name for one in wanted)}"
    asked_now = False
    with suppress(JobExistsError):
        send_job(client, {"entrypoint": program, "submission_id": job, "metadata": {"starlab.probe": "versions"}}, dashboard)
        asked_now = True
    deadline = time.monotonic() + _PROBE_SECONDS
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            raise RunFailedError(
                f"the cluster at {dashboard.address} did not run a small job within {_PROBE_SECONDS:g} s; see its log: "
                f"starlab logs {job}"
            )
        time.sleep(_POLL_SECONDS)
    line = next((line for line in client.get_job_logs(job).splitlines() if line.startswith(_MARK)), None)
    if line is None or status is not JobStatus.SUCCEEDED:
        says = client.get_job_info(job).message or "its log is empty"
        client.delete_job(job)  # the next submission asks again
        raise RunFailedError(f"the cluster at {dashboard.address} could not run a small job as `python`: {says}")
    versions: dict[str, str | None] = json.loads(line.removeprefix(_MARK))
    return versions, asked_now
