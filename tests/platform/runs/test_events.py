"""Tests the events of a run, also after a truncated line."""

from pathlib import Path

from starlab.platform.runs.events import FILE, EventPrinter, read_events, record


def test_a_line_truncated_by_a_full_disk_loses_only_that_event(tmp_path: Path) -> None:
    record(tmp_path, "bad_loss", "one", rank=0, step=3)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"time": 1.0, "kind": "stu')
    assert [event.says for event in read_events(tmp_path)] == ["one"]
    record(tmp_path, "stuck", "two", rank=1)
    record(tmp_path, "resumed", "three", step=3)
    assert [(event.kind, event.rank, event.step, event.says) for event in read_events(tmp_path)] == [
        ("bad_loss", 0, 3, "one"),
        ("stuck", 1, None, "two"),
        ("resumed", None, 3, "three"),
    ]


def test_events_after_a_truncated_line_are_printed(tmp_path: Path) -> None:
    said: list[str] = []
    with EventPrinter(tmp_path, said.append):
        (tmp_path / FILE).write_text('{"time": 1.0, "ki')
        record(tmp_path, "preempted", "a node goes away", rank=0, step=7)
    assert said == ["notice   preempted rank 0 step 7: a node goes away"]


def test_every_writer_has_a_file_of_its_own_and_readers_see_the_events_in_the_order_of_time(tmp_path: Path) -> None:
    record(tmp_path, "resumed", "one", rank=1)
    said: list[str] = []
    with EventPrinter(tmp_path, said.append):
        record(tmp_path, "bad_loss", "two", rank=2)
        record(tmp_path, "waiting", "three")
        record(tmp_path, "bad_loss", "four", rank=1)
    assert [event.says for event in read_events(tmp_path)] == ["one", "two", "three", "four"]
    assert sorted(line.rpartition(" ")[2] for line in said) == ["four", "three", "two"]
    written = {path.name: len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert written == {"events.jsonl": 1, "events.rank-1.jsonl": 2, "events.rank-2.jsonl": 1}
