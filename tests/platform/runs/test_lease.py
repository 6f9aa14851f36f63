"""Tests that a lease lets one process at a time train a run, and that a dead process does not keep it."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from starlab.platform.runs import lease
from starlab.platform.runs.lease import Lease, LeaseLostError, RunTakenError, check_fence
from starlab.platform.runs.process import this_process

HOLD = """
import sys, time
from pathlib import Path
from starlab.platform.runs.lease import Lease
held = Lease.claim(Path(sys.argv[1]))
print(held.fence, flush=True)
time.sleep(100)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().strip() == "1"
    return process


def test_a_second_process_is_refused_with_the_owner_and_the_time_left(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(RunTakenError, match=rf"process {process.pid} on .*runs out in (60|59|5\d) s") as refused:
            Lease.claim(tmp_path / "run")
        assert refused.value.exit_code == 2
    finally:
        process.kill()
        process.wait()


def test_the_lease_of_a_killed_process_on_this_machine_is_free_immediately_and_the_number_grows(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    with Lease.claim(tmp_path) as mine:
        assert mine.fence == 2
        check_fence(tmp_path, 2)
        with pytest.raises(LeaseLostError, match=r"lease 2, ours was 1"):
            check_fence(tmp_path, 1)


def test_a_reused_process_number_does_not_keep_a_lease(tmp_path: Path) -> None:
    Lease.claim(tmp_path).release()
    held = json.loads((tmp_path / lease.FILE).read_text())
    held["released"] = False
    held["owner"]["started"] -= 1  # the number of this process, but an earlier start
    (tmp_path / lease.FILE).write_text(json.dumps(held))
    Lease.claim(tmp_path).release()


def test_a_lease_of_another_machine_is_free_once_it_has_expired_and_not_before(tmp_path: Path) -> None:
    elsewhere = replace(this_process(), host="node7", machine="another boot")
    lease._write(tmp_path, 4, elsewhere, seconds=60, released=False)
    with pytest.raises(RunTakenError, match=f"process {os.getpid()} on node7"):
        Lease.claim(tmp_path)
    lease._write(tmp_path, 4, elsewhere, seconds=0, released=False)
    with Lease.claim(tmp_path) as mine:
        assert mine.fence == 5


def test_the_lease_of_a_process_that_died_with_its_machine_is_waited_for_and_that_is_said(tmp_path: Path) -> None:
    elsewhere, said = replace(this_process(), host="node7", machine="another boot"), list[str]()
    lease._write(tmp_path, 4, elsewhere, seconds=2, released=False)
    with Lease.claim(tmp_path, wait=said.append) as mine:
        assert mine.fence == 5
    [line] = said
    assert "on node7" in line
    assert "runs out in 2 s" in line


def test_a_process_on_another_machine_that_renews_its_lease_keeps_it(tmp_path: Path) -> None:
    elsewhere = replace(this_process(), host="node7", machine="another boot")
    lease._write(tmp_path, 4, elsewhere, seconds=60, released=False)
    renew = threading.Timer(0.2, lambda: lease._write(tmp_path, 4, elsewhere, seconds=60, released=False))
    renew.start()
    with pytest.raises(RunTakenError, match="on node7"):
        Lease.claim(tmp_path, wait=lambda _: None)
    renew.join()


def test_a_process_that_lives_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(RunTakenError):
            Lease.claim(tmp_path, wait=pytest.fail)
    finally:
        process.kill()
        process.wait()


def test_a_lease_is_renewed_while_it_is_held_and_released_at_the_end(tmp_path: Path) -> None:
    with Lease.claim(tmp_path, seconds=0.2):
        first = json.loads((tmp_path / lease.FILE).read_text())["renewed"]
        deadline = time.monotonic() + 60
        while json.loads((tmp_path / lease.FILE).read_text())["renewed"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads((tmp_path / lease.FILE).read_text())["renewed"] > first
    assert json.loads((tmp_path / lease.FILE).read_text())["released"]


def test_a_clock_that_jumps_does_not_take_the_lease_from_a_live_process_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the clock of the claiming process is replaced, and the machine's clock is not changed."""
    process = holder(tmp_path)
    try:
        now = time.time()
        monkeypatch.setattr(lease.time, "time", lambda: now - 86_400)
        with pytest.raises(RunTakenError):
            Lease.claim(tmp_path)
    finally:
        process.kill()
        process.wait()
    Lease.claim(tmp_path).release()  # its owner is dead, so no waiting for a day


def test_a_replaced_owner_does_not_renew_or_release_the_lease_of_the_new_one(tmp_path: Path) -> None:
    old = Lease.claim(tmp_path)
    lease._write(tmp_path, 2, replace(this_process(), pid=1), seconds=60, released=False)
    assert not old.holds()
    old.release()
    held = json.loads((tmp_path / lease.FILE).read_text())
    assert (held["fence"], held["released"]) == (2, False)


def test_workers_with_the_number_before_can_write_no_more_when_the_driver_takes_the_next(tmp_path: Path) -> None:
    with Lease.claim(tmp_path) as lease:
        before = lease.fence
        assert lease.advance() == lease.fence == before + 1
        assert lease.holds()
        check_fence(tmp_path, lease.fence)
        with pytest.raises(LeaseLostError, match=f"ours was {before}"):
            check_fence(tmp_path, before)
    with Lease.claim(tmp_path) as following:  # it was released under its new number
        assert following.fence == before + 2


def test_a_lease_that_was_lost_does_not_advance(tmp_path: Path) -> None:
    lease = Lease.claim(tmp_path, seconds=0.01)
    lease._renewing.stop()
    time.sleep(0.05)
    with Lease.claim(tmp_path), pytest.raises(LeaseLostError):
        lease.advance()
