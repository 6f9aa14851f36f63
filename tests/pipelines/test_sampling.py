import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.sampling import View, pick_frames

NUM_FRAMES = st.integers(1, 2000)
COUNT = st.integers(1, 64)
RNG = st.none() | st.integers(0, 2**32).map(np.random.default_rng)


@given(NUM_FRAMES, COUNT, RNG)
def test_picks_are_frames_of_the_clip_in_order_and_without_repeats_where_there_are_enough(num_frames, count, rng):
    picks = pick_frames(num_frames, count, rng)
    assert picks.shape == (count,)
    assert picks.dtype == np.int64
    assert picks.min() >= 0
    assert picks.max() < num_frames
    steps = np.diff(picks)
    assert (steps >= (1 if num_frames >= count else 0)).all()


@given(NUM_FRAMES, COUNT, RNG)
def test_every_segment_gives_one_frame(num_frames, count, rng):
    picks = pick_frames(num_frames, count, rng)
    edges = np.arange(count + 1) * num_frames / count
    assert (picks > edges[:-1] - 1).all()
    assert (picks < edges[1:]).all()


@given(st.integers(1, 60), COUNT)
def test_the_fixed_picks_of_a_clip_and_of_its_reversal_are_the_same_frames_up_to_rounding(num_frames, count):
    picks = pick_frames(num_frames, count, None)
    assert np.abs(picks - (num_frames - 1 - picks[::-1])).max() <= 1


def test_the_fixed_picks_are_the_middles_of_the_segments():
    assert pick_frames(48, 16, None).tolist() == list(range(1, 48, 3))
    assert pick_frames(4, 8, None).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_random_picks_reach_every_frame_of_their_segment():
    rng = np.random.default_rng(0)
    draws = np.array([pick_frames(50, 5, rng) for _ in range(500)])
    for segment in range(5):
        assert set(draws[:, segment]) == set(range(10 * segment, 10 * segment + 10))


def test_the_same_random_numbers_pick_the_same_frames():
    first, second = (pick_frames(99, 16, np.random.default_rng(7)) for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(("num_frames", "count"), [(0, 16), (5, 0)])
def test_nothing_to_pick_is_an_error(num_frames, count):
    with pytest.raises(ValueError, match="at least 1"):
        pick_frames(num_frames, count, None)


@given(num_frames=st.integers(1, 400), count=st.integers(1, 20), times=st.integers(1, 6))
def test_views_in_time_stay_in_their_segments_follow_each_other_and_share_no_frame_of_a_long_clip(num_frames, count, times):
    views = np.array([pick_frames(num_frames, count, None, View(time, times)) for time in range(times)])
    assert views.min() >= 0
    assert views.max() < num_frames
    assert (np.diff(views.T.ravel()) >= 0).all()
    if num_frames >= count * times:
        assert len(np.unique(views)) == count * times


def test_one_view_in_time_is_the_middle_and_an_odd_number_has_the_middle_in_it() -> None:
    middle = pick_frames(160, 16, None)
    assert (pick_frames(160, 16, None, View(0, 1)) == middle).all()
    assert (pick_frames(160, 16, None, View(1, 3)) == middle).all()
