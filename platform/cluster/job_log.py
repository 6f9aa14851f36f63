"""Prints the log of a job while it grows, over broken connections, until the job has ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import aiohttp
from ray.job_submission import JobSubmissionClient

from starlab.platform.cluster.dashboard import Dashboard
from starlab.platform.errors import RunFailedError

_SILENCE_SECONDS = 60.0
"""A log that is silent for this long is requested again: the connection may have died unnoticed."""
_RETRY_SECONDS = 3.0
_MAX_RETRIES = 20


def follow(client: JobSubmissionClient, job: str, dashboard: Dashboard, *, skip: int = 0) -> int:
    """Print a job's log, without its first `skip` characters, until the job has ended, and then how it ended.

    Returns:
        Exit code: 0 if the job succeeded, 2 if it ended with a user's mistake, 1 if it failed or was stopped, 130 after
        Ctrl-C here, which leaves the job running.

    Raises:
        RunFailedError: the cluster could not be reached again.
    """
    try:
        asyncio.run(_print_log(client, job, skip))
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        print(f"\n{job} goes on without this terminal.\n{how_to_go_on(job, dashboard)}")
        return 130
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        if f"{job} does not exist" in str(error):
            raise RunFailedError(
                f"the cluster at {dashboard.address} does not know {job} any more, because its head was started again. "
                "Submit the same command: it goes on from the newest checkpoint"
            ) from None
        lost = f"lost the cluster at {dashboard.address} ({error}); {job} may still run there"
        raise RunFailedError(f"{lost}\n{how_to_go_on(job, dashboard)}") from None
    print(f"{job}: {info.status.value.lower()}", flush=True)
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None and info.message:  # it never ran, so its log does not give the reason
        print(info.message, file=sys.stderr)
    return 2 if info.driver_exit_code == 2 else 1


def how_to_go_on(job: str, dashboard: Dashboard) -> str:
    """The commands that follow and stop a job."""
    return (
        f"  follow it: starlab logs --address {dashboard.address} {job}\n"
        f"  stop it:   starlab stop --address {dashboard.address} {job}"
    )


async def _print_log(client: JobSubmissionClient, job: str, printed: int) -> None:
    """Print the log as it grows until the job has ended. A new connection starts it over; what was printed is skipped."""
    retries = 0
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
