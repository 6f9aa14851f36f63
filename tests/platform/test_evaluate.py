import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.platform.evaluate import Evaluation, _merge


def evaluation(labels: list[int], logits: list[list[float]]) -> Evaluation:
    return Evaluation(np.arange(len(labels)), np.array(labels), np.array(logits, np.float32), ())


def test_metrics_are_what_a_hand_counts() -> None:
    result = evaluation([0, 0, 1, 2], [[2, 1, 0], [0, 2, 1], [0, 3, 1], [5, 1, 0]])
    metrics = result.metrics()
    assert metrics["top1"] == 0.5
    assert metrics["mean_class"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert metrics["top5"] == 1.0
    assert result.confusion().tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_a_class_without_clips_is_left_out_of_the_mean() -> None:
    result = evaluation([0, 1], [[1, 0, 0], [0, 1, 0]])
    assert np.isnan(result.per_class()[2])
    assert result.metrics()["mean_class"] == 1.0


def test_an_evaluation_of_nothing_has_no_metrics() -> None:
    assert Evaluation(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.float32), ()).metrics() == {}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 2**31))
def test_loss_is_the_cross_entropy_that_torch_computes(labels: list[int], seed: int) -> None:
    import torch

    logits = np.random.default_rng(seed).normal(size=(len(labels), 7)).astype(np.float32) * 20
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.tensor(labels)).item()
    assert evaluation(labels, logits.tolist()).metrics()["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def share(positions: list[int], logits: list[list[float]], unreadable: list[tuple[str, str]] | None = None) -> tuple:
    clips = [10 + position // 3 for position in positions]
    arrays = (np.array(positions), np.array(clips) % 2, np.array(clips), np.array(logits, np.float32))
    return *([array] for array in arrays), unreadable or []


def test_views_of_a_clip_are_averaged_as_probabilities_whichever_rank_saw_them() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, 4)) * 3
    ranks = [share(list(range(rank, 9, 2)), logits[rank::2].tolist()) for rank in (1, 0)]
    merged = _merge(ranks, views=3)
    assert merged.clips.tolist() == [10, 11, 12]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.exp(merged.logits) == pytest.approx(probabilities.reshape(3, 3, 4).mean(axis=1), rel=1e-5)
    assert np.exp(merged.logits).sum(axis=1) == pytest.approx(np.ones(3), rel=1e-5)


def test_a_clip_of_which_one_view_is_missing_is_left_out_and_listed_once() -> None:
    bad = [("clip", "frame 3 is damaged"), ("clip", "frame 3 is damaged")]
    merged = _merge([share([0, 1, 2, 4, 6, 7, 8], np.eye(7, 4).tolist(), bad)], views=3)
    assert merged.clips.tolist() == [10, 12]
    assert merged.unreadable == (("clip", "frame 3 is damaged"),)


def test_one_view_keeps_the_models_logits_to_the_last_bit() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    assert (_merge([share([3, 1, 0, 4, 2], logits.tolist())], views=1).logits == logits[[2, 1, 4, 0, 3]]).all()


def test_a_class_without_any_probability_has_a_finite_loss() -> None:
    merged = _merge([share([0, 1, 2], [[0.0, 2000.0, 0, 0]] * 3)], views=3)
    assert np.isfinite(merged.metrics()["loss"])
