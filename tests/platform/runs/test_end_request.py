"""A request to end: in a file that always exists, readable at every moment, also written to a full disk."""

from __future__ import annotations

from pathlib import Path

from starlab.platform.runs.end_request import clear_request, read_early_end, read_request, request_early_end, request_end
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EarlyEnd, EndRequest

REQUEST = EndRequest(reason="the driver got SIGTERM", signal=15)


def test_the_file_exists_from_the_start_and_a_request_changes_its_contents_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    clear_request(folder)
    before = (folder.path / EndRequest.FILE).stat()
    assert read_request(folder) is None
    request_end(folder, REQUEST)
    after = (folder.path / EndRequest.FILE).stat()
    assert read_request(folder) == REQUEST
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)  # no new file, no new block
    clear_request(folder)
    assert read_request(folder) is None


def test_a_request_that_is_half_written_is_not_there_yet(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    clear_request(folder)
    path = tmp_path / EndRequest.FILE
    path.write_bytes(b'{"reason": "the dri' + b" " * 493)
    assert read_request(folder) is None


def test_a_trial_finds_its_searchs_request_in_a_file_that_existed_before_and_a_restart_keeps_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "trial")
    clear_request(folder)
    before = (folder.path / EarlyEnd.FILE).stat()
    assert read_early_end(folder) is None
    request_early_end(folder, "ASHA: too low")
    after = (folder.path / EarlyEnd.FILE).stat()
    assert read_early_end(folder) == EarlyEnd(reason="ASHA: too low")
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    request_end(folder, REQUEST)  # the search itself is asked to end before the trial has seen the first request
    clear_request(folder)
    assert read_request(folder) is None
    assert read_early_end(folder) == EarlyEnd(reason="ASHA: too low")


def test_a_run_of_an_earlier_version_has_no_such_file(tmp_path: Path) -> None:
    assert read_request(RunFolder(tmp_path)) is None
    assert read_early_end(RunFolder(tmp_path)) is None
