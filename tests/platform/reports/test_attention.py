"""Where attention looks, as numbers with intervals, and the claim of the paper about it."""

from pathlib import Path

import numpy as np
import pytest

from starlab.platform.reports.attention import MODEL, focus, typical_clip, verdict
from starlab.platform.reports.embedding import embed
from starlab.platform.reports.explain_files import ROLLOUT, Rollouts, read_rollouts, write_rollouts


def clips(shape: list[float], count: int = 100, noise: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = np.array(shape) * rng.uniform(1 - noise, 1 + noise, (count, len(shape)))
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def test_even_importance_has_a_quarter_in_the_last_quarter_and_counts_every_frame() -> None:
    found = focus("Z", clips([1.0] * 16))
    assert found.last_quarter.mean == pytest.approx(0.25, abs=0.005)
    assert found.effective_frames.mean == pytest.approx(16, abs=0.1)
    assert sum(one.mean for one in found.frames) == pytest.approx(1)
    assert verdict(found)[0] == "holds"


def test_one_frame_alone_counts_as_one() -> None:
    found = focus(MODEL, clips([1e-9] * 15 + [1.0]))
    assert found.effective_frames.mean == pytest.approx(1, abs=1e-3)
    assert found.last_quarter.mean == pytest.approx(1)
    state, says = verdict(found)
    assert state == "does not hold"
    assert '"the model looks at all frames" does not hold' in says


def test_late_importance_fulfils_the_claim_about_f_and_refutes_the_one_about_z() -> None:
    late = clips([1.0] * 12 + [8.0] * 4)
    assert verdict(focus("F", late))[0] == "holds"
    assert verdict(focus("Z", late))[0] == "does not hold"
    assert focus("F", late).top3_late.mean == 1


def test_few_scattered_clips_tell_nothing() -> None:
    shapes = [[1.0] * 12 + [weight] * 4 for weight in (0.2, 1.0, 2.0, 9.0)]
    found = focus("F", np.concatenate([clips(shape, 1) for shape in shapes]))
    assert verdict(found)[0] == "cannot be told"


def test_intervals_cover_the_mean_of_the_distribution_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        late = rng.uniform(0.1, 0.5, 40)
        importance = np.column_stack([np.repeat((1 - late)[:, None] / 3, 3, axis=1), late]).astype(np.float32)
        found = focus("F", importance, seed=1).last_quarter
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 198


def test_no_clip_is_an_error() -> None:
    with pytest.raises(ValueError, match="no clip has a rollout"):
        focus("F", np.zeros((0, 16), np.float32))


def test_the_typical_clip_is_the_one_nearest_to_the_mean() -> None:
    importance = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], np.float32)
    assert typical_clip(importance) == 1


def test_rollouts_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_rollouts(tmp_path) is None
    written = Rollouts(("a", "b"), {"F": clips([1, 2], 2), MODEL: clips([2, 1], 2)}, 7, "test")
    write_rollouts(tmp_path / "explain" / ROLLOUT, written)
    read = read_rollouts(tmp_path)
    assert read is not None
    assert (read.clip_ids, read.step, read.part, list(read.importance)) == (("a", "b"), 7, "test", ["F", MODEL])
    for name, values in written.importance.items():
        np.testing.assert_array_equal(read.importance[name], values)


def test_pca_finds_the_two_directions_of_largest_variance() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(0, [5, 2, 0.1], (300, 3)) + 7).astype(np.float32)
    points, explained = embed(vectors)
    assert points["PCA"].shape == (300, 2)
    assert explained > 0.99
    assert abs(np.corrcoef(points["PCA"][:, 0], vectors[:, 0])[0, 1]) > 0.99
    assert points["PCA"].std(axis=0)[0] > points["PCA"].std(axis=0)[1]
    again, _ = embed(vectors)
    np.testing.assert_array_equal(points["PCA"], again["PCA"])
