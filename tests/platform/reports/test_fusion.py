"""Late fusion of rows: what the fused row predicts, on which clips, and how it is compared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starlab.platform.errors import UserError
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.reports.compare import compare
from starlab.platform.reports.fusion import fuse, with_fusion
from starlab.platform.reports.results import Results, read_results
from starlab.platform.reports.simulated import write_rows
from starlab.platform.worker.predictions import read_predictions

PIXELS, JOINTS = "modality=rgb", "modality=pose"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    rows = {"pixels": (["model.modality=rgb"], 0.7), "joints": (["model.modality=pose"], 0.75)}
    return read_results(write_rows(tmp_path / "runs", rows, clips=100))


def evaluation(logits: list[list[float]], labels: list[int]) -> Evaluation:
    return Evaluation(np.arange(len(labels)), np.array(labels), np.array(logits, np.float32), ())


def test_probabilities_are_averaged_and_not_logits() -> None:
    sure, unsure = evaluation([[100.0, 0.0]], [1]), evaluation([[0.0, 1.0]], [1])
    _, fused = fuse([(["a"], sure), (["a"], unsure)])
    assert np.exp(fused.logits[0]) == pytest.approx([(1 + 0.26894) / 2, 0.73106 / 2], rel=1e-4)
    assert fused.predicted.tolist() == [0]


def test_only_clips_that_all_models_predicted_are_fused_each_with_itself() -> None:
    one = evaluation([[9.0, 0.0], [0.0, 9.0]], [0, 1])
    other = replace(evaluation([[0.0, 9.0], [9.0, 0.0]], [1, 0]), unreadable=(("c", "torn"),))
    clips, fused = fuse([(["a", "b"], one), (["b", "x"], other)])
    assert clips == ["b"]
    assert (fused.labels.tolist(), fused.predicted.tolist()) == ([1], [1])
    assert fused.unreadable == (("c", "torn"),)


def test_a_fused_row_stands_beside_its_parts_with_a_paired_difference(results: Results, tmp_path: Path) -> None:
    comparison = compare(with_fusion(results, [PIXELS, JOINTS], tmp_path / "fused"), base=JOINTS)
    rows = {row.name: row for row in comparison.rows}
    assert len(rows) == 3
    fused = rows[f"{PIXELS} + {JOINTS}"]
    assert fused.values == {"model.modality": "rgb + pose"}
    assert len(fused.runs) == 3
    assert fused.difference is not None
    assert fused.difference.clips == 100
    assert fused.paper is None
    for run in fused.runs:
        assert run.predictions is not None
        ids, stored, _ = read_predictions(run.predictions)
        assert len(ids) == run.test_clips == 100
        assert stored.metrics()["top1"] == pytest.approx(run.test["top1"])


def test_equal_models_fused_are_that_model(results: Results, tmp_path: Path) -> None:
    twins = [replace(run, spec=run.spec | {"model.modality": "twin"}) for run in results.runs[:3]]
    twin = replace(results, runs=(*results.runs, *twins))
    comparison = compare(with_fusion(twin, [PIXELS, "modality=twin"], tmp_path), base=PIXELS)
    assert [row.difference.value for row in comparison.rows if "+" in row.name and row.difference] == [0.0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([PIXELS], "name two rows or more"),
        ([PIXELS, PIXELS], "each once"),
        ([PIXELS, "modality=poses"], f"no row is called 'modality=poses'. Rows: '{JOINTS}'"),
    ],
)
def test_a_wrong_name_is_an_error_that_names_the_rows(results: Results, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        with_fusion(results, names, tmp_path)
    assert message in str(error.value)


def test_rows_without_a_common_seed_cannot_be_fused(results: Results, tmp_path: Path) -> None:
    apart = [replace(run, seed=(run.seed or 0) + 10) if run.spec["model.modality"] == "pose" else run for run in results.runs]
    with pytest.raises(UserError, match="no seed in common"):
        with_fusion(replace(results, runs=tuple(apart)), [PIXELS, JOINTS], tmp_path)


def test_a_row_without_predictions_cannot_be_fused(results: Results, tmp_path: Path) -> None:
    empty = replace(results, runs=tuple(replace(run, predictions=None) for run in results.runs))
    with pytest.raises(UserError, match="has no predictions of the test part"):
        with_fusion(empty, [PIXELS, JOINTS], tmp_path)
