import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.platform.evaluate import Evaluation


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
