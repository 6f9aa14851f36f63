from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.schedule import EvalPlan, Schedule, clip_weights, rank_slice


@given(seed=st.integers(0, 2**31), num_clips=st.integers(1, 200), epoch=st.integers(0, 5))
def test_every_epoch_holds_every_clip_once(seed: int, num_clips: int, epoch: int) -> None:
    schedule = Schedule(seed, num_clips)
    draws = [schedule.at(epoch * num_clips + offset) for offset in range(num_clips)]
    assert sorted(draw.clip for draw in draws) == list(range(num_clips))
    assert {draw.epoch for draw in draws} == {epoch}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(Schedule(seed, 50).at(epoch * 50 + i).clip for i in range(50)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_position_draws_the_same_whoever_asks_and_whatever_was_asked_before() -> None:
    forward = [Schedule(3, 17).at(position) for position in range(100)]
    backward = [Schedule(3, 17).at(position) for position in reversed(range(100))]
    assert forward == backward[::-1]
    assert forward[40].rng().random() == Schedule(3, 17).at(40).rng().random()


def test_the_order_is_pinned_so_that_an_old_run_resumes_under_new_libraries() -> None:
    assert [Schedule(7, 10).at(position).clip for position in range(10)] == [3, 7, 8, 4, 0, 5, 6, 9, 2, 1]


def test_a_replacement_depends_on_seed_position_and_attempt_alone_and_positions_do_not_shift() -> None:
    schedule = Schedule(5, 1000)
    assert schedule.at(12, attempt=1) == Schedule(5, 1000).at(12, attempt=1)
    assert len({schedule.at(12, attempt).clip for attempt in range(6)}) > 3
    assert schedule.at(13) == Schedule(5, 1000).at(13)


def test_replacements_are_spread_over_all_clips() -> None:
    counts = Counter(Schedule(0, 10).at(position, attempt=1).clip for position in range(2000))
    assert min(counts.values()) > 130
    assert max(counts.values()) < 270


@given(batch=st.integers(1, 64), world=st.integers(1, 64))
def test_the_ranks_cover_each_step_without_gap_or_overlap(batch: int, world: int) -> None:
    if world > batch:
        with pytest.raises(ValueError, match=r"at most .* workers"):
            rank_slice(batch, 0, world)
        return
    covered = [position for rank in range(world) for position in range(*rank_slice(batch, rank, world))]
    assert covered == list(range(batch))
    sizes = [high - low for low, high in (rank_slice(batch, rank, world) for rank in range(world))]
    assert max(sizes) - min(sizes) <= 1


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    weights=st.dictionaries(st.integers(0, 4), st.floats(0.01, 50)),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_with_weights_is_as_long_and_holds_each_clip_as_often_as_its_share_rounded_up_or_down(labels, weights, seed):
    drawn = clip_weights(labels, weights)
    schedule = Schedule(seed, len(labels), drawn)
    whole = np.frombuffer(drawn, "<u4").astype(float)
    expected = whole / whole.sum() * len(labels)
    for epoch in range(2):
        clips = [schedule.at(epoch * len(labels) + offset).clip for offset in range(len(labels))]
        counts = np.bincount(clips, minlength=len(labels))
        assert counts.sum() == len(labels)
        assert (np.abs(counts - expected) < 1 + 1e-6).all()


def test_balanced_classes_are_drawn_equally_often_whatever_their_sizes() -> None:
    labels = [0] * 90 + [1] * 9 + [2]
    schedule = Schedule(3, 100, clip_weights(labels, "balanced"))
    counts = Counter(labels[schedule.at(position).clip] for position in range(100 * 60))
    assert all(abs(counts[label] - 2000) <= 60 for label in (0, 1, 2))


def test_weights_over_many_epochs_are_what_was_asked_for_and_the_order_is_pinned() -> None:
    labels = [0, 1, 0, 1, 2]
    schedule = Schedule(11, 5, clip_weights(labels, {1: 3.0}))
    counts = np.bincount([schedule.at(position).clip for position in range(5 * 900)], minlength=5)
    assert counts / 900 == pytest.approx(np.array([1, 3, 1, 3, 1]) * 5 / 9, abs=0.06)
    assert [schedule.at(position).clip for position in range(10)] == [1, 0, 4, 3, 1, 1, 3, 1, 4, 0]


def test_equal_weights_change_no_share_and_no_weights_change_no_order() -> None:
    assert clip_weights([0, 1, 1], None) == b""
    equal = Schedule(7, 10, clip_weights(list(range(10)), {}))
    assert sorted(equal.at(position).clip for position in range(10)) == list(range(10))


def test_a_weight_for_each_clip_is_required() -> None:
    with pytest.raises(ValueError, match="2 weights for 3 clips"):
        Schedule(0, 3, clip_weights([0, 1], {0: 2.0}))


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_an_evaluation_plan_shows_each_view_of_each_clip_to_one_rank(clips: int, times: int, places: int, world: int) -> None:
    shown = []
    for rank in range(world):
        plan = EvalPlan(tuple(range(100, 100 + clips)), rank, world, times, places)
        for row in range(plan.num_rows()):
            choice = plan.clip(plan.position(row), 0)
            assert choice is not None
            assert choice.rng is None
            shown.append((choice.clip, choice.view.time, choice.view.place))
            assert plan.clip(plan.position(row), 1) is None
    every = [(100 + clip, time, place) for clip in range(clips) for time in range(times) for place in range(places)]
    assert sorted(shown) == every


def test_an_empty_training_part_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Schedule(0, 0)


def test_augmentation_seeds_do_not_collide_over_many_positions() -> None:
    schedule = Schedule(0, 100)
    assert len(np.unique([schedule.at(position).seed for position in range(20_000)])) == 20_000
