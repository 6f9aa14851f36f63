"""Tests the metrics. A new metric is one function and one entry in the table, and can then select checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from starlab.experiments.spec import load_spec
from starlab.platform.errors import UserError
from starlab.platform.preflight import check_spec
from starlab.platform.recipe.metrics import METRICS, Evaluation, Metric, is_better, log_softmax, softmax


def evaluation(labels: list[int], logits: list[list[float]]) -> Evaluation:
    return Evaluation(np.arange(len(labels)), np.array(labels), np.array(logits, np.float32), ())


def worst_class(evaluation: Evaluation) -> float:
    """Compute the recall of the class that is recognised least often, in [0, 1]."""
    return float(np.nanmin(evaluation.per_class()))


def test_a_new_metric_needs_one_entry_to_be_reported_and_to_select_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "worst_class", Metric(worst_class))
    even = evaluation([0, 0, 1, 1], [[2, 1], [0, 1], [0, 1], [1, 0]]).metrics()
    uneven = evaluation([0, 0, 1, 1], [[2, 1], [2, 1], [0, 1], [1, 0]]).metrics()
    assert (even["worst_class"], uneven["worst_class"]) == (0.5, 0.5)
    lost = evaluation([0, 0, 1, 1], [[2, 1], [2, 1], [1, 0], [1, 0]]).metrics()
    assert is_better(even, lost, "worst_class")
    assert is_better(lost | {"top1": 1.0}, even, "top1")
    check_spec(load_spec("demo", ["train.select_by=worst_class"]))


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"train.select_by is 'top_1', which is not a metric; did you mean 'top1'\?"):
        check_spec(load_spec("demo", ["train.select_by=top_1"]))


def test_a_lower_loss_is_better_and_breaks_ties_of_other_metrics() -> None:
    low, high = {"top1": 0.5, "loss": 1.0}, {"top1": 0.75, "loss": 2.0}
    assert is_better(low, high, "loss")
    assert not is_better(high, low, "loss")
    assert is_better(high, low, "top1")
    assert is_better({"top1": 0.5, "loss": 0.9}, low, "top1")
    assert not is_better(low, low, "top1")
    assert is_better(low, {}, "top1")


def test_a_run_id_depends_on_select_by_unless_it_is_the_default() -> None:
    plain, by_loss = load_spec("demo"), load_spec("demo", ["train.select_by=loss"])
    assert plain.run_id("x") == load_spec("demo", ["train.select_by=top1"]).run_id("x")
    assert plain.run_id("x") != by_loss.run_id("x")


def test_softmax_and_its_logarithm_agree_and_do_not_overflow() -> None:
    logits = np.array([[[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]]])
    assert np.allclose(softmax(logits).sum(-1), 1)
    assert np.allclose(np.exp(log_softmax(logits)), softmax(logits))
    assert softmax(logits.astype(np.float32)).dtype == np.float32
