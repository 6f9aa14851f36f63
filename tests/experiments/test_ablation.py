"""Ablations as files: what a row may say, and that the packaged ones are valid and share their runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from starlab.experiments.ablation import load_ablation, select_rows
from starlab.experiments.catalog import describe
from starlab.experiments.spec import SpecError, load_spec

PAPER = ("table1", "table2", "table3", "table4", "figure1", "figure5", "figure6")
DEMO = ("demo_table3", "demo_table4", "demo_figure5", "demo_temporal", "demo_pretrained")
HEAD = "claim: c\ncost: none\nbase: demo\n"
ROWS = "rows: [{name: A, set: {model.encoder: FF}}, {name: B, set: {model.encoder: FB}}]\n"


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_ablation(str(file), overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", [*PAPER, *DEMO])
def test_every_packaged_ablation_says_what_it_shows_and_costs_and_each_row_is_a_valid_experiment(name: str) -> None:
    spec = load_ablation(name)
    assert len(describe(name)) > 20
    assert spec.claim.endswith(".")
    assert "run" in spec.cost
    assert spec.source
    for row in spec.rows:
        for seed in spec.seeds:
            assert spec.spec_of(row, seed).train.seed == seed
    with pytest.raises(SpecError, match=f"'rows' makes it an ablation; run it with: starlab ablate {name}"):
        load_spec(name)


def test_the_papers_numbers_stand_beside_its_rows() -> None:
    def numbers(name: str) -> list[float | None]:
        return [row.paper for row in load_ablation(name).rows]

    assert numbers("table1") == [98.7, None]
    assert numbers("table2") == [92.0, 96.5, 90.3, 92.7]
    assert numbers("table3") == [97.3, 98.7]
    assert numbers("table4") == [96.1, 97.3, 97.8, 97.3, 98.7]
    assert max(other.numbers["STAR-Transformer"] for other in load_ablation("table1").published) == 98.6
    assert [len(load_ablation(name).published) for name in ("table1", "table2")] == [6, 10]
    best = next(other for other in load_ablation("table2").published if other.name == "PoseC3D")
    assert list(best.numbers.values()) == [97.0, 99.6, 95.3, 96.4]


def test_tables_share_the_runs_that_are_the_same_experiment() -> None:
    def identities(name: str) -> dict[str, str]:
        spec = load_ablation(name)
        return {row.name: spec.spec_of(row, 0).run_id("f")[-8:] for row in spec.rows}

    paper = load_spec("penn_action").run_id("f")[-8:]
    assert identities("table4")["FZ/FB"] == identities("table3")["multi"] == identities("table1")["STAR-Transformer"] == paper
    assert identities("figure5")["3 layers"] == paper
    assert identities("figure6").items() <= identities("table4").items()
    assert identities("figure1") == identities("table3")
    packaged = [load_spec(name).run_id("f")[-8:] for name in ("ntu60_xsub", "ntu60_xview", "ntu120_xsub", "ntu120_xset")]
    assert list(identities("table2").values()) == packaged
    shared = identities("demo_table4")["FZ/FB"]
    assert shared == identities("demo_table3")["multi"] == identities("demo_figure5")["1 layer"]
    assert shared == identities("demo_temporal")["sincos"]


def test_overrides_change_the_base_and_the_seeds() -> None:
    spec = load_ablation("demo_table4", ["seeds=2", "train.epochs=4", "metric=mean_class"])
    assert (spec.seeds, spec.metric, spec.base.train.epochs) == ((0, 1), "mean_class", 4)
    assert all(spec.spec_of(row, 1).train.epochs == 4 for row in spec.rows)
    assert load_ablation("demo_table4", ["seeds=[5, 3]"]).seeds == (5, 3)


def test_an_ablation_is_stored_in_the_form_of_its_file_without_a_password() -> None:
    stored = load_ablation("demo_temporal", ["tracking.uri=https://me:secret@mlflow.example"]).to_dict()
    assert stored["rows"][0] == {"name": "none", "set": {"model.temporal_position": "none"}, "paper": None}
    assert stored["seeds"] == [0, 1, 2]
    assert "secret" not in str(stored)


def test_a_relative_path_in_a_row_means_the_folder_seen_from_where_it_was_typed() -> None:
    spec = load_ablation("table2")
    assert spec.spec_of(spec.rows[2], 0).data.store == str(Path("data/ntu120").absolute())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "seeds: 1\nreference: A\nrows: []\n", "rows is empty"),
        (HEAD + "seeds: 1\nreference: A\nrows: {A: 1}\n", "rows must be a list"),
        (HEAD + "seeds: 1\nreference: A\n", "no 'rows', so it is not an ablation"),
        (HEAD + "reference: A\n" + ROWS, "seeds is missing"),
        (HEAD + "seeds: 0\nreference: A\n" + ROWS, "seeds is 0, so there is no run"),
        (HEAD + "seeds: []\nreference: A\n" + ROWS, "so there is no run"),
        (HEAD + "seeds: [1, 1]\nreference: A\n" + ROWS, "each only once"),
        (HEAD + "seeds: [-1]\nreference: A\n" + ROWS, "they must be 0 or more"),
        (HEAD + "seeds: 1\nreference: C\n" + ROWS, "reference is 'C', which is not a row; rows: A, B"),
        (HEAD + "seeds: 1\n" + ROWS, "reference is missing"),
        ("cost: none\nbase: demo\nseeds: 1\nreference: A\n" + ROWS, "claim is missing"),
        (
            HEAD + "seeds: 1\nreference: A\nrows: [{name: A, set: {model.layer: 2}}]\n",
            "row 'A': unknown key 'model.layer'; did",
        ),
        (
            HEAD + "seeds: 1\nreference: A\nrows: [{name: A, sets: {}}]\n",
            "unknown key 'rows.0.sets'; did you mean 'rows.0.set'?",
        ),
        (HEAD + "seeds: 1\nreference: A\nrows: [{name: A, set: {model.encoder: FQ}}]\n", "row 'A': model.encoder is 'FQ'"),
        (HEAD + "seeds: 1\nreference: A\nrows: [{name: A, set: {train.seed: 2}}]\n", "row 'A' sets train.seed"),
        (
            HEAD + "seeds: 1\nreference: A\ntrain: {seed: 3}\n" + ROWS,
            "train.seed is 3, but an ablation gives every row its seeds",
        ),
        (HEAD + "seeds: 1\nreference: A\nrows: [{name: A}, {name: A, set: {model.layers: 2}}]\n", "two rows have the name 'A'"),
        (
            HEAD + "seeds: 1\nreference: A\nrows: [{name: A}, {name: B, set: {resources.workers: 1}}]\n",
            "rows 'A' and 'B' are the same experiment",
        ),
        (HEAD + "seeds: 1\nreference: A\nrows: [{name: A}, {name: B, set: {model.encoder: FZ}}]\n", "are the same experiment"),
        (HEAD + "seeds: 1\nreference: 1\nrows: [{name: 1}]\n", "rows.0.name is 1; it must be a valid string"),
        (HEAD + "seeds: 1\nreference: A\nrows: [{name: 'A, B'}]\n", "no comma"),
        (HEAD + "seeds: 1\nreference: A\nrows: [{name: A, paper: 987}]\n", "paper is 987"),
        (
            HEAD + "seeds: 1\nreference: A\npublished: [{name: X, numbers: {Z: 1.0}}]\n" + ROWS,
            "number for 'Z', which is not a row",
        ),
        (HEAD + "seeds: 1\nreference: A\nseed: 3\n" + ROWS, "unknown key 'seed'"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_row_and_the_fix(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_an_experiment_that_is_not_an_ablation_says_how_to_run_it() -> None:
    with pytest.raises(SpecError, match=r"run it with: starlab train demo$"):
        load_ablation("demo")
    with pytest.raises(SpecError, match=r"run it with: starlab search demo_search$"):
        load_ablation("demo_search")


def test_rows_are_selected_by_name_in_the_files_order() -> None:
    spec = load_ablation("demo_table4")
    assert [row.name for row in select_rows(spec, ["FZ/FB", "FF/FF"])] == ["FF/FF", "FZ/FB"]
    assert select_rows(spec, []) == spec.rows
    with pytest.raises(SpecError, match=r"demo_table4 has no row 'FF'; its rows: FF/FF, FZ/FZ"):
        select_rows(spec, ["FF"])
