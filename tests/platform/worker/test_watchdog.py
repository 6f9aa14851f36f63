"""Tests the supervisor of a rank. It ignores a busy rank, and kills one that sleeps, hangs in C code or is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from starlab.platform.runs.events import read_events

RANK = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from starlab.platform.worker.watchdog import Watchdog

def train():
    watchdog = Watchdog(Path(sys.argv[1]), 1, stuck_after_seconds=1.0)
    for _ in range(15):
        watchdog.beat()
        time.sleep(0.1)
    if sys.argv[2] == "sleeps":
        time.sleep(100)
    elif sys.argv[2] == "holds the lock in C":
        ctypes.PyDLL(None).sleep(100)
    elif sys.argv[2] == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(100)  # the kernel may stop the other thread first
    watchdog.close()

thread = threading.Thread(target=train)  # as Ray Train does
thread.start()
thread.join()
"""


@pytest.mark.parametrize("fault", ["sleeps", "holds the lock in C", "is stopped"])
def test_a_rank_that_makes_no_progress_is_killed_and_its_stacks_are_kept(tmp_path: Path, fault: str) -> None:
    process = subprocess.run([sys.executable, "-c", RANK, tmp_path, fault], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    stacks = (tmp_path / "stacks" / "rank-1.txt").read_text()
    assert stacks.startswith("rank 1 is process ")
    assert "no forward pass for 1 s" in stacks
    if fault == "is stopped":
        assert "it was stopped by a signal" in stacks
    else:
        assert " in train\n" in stacks
    [event] = read_events(tmp_path)
    assert (event.kind, event.rank) == ("stuck", 1)
    assert "rank-1.txt" in event.says
    assert [path.name for path in tmp_path.glob("events*")] == ["events.watchdog-1.jsonl"]  # the rank writes another


def test_a_rank_that_works_and_ends_is_not_killed(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", RANK, tmp_path, "ends"], timeout=120, check=False)
    assert process.returncode == 0
    assert read_events(tmp_path) == []


def test_the_supervisor_ends_with_a_rank_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", RANK, tmp_path, "sleeps"])
    path = tmp_path / "stacks" / "rank-1.txt"
    deadline = time.monotonic() + 60
    supervisors: list[int] = []
    while not supervisors and time.monotonic() < deadline:
        time.sleep(0.05)
        supervisors = supervisors_of(path)
    process.kill()
    process.wait()
    while supervisors_of(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(supervisors) == 1
    assert supervisors_of(path) == []


def supervisors_of(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(path) in command:
                found.append(int(entry.name))
    return found
