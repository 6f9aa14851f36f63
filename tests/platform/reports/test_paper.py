"""The paper's numbers beside ours, what differs from its recipe, and what the noise of the seeds explains."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starlab.experiments.overrides import flatten, set_key
from starlab.experiments.spec import load_spec
from starlab.platform.errors import UserError
from starlab.platform.reports.compare import compare
from starlab.platform.reports.paper import explain_gap, paper_lines, paper_result
from starlab.platform.reports.paper_numbers import CITED_RESULTS, PAPER_RESULTS, RECIPE
from starlab.platform.reports.results import Results, RunRow, read_results
from starlab.platform.reports.simulated import write_run

PENN = load_spec("penn_action", ["data.store=/nowhere"]).to_dict()


def changed(values: dict[str, Any]) -> dict[str, Any]:
    spec = json.loads(json.dumps(PENN))
    for key, value in values.items():
        set_key(spec, key, value)
    return spec


def runs(folder: Path, accuracies: list[float], values: dict[str, Any] | None = None, clips: int = 1068) -> tuple[RunRow, ...]:
    written = []
    for seed, accuracy in enumerate(accuracies):
        right = np.arange(clips) < round(accuracy * clips)
        written.append(write_run(folder / f"penn_action-{seed}", right, changed((values or {}) | {"train.seed": seed})))
    return read_results(written, costs=False).runs


def test_every_key_of_the_recipe_is_a_key_of_a_spec_and_the_packaged_experiment_departs_only_where_it_says() -> None:
    spec = flatten(PENN)
    assert {entry.key for entry in RECIPE} <= set(spec)
    assert len({entry.key for entry in RECIPE}) == len(RECIPE)
    differing = {entry.key for entry in RECIPE if spec[entry.key] != entry.value}
    assert differing <= {"data.validation_fraction", "data.select"}  # ours holds clips out, the paper names no such part


@pytest.mark.parametrize(
    ("values", "top1", "source"),
    [
        ({}, 98.7, "Table 1"),
        ({"model.encoder": "FF", "model.decoder": "FF"}, 96.1, "Table 4"),
        ({"model.encoder": "FB", "model.decoder": "FZ"}, 97.3, "Table 4"),
        ({"model.class_tokens": "single"}, 97.3, "Table 3"),
        ({"model.layers": 1, "model.encoder_layers": 3, "model.decoder_layers": 3}, 98.7, "Table 1"),
        ({"data.dataset": "ntu60", "data.protocol": "xview"}, 96.5, "Table 2"),
        ({"data.dataset": "ntu120", "data.protocol": "xset"}, 92.7, "Table 2"),
    ],
)
def test_the_papers_number_is_found_for_its_models(values: dict[str, Any], top1: float, source: str) -> None:
    found = paper_result(flatten(changed(values)))
    assert found is not None
    assert (found.top1, found.source) == (top1, source)


@pytest.mark.parametrize("values", [{"model.layers": 2}, {"model.modality": "pose"}, {"data.dataset": "synthetic_penn_action"}])
def test_the_paper_has_no_number_for_other_models_and_data(values: dict[str, Any]) -> None:
    assert paper_result(flatten(changed(values))) is None


def test_a_comparison_has_the_papers_number_beside_ours(tmp_path: Path) -> None:
    comparison = compare(Results(runs=runs(tmp_path, [0.97, 0.98])))
    assert [row.paper for row in comparison.rows] == [98.7]
    assert [row.paper for row in compare(Results(runs=runs(tmp_path, [0.97])), metric="mean_class").rows] == [None]


def test_what_differs_is_listed_with_its_source_the_stated_before_the_silent(tmp_path: Path) -> None:
    values = {
        "train.epochs": 100,
        "train.global_batch": 32,
        "model.weights": "none",
        "model.temporal_position": "sincos",
        "data.select": "test",
        "data.test_views": [2, 1],
    }
    gap = explain_gap(runs(tmp_path, [0.90], values, clips=1000))
    found = {one.what: one for one in gap.departures}
    assert (found["train.epochs"].ours, found["train.epochs"].paper, found["train.epochs"].source) == ("100", "300", "§4.1")
    assert found["model.weights"].paper == "kinetics400"
    assert found["data.select"].ours == "test"
    assert "optimistic" in found["data.select"].note
    assert (found["test clips"].ours, found["test clips"].paper) == ("1,000", "1,068")
    assert found["batch norm"].ours == "statistics of 8 clips (train)"  # 32 clips on the experiment's four workers
    assert found["data.test_views"].ours == "[2, 1]"
    assert found["model.temporal_position"].source == "not stated"
    silent = [one.source == "not stated" for one in gap.departures]
    assert silent == sorted(silent)
    text = "\n".join(paper_lines("penn", gap))
    assert "differs from what the paper states:" in text
    assert "train.epochs        100, paper 300 (§4.1)" in text


def test_a_run_by_the_papers_recipe_differs_in_nothing_that_the_paper_states(tmp_path: Path) -> None:
    gap = explain_gap(runs(tmp_path, [0.98]))
    assert [one.what for one in gap.departures if one.source != "not stated"] == []
    assert "differs from what the paper states: nothing" in paper_lines("penn", gap)


def test_one_seed_cannot_say_what_seed_noise_explains(tmp_path: Path) -> None:
    gap = explain_gap(runs(tmp_path, [0.97]))
    assert "97.00 % at one seed, 1.70 points below the paper's 98.7 % (Table 1)" in gap.sentences[0]
    assert "run at least 3 seeds" in gap.sentences[1]


def test_seed_noise_explains_a_gap_that_is_as_large_as_itself_and_no_larger_one(tmp_path: Path) -> None:
    wide = explain_gap(runs(tmp_path / "wide", [0.96, 0.98, 0.99]))
    assert "seed noise could explain the whole gap" in wide.sentences[1]
    narrow = explain_gap(runs(tmp_path / "narrow", [0.95, 0.951, 0.952, 0.953]))
    assert "seed noise does not explain the gap alone" in narrow.sentences[1]


def test_untested_runs_and_none_at_all(tmp_path: Path) -> None:
    [run] = runs(tmp_path, [0.97])
    gap = explain_gap([replace(run, test={})])
    assert gap.sentences == ("no run was tested, so there is no accuracy to compare",)
    with pytest.raises(UserError, match="no runs"):
        explain_gap([])


def test_the_numbers_are_those_of_the_papers_tables() -> None:
    table4 = {(r.model["encoder"], r.model["decoder"]): r.top1 for r in PAPER_RESULTS if r.source == "Table 4"}
    assert table4 == {("FF", "FF"): 96.1, ("FZ", "FZ"): 97.3, ("FB", "FB"): 97.8, ("FB", "FZ"): 97.3, ("FZ", "FB"): 98.7}


def test_other_methods_are_printed_beside_as_the_paper_cites_them(tmp_path: Path) -> None:
    assert len([one for one in CITED_RESULTS if one.source == "Table 1"]) == 6
    assert len({one.method for one in CITED_RESULTS if one.source == "Table 2"}) == 10
    best = max((one for one in CITED_RESULTS if (one.dataset, one.protocol) == ("ntu60", "xsub")), key=lambda one: one.top1)
    assert (best.method, best.top1, best.estimated_pose) == ("PoseC3D", 97.0, True)
    lines = paper_lines("penn", explain_gap(runs(tmp_path, [0.97])))
    assert "HDM-BG 93.4" in lines[-1]
