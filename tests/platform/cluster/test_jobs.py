"""`starlab jobs`, `logs` and `stop` over links that break and links that are slow."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from starlab.platform.cluster import jobs
from starlab.platform.cluster.dashboard import Dashboard
from starlab.platform.errors import RunFailedError

DASHBOARD = Dashboard(address="http://127.0.0.1:1", headers={})


class Client:
    """A cluster with one job, which ends some seconds after it was asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log_seconds: float = 0.0, ends_after: float = 20.0) -> None:
        self.now, self.log_seconds, self.ends_after = 0.0, log_seconds, ends_after
        self.fetched, self.asked_at, self.broken = list[float](), float("inf"), lambda: False
        monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep, time=lambda: self.now))
        monkeypatch.setattr(jobs, "find_dashboard", lambda *_, **__: DASHBOARD)
        monkeypatch.setattr(jobs, "open_client", lambda _: self)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _reach(self) -> None:
        if self.broken():
            raise ConnectionError("no route")

    def list_jobs(self) -> list[Any]:
        self._reach()
        return [SimpleNamespace(submission_id="job", metadata={"starlab": "1"})]

    def get_job_status(self, _: str) -> JobStatus:
        self._reach()
        return JobStatus.STOPPED if self.now > self.asked_at + self.ends_after else JobStatus.RUNNING

    def get_job_logs(self, _: str) -> str:
        self._reach()
        self.now += self.log_seconds
        self.fetched.append(self.now)
        return "".join(f"line {at}\n" for at in range(10 + int(self.now)))

    def stop_job(self, _: str) -> None:
        self._reach()
        self.asked_at = self.now


def test_a_job_that_is_stopped_says_each_new_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Client(monkeypatch)
    assert jobs.stop_job("job") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("line ")]
    assert said == [f"line {at}" for at in range(10, 30)]


def test_on_a_slow_link_the_log_takes_a_tenth_of_the_time_and_its_end_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client(monkeypatch, log_seconds=3.0, ends_after=50.0)
    assert jobs.stop_job("job") == 0
    assert len(client.fetched) == 3  # before, once while it ended, and at the end
    assert f"line {9 + int(client.now)}\n" in capsys.readouterr().out


def test_a_link_that_breaks_after_the_request_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch)
    client.broken = lambda: client.asked_at + 2 < client.now < client.asked_at + 15
    assert jobs.stop_job("job") == 0


@pytest.mark.parametrize(
    "call",
    [lambda: jobs.stop_job("job"), jobs.list_jobs, lambda: jobs.show_log("job", follow=False), lambda: jobs.show_log("job")],
)
def test_a_cluster_that_cannot_be_reached_any_more_is_one_line(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]
) -> None:
    Client(monkeypatch).broken = lambda: True
    with pytest.raises(RunFailedError, match=r"lost the cluster at http://127.0.0.1:1 \(no route\)\. Its jobs go on"):
        call()
