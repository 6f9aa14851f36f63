from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.schedule import EvalPlan
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.worker.evaluate import _merge
from starlab.platform.worker.predictions import read_predictions, write_predictions


def evaluation(labels: list[int], logits: list[list[float]]) -> Evaluation:
    return Evaluation(np.arange(len(labels)), np.array(labels), np.array(logits, np.float32), ())


def test_metrics_equal_those_counted_by_hand() -> None:
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


def test_an_evaluation_without_clips_has_no_metrics() -> None:
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


def test_views_of_a_clip_are_averaged_as_probabilities_even_if_ranks_share_them() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, 4)) * 3
    ranks = [share(list(range(rank, 9, 2)), logits[rank::2].tolist()) for rank in (1, 0)]
    merged = _merge(ranks, views=3)
    assert merged.clips.tolist() == [10, 11, 12]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.exp(merged.logits) == pytest.approx(probabilities.reshape(3, 3, 4).mean(axis=1), rel=1e-5)
    assert np.exp(merged.logits).sum(axis=1) == pytest.approx(np.ones(3), rel=1e-5)


def test_a_clip_with_a_missing_view_is_left_out_and_listed_once() -> None:
    bad = [("clip", "frame 3 is damaged"), ("clip", "frame 3 is damaged")]
    merged = _merge([share([0, 1, 2, 4, 6, 7, 8], np.eye(7, 4).tolist(), bad)], views=3)
    assert merged.clips.tolist() == [10, 12]
    assert merged.unreadable == (("clip", "frame 3 is damaged"),)


def test_one_view_keeps_the_models_logits_to_the_last_bit() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    assert (_merge([share([3, 1, 0, 4, 2], logits.tolist())], views=1).logits == logits[[2, 1, 4, 0, 3]]).all()


def test_counts_of_joints_stand_behind_the_logits_and_are_summed_over_views() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 4))
    hits = np.arange(18).reshape(6, 3)
    merged = _merge([share(list(range(6)), np.hstack([logits, hits]).tolist())], views=3, counts=3)
    assert merged.logits.shape == (2, 4)
    assert merged.joint_hits is not None
    assert merged.joint_hits.tolist() == [[9, 12, 15], [36, 39, 42]]
    plain = _merge([share(list(range(6)), logits.tolist())], views=3)
    assert np.array_equal(plain.logits, merged.logits)
    assert plain.joint_hits is None


def test_counts_of_joints_survive_the_file_of_predictions(tmp_path: Path) -> None:
    source = SimpleNamespace(classes=("a", "b"), clips=[SimpleNamespace(clip_id=str(number)) for number in range(2)])
    hits = np.array([[1, 2, 4], [3, 4, 4]], np.float32)
    written = Evaluation(np.arange(2), np.array([0, 1]), np.eye(2, dtype=np.float32), (), hits)
    write_predictions(tmp_path / "predictions.parquet", written, source)  # type: ignore[arg-type]
    assert read_predictions(tmp_path / "predictions.parquet")[1].metrics() == written.metrics()


def test_a_class_without_any_probability_has_a_finite_loss() -> None:
    merged = _merge([share([0, 1, 2], [[0.0, 2000.0, 0, 0]] * 3)], views=3)
    assert np.isfinite(merged.metrics()["loss"])


@given(
    st.integers(1, 7), st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40), st.integers(0, 99)
)
def test_any_number_of_workers_and_any_batch_give_every_readable_clip_once_in_order(
    world: int, batch: int, clips: list[tuple[int, bool]], seed: int
) -> None:
    """Ranks share the clips as in `EvalPlan`, in batches with unreadable clips. Merged, they equal a single worker."""
    logits = np.random.default_rng(seed).normal(size=(len(clips), 4)).astype(np.float32)
    indices = tuple(1000 + 7 * position for position in range(len(clips)))
    shares = []
    for rank in range(world):
        plan = EvalPlan(indices, rank, world)
        mine = [plan.position(row) for row in range(plan.num_rows())]
        loaded = [[p for p in mine[first : first + batch] if clips[p][1]] for first in range(0, len(mine), batch)]
        loaded = [positions for positions in loaded if positions]
        columns = [
            [np.array(positions) for positions in loaded],
            [np.array([clips[p][0] for p in positions]) for positions in loaded],
            [np.array([indices[p] for p in positions]) for positions in loaded],
            [logits[positions] for positions in loaded],
            [(f"clip {p}", "torn") for p in mine if not clips[p][1]],
        ]
        shares.append(tuple(columns))
    merged = _merge(shares, views=1)
    readable = [position for position, (_, fine) in enumerate(clips) if fine]
    assert merged.clips.tolist() == [indices[position] for position in readable]
    assert merged.labels.tolist() == [clips[position][0] for position in readable]
    assert {clip for clip, _ in merged.unreadable} == {f"clip {p}" for p, (_, fine) in enumerate(clips) if not fine}
    if readable:
        assert np.array_equal(merged.logits, logits[readable])
        alone = Evaluation(merged.clips, merged.labels, logits[readable], ())
        assert merged.metrics() == alone.metrics()


def test_a_nan_logit_is_never_the_prediction() -> None:
    result = evaluation([1, 0], [[np.nan, 1, 0], [2, np.nan, 3]])
    assert result.predicted.tolist() == [1, 2]
    assert result.metrics()["top1"] == result.confusion().trace() / 2 == 0.5


@given(st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=9))
def test_probabilities_sum_to_one_and_have_the_order_of_the_logits(rows: list[list[float]]) -> None:
    result = evaluation([0] * len(rows), rows)
    probabilities = result.probabilities()
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (probabilities[np.arange(len(rows)), result.predicted] == probabilities.max(axis=1)).all()
