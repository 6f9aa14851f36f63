from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.clip import ClipRow, DataError
from starlab.pipelines.splits import limit_parts, split_rows, thin_train


def row(number: int, label: int, split: str = "train", subject: str | None = None) -> ClipRow:
    return ClipRow(clip_id=f"{number:04d}", label=label, split=split, subject=subject, num_frames=20)


CLIPS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["train", "train", "test"])), min_size=1, max_size=120).map(
    lambda clips: [row(number, label, split) for number, (label, split) in enumerate(clips)]
)


def rows_of_subjects(num_subjects: int, seed: int) -> list[ClipRow]:
    draws = np.random.default_rng(seed).integers(0, [3, num_subjects], (120, 2))
    return [row(n, int(label), subject=f"s{subject}") for n, (label, subject) in enumerate(draws)]


SUBJECT_CLIPS = st.builds(rows_of_subjects, st.integers(6, 20), st.integers(0, 2**32))
FRACTION = st.floats(0.01, 0.6)
SEED = st.integers(0, 1000)


def split_or_reject(rows, fraction, seed):
    try:
        return split_rows(rows, fraction, seed)
    except DataError:
        return None


@given(CLIPS, st.floats(0, 0.99), SEED)
def test_every_row_is_in_one_part_and_the_official_test_part_stays(rows, fraction, seed):
    parts = split_or_reject(rows, fraction, seed)
    if parts is None:
        return
    assert sorted(parts.train + parts.validation + parts.test) == list(range(len(rows)))
    assert [index for index, row in enumerate(rows) if row.split == "test"] == list(parts.test)
    assert list(parts.train) == sorted(parts.train)
    assert list(parts.validation) == sorted(parts.validation)


@given(CLIPS, FRACTION, SEED)
def test_each_class_gives_its_share_and_keeps_a_training_clip(rows, fraction, seed):
    trainable = Counter(row.label for row in rows if row.split == "train")
    parts = split_or_reject(rows, fraction, seed)
    if parts is None:
        assert all(count == 1 for count in trainable.values()), "a class of two clips can spare one"
        return
    held_out = Counter(rows[index].label for index in parts.validation)
    for label, count in trainable.items():
        if count == 1:
            assert held_out[label] == 0
        else:
            assert 1 <= held_out[label] < count
            assert abs(held_out[label] - fraction * count) <= 1


@given(CLIPS, FRACTION, SEED, st.randoms())
def test_the_draw_does_not_depend_on_the_order_of_the_rows(rows, fraction, seed, random):
    def validation_ids(rows):
        parts = split_or_reject(rows, fraction, seed)
        return parts and {rows[index].clip_id for index in parts.validation}

    shuffled = list(rows)
    random.shuffle(shuffled)
    assert validation_ids(shuffled) == validation_ids(rows)


@given(SUBJECT_CLIPS, st.floats(0.1, 0.5), SEED)
def test_no_subject_is_on_both_sides(rows, fraction, seed):
    parts = split_or_reject(rows, fraction, seed)
    if parts is None:
        return
    assert {rows[i].subject for i in parts.train}.isdisjoint({rows[i].subject for i in parts.validation})
    assert {rows[i].label for i in parts.train} == {row.label for row in rows}


def test_whole_subjects_make_up_the_fraction_of_every_class():
    rows = [row(n, label=n % 10, subject=f"s{n // 40}") for n in range(800)]  # 20 subjects, 4 clips of each class
    parts = split_rows(rows, 0.2, seed=0)
    assert len({rows[index].subject for index in parts.validation}) == 4
    assert Counter(rows[index].label for index in parts.validation) == dict.fromkeys(range(10), 16)


def test_another_seed_draws_another_part_of_the_same_size():
    rows = [row(n, label=n % 4) for n in range(200)]
    first, again, other = (split_rows(rows, 0.15, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.validation != other.validation
    assert len(first.validation) == len(other.validation) == 4 * 8 - 4  # 7.5 of each class, rounded down


def test_the_draw_is_the_same_on_every_machine_and_with_every_version():
    """Changing this changes which clips earlier runs validated on."""
    assert split_rows([row(n, label=0) for n in range(20)], 0.2, seed=0).validation == (0, 5, 9, 15)


def test_no_fraction_and_no_training_clips_give_no_validation_part():
    rows = [row(0, 0), row(1, 1), row(2, 0, "test")]
    assert split_rows(rows, 0.0, seed=0).validation == ()
    assert split_rows(rows[2:], 0.5, seed=0).validation == ()


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_outside_its_limits_is_an_error(fraction):
    with pytest.raises(ValueError, match=r"validation_fraction must be in \[0, 1\)"):
        split_rows([row(0, 0)], fraction, seed=0)


def test_subjects_too_few_to_hold_one_out_are_an_error_with_a_way_out():
    rows = [row(n, label=n % 2, subject=f"s{n % 2}") for n in range(40)]  # each subject has a class of its own
    with pytest.raises(DataError, match="set it to 0"):
        split_rows(rows, 0.1, seed=0)


@given(CLIPS, st.integers(1, 20), SEED)
def test_a_limit_keeps_so_many_clips_of_each_class_of_each_part_and_moves_none(rows, limit, seed):
    parts = split_rows(rows, 0, seed)
    few = limit_parts(parts, rows, limit, seed)
    for name in ("train", "validation", "test"):
        whole, kept = getattr(parts, name), getattr(few, name)
        assert set(kept) <= set(whole)
        assert list(kept) == sorted(kept)
        counts = Counter(rows[index].label for index in whole)
        assert Counter(rows[index].label for index in kept) == {label: min(limit, count) for label, count in counts.items()}
    assert limit_parts(parts, rows, None, seed) is parts


def test_a_larger_limit_only_adds_clips():
    rows = [row(number, number % 3) for number in range(60)]
    parts = split_rows(rows, 0, 0)
    assert set(limit_parts(parts, rows, 3, 1).train) < set(limit_parts(parts, rows, 5, 1).train)


@given(CLIPS, st.floats(0.05, 1), st.floats(0.05, 1), SEED)
def test_a_fraction_of_train_is_nested_keeps_the_classes_and_leaves_validation_and_test_alone(rows, one, other, seed):
    parts = split_rows(rows, 0, seed)
    small, large = (thin_train(parts, rows, fraction, seed) for fraction in sorted((one, other)))
    assert set(small.train) <= set(large.train) <= set(parts.train)
    assert (large.validation, large.test) == (parts.validation, parts.test)
    counts = Counter(rows[index].label for index in parts.train)
    kept = Counter(rows[index].label for index in large.train)
    assert kept.keys() == counts.keys()
    assert all(abs(kept[label] - max(one, other) * counts[label]) <= 1 for label in counts)
    assert list(large.train) == sorted(large.train)


def test_validation_clips_are_the_same_for_every_fraction_of_train():
    rows = [row(number, number % 3, subject=f"s{number % 7}") for number in range(210)]
    parts = split_rows(rows, 0.2, 0)
    assert {thin_train(parts, rows, fraction, 0).validation for fraction in (0.01, 0.3, 1.0)} == {parts.validation}
    assert len(thin_train(parts, rows, 0.01, 0).train) == 3  # one of each class
    assert thin_train(parts, rows, 1.0, 0) is parts


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_a_fraction_of_train_outside_its_limits_is_an_error(fraction):
    with pytest.raises(ValueError, match=r"train_fraction must be in \(0, 1\]"):
        thin_train(split_rows([row(0, 0)], 0, 0), [row(0, 0)], fraction, 0)


def test_an_official_validation_part_is_taken_and_nothing_is_drawn():
    rows = [row(number, number % 2, ("train", "train", "validation", "test")[number % 4]) for number in range(40)]
    parts = split_rows(rows, 0.1, 0)
    assert [rows[index].split for index in parts.validation] == ["validation"] * 10
    assert [rows[index].split for index in parts.train] == ["train"] * 20
    assert split_rows(rows, 0.1, 5) == split_rows(rows, 0.4, 0) == parts
    everything = split_rows(rows, 0, 0)
    assert (len(everything.train), everything.validation, everything.test) == (30, (), parts.test)
