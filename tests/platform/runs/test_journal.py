import json
import math
from pathlib import Path

from starlab.platform.runs.journal import FILE, Journal, Point, count_differences, read_points, read_points_with_ends


def test_points_come_back_as_they_were_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.log(1, {"train/loss": 0.1 + 0.2, "train/top1": 1.0})
    journal.log(2, {"train/loss": float("inf")})
    journal.close()
    points = list(read_points(tmp_path / "j"))
    assert [(p.key, p.step, p.value) for p in points] == [
        ("train/loss", 1, 0.1 + 0.2),
        ("train/top1", 1, 1.0),
        ("train/loss", 2, math.inf),
    ]


def test_a_replayed_step_keeps_the_first_value_and_time_and_a_difference_is_counted(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j")
    first.log(1, {"train/loss": 0.5, "system/data_wait": 0.1})
    first.close()
    written = list(read_points(tmp_path / "j"))
    again = Journal(tmp_path / "j")
    again.log(1, {"train/loss": 0.5, "system/data_wait": 0.7})
    assert count_differences(tmp_path / "j") == 0
    again.log(1, {"train/loss": 0.6})
    again.log(2, {"train/loss": 0.4})
    again.close()
    assert count_differences(tmp_path / "j") == 1
    assert json.loads((tmp_path / "j.differences.jsonl").read_text()) == {
        "key": "train/loss",
        "step": 1,
        "first": 0.5,
        "again": 0.6,
    }
    assert list(read_points(tmp_path / "j"))[:2] == written
    assert len(list(read_points(tmp_path / "j"))) == 3


def test_a_truncated_last_line_is_ignored_and_removed_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.log(1, {"a": 1.0})
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"key": "a", "st')
    assert [p.step for p in read_points(path)] == [1]
    again = Journal(path)
    again.log(2, {"a": 2.0})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_reader_continues_where_it_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.log(1, {"a": 1.0, "b": 2.0})
    (_, first_end), (_, second_end) = read_points_with_ends(tmp_path / "j")
    assert [point.key for point in read_points(tmp_path / "j", first_end)] == ["b"]
    assert list(read_points(tmp_path / "j", second_end)) == []
    journal.log(2, {"a": 3.0})
    assert [(p.key, p.value) for p in read_points(tmp_path / "j", second_end)] == [("a", 3.0)]


def test_a_missing_journal_has_no_points(tmp_path: Path) -> None:
    assert list(read_points(tmp_path / "none")) == []


def test_a_point_has_its_time_in_milliseconds(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.log(1, {"a": 1.0})
    (point,) = read_points(tmp_path / "j")
    assert isinstance(point, Point)
    assert 1_700_000_000_000 < point.time_ms < 10_000_000_000_000


def test_a_continued_journal_reads_only_points_after_its_checkpoint_and_keeps_each_point_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / FILE)
    for step in range(1, 11):
        journal.log(step, {"train/loss": float(step)})
        if step == 6:
            offset = journal.num_bytes  # the checkpoint
    journal.close()
    again = Journal(tmp_path / FILE, read=False)
    again.expect_replay(offset)
    assert {step for _, step in again._known} == {7, 8, 9, 10}
    for step in range(7, 13):  # repeat the steps after the checkpoint, two of them with other values
        again.log(step, {"train/loss": float(step) + (step in (8, 9))})
    again.close()
    points = [(point.step, point.value) for point in read_points(tmp_path / FILE)]
    assert points == [(step, float(step)) for step in range(1, 13)]
    assert count_differences(tmp_path / FILE) == 2


def test_points_before_a_complete_checkpoint_are_removed_from_memory_and_stay_in_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / FILE)
    for step in range(1, 11):
        journal.log(step, {"train/loss": 1.0})
    journal.forget_before(8)
    assert {step for _, step in journal._known} == {8, 9, 10}
    journal.expect_replay(0)  # go back to before the checkpoint, as if it were damaged
    journal.log(3, {"train/loss": 1.0})
    journal.close()
    assert [point.step for point in read_points(tmp_path / FILE)] == list(range(1, 11))
