"""Tests that readers of line files get every complete line once, in order, despite truncated or damaged lines."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.platform.runs.jsonl import LineFollower, LineWriter, append_line, read_last_line, read_lines


def values(path: Path, offset: int = 0) -> list[int]:
    return [line["n"] for line, _ in read_lines(path, offset)]


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert values(tmp_path / "none.jsonl") == []
    assert list(LineFollower(tmp_path / "none.jsonl").new_lines()) == []


@given(st.integers(0, 200))
def test_after_truncation_at_any_byte_whole_lines_are_read_and_writing_continues_after_them(tmp_path_factory, cut: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    writer = LineWriter(path)
    writer.write({"n": number} for number in range(10))
    writer.close()
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = data.count(b"\n")
    assert values(path) == list(range(whole))
    again = LineWriter(path)
    again.write([{"n": 99}])
    again.close()
    assert values(path) == [*range(whole), 99]


def test_a_line_appended_after_a_truncated_one_is_read_and_the_truncated_one_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    append_line(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": 2')
    append_line(path, {"n": 3})
    assert values(path) == [1, 3]


def test_damaged_lines_and_lines_that_are_not_objects_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"n": 1}\n\0\0\0\0\n[1]\n7\n{"n": 2}\n')
    assert values(path) == [1, 2]


def test_reading_continues_where_an_earlier_reader_ended(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    ends = []
    for number in range(4):
        append_line(path, {"n": number})
    for line, end in read_lines(path):
        ends.append(end)
        assert values(path, end) == list(range(line["n"] + 1, 4))
    assert ends[-1] == path.stat().st_size


def test_a_follower_reads_each_new_line_once_and_no_earlier_line(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    append_line(path, {"n": 0})
    follower = LineFollower(path)
    seen = []
    for number in range(1, 6):
        append_line(path, {"n": number})
        if number % 2:
            seen += [line["n"] for line in follower.new_lines()]
    assert seen == [1, 2, 3, 4, 5]


def test_lines_that_a_full_disk_refuses_are_written_with_the_next_ones_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.jsonl"
    writer, write = LineWriter(path), os.write
    room = [5, 0]

    def little(file: int, data: bytes) -> int:
        if not room:
            return write(file, data)
        taken = room.pop(0)
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:taken])

    monkeypatch.setattr(os, "write", little)
    with pytest.raises(OSError, match="No space"):
        writer.write([{"n": 1}])
    expected = len(b'{"n": 1}\n')
    assert writer.num_bytes == expected
    assert values(path) == []
    writer.write([{"n": 2}])
    writer.close()
    assert values(path) == [1, 2]


@given(st.integers(0, 5), st.integers(0, 300_000))
def test_a_long_truncated_line_is_removed_without_the_lines_before_it(tmp_path_factory, lines: int, tail: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % number for number in range(lines)) + b"x" * tail)
    LineWriter(path).close()
    assert values(path) == list(range(lines))
    assert path.read_bytes() == b"".join(b'{"n": %d}\n' % number for number in range(lines))


@pytest.mark.parametrize("lines", [0, 1, 5000])
def test_read_last_line_returns_the_last_complete_line(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "file.jsonl"
    assert read_last_line(path) is None
    path.write_bytes(b"".join(b'{"n": %d, "padding": "................"}\n' % number for number in range(lines)) + b'{"n": 9')
    last = read_last_line(path)
    assert (last["n"] if last else None) == (lines - 1 if lines else None)
