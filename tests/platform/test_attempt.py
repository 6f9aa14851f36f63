"""What happens between two groups of workers: failures with and without progress, no room, nodes that go away, requests."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError

from starlab.experiments.spec import load_spec
from starlab.pipelines.storage import Folder
from starlab.pipelines.stream import StreamLimits
from starlab.platform import attempt
from starlab.platform.cluster.placement import Placement
from starlab.platform.cluster.room import Demand, NoRoomError
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.runs.end_request import clear_request, read_request, request_end
from starlab.platform.runs.events import read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EndRequest, Outcome, Result
from starlab.platform.worker.tasks import EvaluationTask, TrainTask

PLACEMENT = Placement(1.0, StreamLimits(cpus=1.0, cpus_per_task=0.25, object_store_bytes=10**8, threads=1))
RESULT = Result(steps=9, total_steps=9, best_step=9, selected_by="validation", classes=("a",), val={"top1": 1.0})
NO_ROOM = ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))


def crash() -> WorkerGroupError:
    return WorkerGroupError("", {1: UserExceptionWithTraceback(RuntimeError("x"), "RuntimeError: a wire broke")})


class Story:
    """A training whose groups of workers end one after the other as told: a checkpoint's step, then an error or an outcome."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.newest, self.waits = RunFolder(path), -1, list[Demand]()
        self.groups: list[tuple[int, Exception | str]] = []
        self.queued: list[bool] = []
        self.sizes: list[int | None] = []
        self.rooms: list[int] = []
        self.fences: list[int] = []
        self.local, self.holds = False, True
        clear_request(self.folder)
        monkeypatch.setattr(attempt, "_fit", self._fit)
        monkeypatch.setattr(attempt, "checkpoint_steps", lambda _: [self.newest] if self.newest >= 0 else [])
        monkeypatch.setattr(RunFolder, "stored_checkpoints", property(lambda folder: Folder(folder.path)))
        monkeypatch.setattr(attempt, "check_fence", lambda *_: None)
        monkeypatch.setattr(attempt, "connect", lambda: SimpleNamespace(local=self.local))
        monkeypatch.setattr(attempt, "could_hold", lambda _: self.holds)
        monkeypatch.setattr(attempt, "wait_for_room", self._wait)
        monkeypatch.setattr(attempt, "count_room", lambda _, at_most: min(at_most, self.rooms.pop(0)))
        monkeypatch.setattr(
            attempt, "place", lambda spec, _, share, workers=None: replace(PLACEMENT, workers=workers or 4, share=share)
        )
        monkeypatch.setattr(attempt, "watch_nodes", lambda *_: nullcontext())
        monkeypatch.setattr(attempt, "watch_room", lambda *_: nullcontext())

    def _fit(self, _: Any, task: Any, placement: Placement, __: Any) -> None:
        step, end = self.groups.pop(0)
        self.sizes.append(placement.workers)
        self.fences.append(getattr(task, "fence", 0))
        if end == "resize":
            request_end(self.folder, EndRequest(reason="there is room for more", signal=0, resize=True))
            end = "preempted"
        self.newest = max(self.newest, step)
        if isinstance(end, Exception):
            raise end
        self.folder.write(Outcome(kind=end, step=step, reason="a node goes away", kept="the checkpoint is complete"))  # type: ignore[arg-type]
        if end == "finished":
            self.folder.write(RESULT)

    def _wait(self, demand: Demand, **options: Any) -> None:
        self.waits.append(demand)
        self.queued.append(options["queue"])
        options["check"]()
        options["say"]("waiting for a machine")
        options["say"]("waiting for a machine")

    def train(self, *groups: tuple[int, Exception | str], overrides: tuple[str, ...] = (), queues: bool = False) -> None:
        self.groups = list(groups)
        spec, nothing = load_spec("demo", list(overrides)), cast("Any", None)
        task = TrainTask(spec, nothing, nothing, self.folder, PLACEMENT.limits, queues=queues, fence=1)
        attempt.train_to_end(task, PLACEMENT, (), lambda: self.fences[-1] + 1)
        assert self.groups == []

    def said(self, kind: str) -> list[str]:
        return [event.says for event in read_events(self.folder.path) if event.kind == kind]


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    return Story(tmp_path / "demo-1", monkeypatch)


def test_a_failure_after_a_new_checkpoint_starts_the_count_again(story: Story) -> None:
    steps = [3, 3, 6, 6, 9, 9, 12]
    story.train(*[(step, crash()) for step in steps], (15, "finished"), overrides=("resources.max_failures=2",))
    assert [line.split("(")[1][0] for line in story.said("restarted")] == ["1", "2", "1", "2", "1", "2", "1"]
    assert story.said("restarted")[1] == (
        "worker 1: RuntimeError: a wire broke; the workers start again (2 of 2 failures without a new checkpoint)"
    )


def test_failures_without_progress_end_the_run_with_the_cause_in_one_line(story: Story) -> None:
    with pytest.raises(RunFailedError) as failed:
        story.train(*[(3, crash())] * 9, overrides=("resources.max_failures=2",))
    assert len(story.groups) == 9 - 3
    assert str(failed.value) == (
        "run demo-1 failed; it goes on from its newest checkpoint when started again.\nworker 1: RuntimeError: a wire broke"
    )


def test_without_restarts_the_first_failure_ends_the_run(story: Story) -> None:
    with pytest.raises(RunFailedError):
        story.train((3, crash()), overrides=("resources.max_failures=0",))


def test_workers_that_find_no_room_wait_for_it_and_no_failure_is_counted(story: Story) -> None:
    story.train(*[(-1, NO_ROOM)] * 9, (5, "finished"), overrides=("resources.max_failures=0",))
    assert story.waits == [Demand(2)] * 9
    assert set(story.said("waiting")) == {"waiting for a machine"}
    assert story.said("restarted") == []


def test_a_trial_or_cell_waits_in_a_queue_for_the_room_of_others_and_a_run_of_its_own_does_not(story: Story) -> None:
    story.train((-1, NO_ROOM), (5, "finished"), queues=True)
    story.train((-1, NO_ROOM), (5, "finished"))
    assert story.queued == [True, False]


def test_a_wait_that_took_too_long_fails_the_run_and_says_that_it_goes_on(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise NoRoomError("no room for 2 × {CPU: 1} after 3600 s")

    monkeypatch.setattr(attempt, "wait_for_room", give_up)
    with pytest.raises(RunFailedError, match=r"goes on from its newest checkpoint when started again\.\nno room for 2 ×"):
        story.train((3, NO_ROOM))


def test_a_drained_run_that_finds_no_room_in_time_is_preempted_and_not_failed(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise NoRoomError("no room for 2 × {CPU: 1} after 3600 s")

    monkeypatch.setattr(attempt, "wait_for_room", give_up)
    with pytest.raises(
        RunPreemptedError, match=r"ended at step 4 because a node goes away; .* goes on from there\. no room"
    ) as end:
        story.train((4, "preempted"), (4, NO_ROOM))
    assert end.value.exit_code == 143


def test_an_evaluation_that_waits_for_room_says_so(story: Story) -> None:
    said: list[str] = []
    nothing = cast("Any", None)
    task = EvaluationTask(
        spec=load_spec("demo"),
        source=nothing,
        clips=(),
        views=(1, 1),
        folder=story.folder,
        step=3,
        precision="fp32",
        limits=PLACEMENT.limits,
        target=story.folder.path / "target",
    )
    story.groups = [(-1, NO_ROOM), (-1, "finished")]
    attempt.evaluate_on_workers(task, PLACEMENT, said.append)
    assert said == ["waiting for a machine"]
    assert story.queued == [False]


def test_a_drained_node_of_a_cluster_is_replaced_and_the_run_goes_on(story: Story) -> None:
    story.holds = False
    story.train((4, "preempted"), (4, NO_ROOM), (9, "finished"))
    assert len(story.waits) == 2  # before the second group, which does not even try, and after Ray found no room for it


def test_a_machine_that_goes_away_ends_the_run_that_has_no_other(story: Story) -> None:
    story.local, story.holds = True, False
    with pytest.raises(
        RunPreemptedError, match="ended at step 4 because a node goes away; the checkpoint is complete"
    ) as ended:
        story.train((4, "preempted"))
    assert ended.value.exit_code == 143


@pytest.mark.parametrize("end", [NO_ROOM, crash()], ids=["no room", "a failure"])
def test_a_request_to_end_is_seen_while_no_worker_is_there_to_see_it(story: Story, end: Exception) -> None:
    request_end(story.folder, EndRequest(reason="the driver got SIGINT", signal=2))
    with pytest.raises(RunPreemptedError, match="because the driver got SIGINT; the same command goes on") as ended:
        story.train((4, end))
    assert ended.value.exit_code == 130


ELASTIC = ("resources.workers={min: 2, max: 4}",)


def test_an_elastic_run_goes_on_with_as_many_workers_as_there_is_room_for(story: Story) -> None:
    story.rooms = [4, 3, 4]
    story.train((3, crash()), (6, "resize"), (9, "finished"), overrides=ELASTIC)
    assert story.sizes == [4, 3, 4]
    assert story.waits == [Demand(2)] * 2  # before every group but the first; there is room
    assert story.said("workers") == [f"{workers} of 4 start (resources.workers.max; 2 at least)" for workers in (4, 3, 4)]
    assert len(story.said("restarted")) == 1  # a resize is no failure


def test_an_elastic_run_waits_for_its_smallest_number_only(story: Story) -> None:
    story.rooms, story.holds = [4, 2], False
    story.train((3, crash()), (9, "finished"), overrides=ELASTIC)
    assert story.waits == [Demand(2)]
    assert story.sizes == [4, 2]


def test_a_group_that_follows_on_another_waits_for_room_also_where_ray_still_counts_a_lost_node(story: Story) -> None:
    assert story.holds  # by what Ray says
    story.train((3, crash()), (9, "finished"))
    assert story.waits == [Demand(2)]
    assert story.said("waiting") == ["waiting for a machine"]


def test_a_request_to_resize_does_not_outlive_the_group_that_it_was_meant_for(story: Story) -> None:
    request_end(story.folder, EndRequest(reason="there is room for more", signal=0, resize=True))
    story.rooms = [4, 4]
    story.train((3, crash()), (9, "finished"), overrides=ELASTIC)
    assert read_request(story.folder) is None


def test_a_request_of_the_user_ends_an_elastic_run(story: Story) -> None:
    story.rooms = [4]
    request_end(story.folder, EndRequest(reason="the driver got SIGTERM", signal=15))
    with pytest.raises(RunPreemptedError):
        story.train((4, "preempted"), overrides=ELASTIC)


def test_a_killed_controller_of_ray_train_costs_a_restart(story: Story) -> None:
    story.train((3, ActorDiedError()), (9, "finished"))
    [line] = story.said("restarted")
    assert line.startswith("Ray Train's controller: its process was killed or crashed")


def test_workers_that_follow_on_failed_ones_have_a_fencing_number_of_their_own(story: Story) -> None:
    story.train((3, crash()), (6, "preempted"), (9, "finished"))
    assert story.fences == [1, 2, 2]  # a group that ended in order has nobody left who could write
