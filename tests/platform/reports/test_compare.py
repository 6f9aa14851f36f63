"""Comparisons of simulated runs: rows, pairs, verdicts, and honesty where there is little to go by."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starlab.experiments.overrides import set_key
from starlab.experiments.spec import load_spec
from starlab.platform.errors import UserError
from starlab.platform.reports.compare import compare
from starlab.platform.reports.comparison import Comparison, Row
from starlab.platform.reports.formats import render
from starlab.platform.reports.results import read_results, results_table
from starlab.platform.reports.simulated import Effects, hits, write_rows, write_run
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import Result, RunInfo
from starlab.platform.runs.search_records import AblationRecord, AblationRow, Cell, SearchSummary, Trial

FF = ["model.encoder=FF", "model.decoder=FF"]
DEMO = load_spec("demo").to_dict()


def spec_of(overrides: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    spec = json.loads(json.dumps(DEMO))
    for key, value in (overrides | {"train.seed": seed}).items():
        set_key(spec, key, value)
    return spec


def drawn(accuracies: list[float], seeds: int, clips: int = 300, effects: Effects | None = None) -> np.ndarray:
    return hits(accuracies, seeds, clips, effects or Effects(), np.random.default_rng(7))


def two_rows(runs: Path, right: np.ndarray, **options: Any) -> list[RunFolder]:
    """FZ/FB and FF/FF: right[0] and right[1] are (seeds, clips)."""
    return [
        write_run(runs / f"{name}-{seed}", right[index][seed], spec_of(values, seed), **options)
        for index, (name, values) in enumerate((("zb", {}), ("ff", {"model.encoder": "FF", "model.decoder": "FF"})))
        for seed in range(len(right[index]))
    ]


def rows_of(comparison: Comparison) -> dict[str, Row]:
    return {row.runs[0].run.partition("-")[0]: row for row in comparison.rows}


def test_runs_that_differ_in_their_seed_are_a_row_and_the_worse_row_is_called_worse(tmp_path: Path) -> None:
    folders = write_rows(tmp_path, {"zb": ([], 0.97), "ff": (FF, 0.85)}, seeds=5, clips=400)
    comparison = compare(read_results(folders))
    best, other = comparison.rows
    assert (best.name, other.name) == ("decoder=FB, encoder=FZ", "decoder=FF, encoder=FF")
    assert best.is_base
    assert best.seeds == (0, 1, 2, 3, 4)
    values = [100 * folder.require(Result).test["top1"] for folder in folders[:5]]  # type: ignore[index]
    assert best.mean == pytest.approx(np.mean(values))
    assert best.sd == pytest.approx(np.std(values, ddof=1))
    assert best.low is not None
    assert best.high is not None
    assert best.low < best.mean < best.high <= 100
    assert other.difference is not None
    assert other.difference.value == pytest.approx((other.mean or 0) - best.mean)
    assert other.verdict == "worse"
    assert len(other.difference.mcnemar) == 5
    assert comparison.keys == ("model.decoder", "model.encoder")
    assert "worse, p = " in comparison.sentences[0]
    assert "5 paired seeds, 400 clips" in comparison.sentences[0]
    turned = compare(read_results(folders), base="ff-3")
    assert rows_of(turned)["zb"].verdict == "better"


def test_loss_is_better_when_it_is_lower(tmp_path: Path) -> None:
    folders = write_rows(tmp_path, {"zb": ([], 0.97), "ff": (FF, 0.80)}, seeds=6, clips=400)
    comparison = compare(read_results(folders), metric="loss")
    assert comparison.unit == "nats"
    assert [row.verdict for row in comparison.rows] == ["base", "worse"]
    assert comparison.rows[0].mean < comparison.rows[1].mean  # type: ignore[operator]


def test_the_mean_of_the_classes_and_top5_are_those_of_the_metric(tmp_path: Path) -> None:
    folders = write_rows(tmp_path, {"zb": ([], 0.9), "ff": (FF, 0.8)}, seeds=3, clips=205)
    for metric in ("mean_class", "top5"):
        for row in compare(read_results(folders), metric=metric).rows:
            assert row.low is not None
            assert row.mean is not None
            assert row.high is not None
            assert row.low <= row.mean <= row.high
            if row.difference:
                base = next(one for one in compare(read_results(folders), metric=metric).rows if one.is_base)
                assert row.difference.value == pytest.approx(row.mean - (base.mean or 0), abs=1e-4)


def test_few_seeds_are_said_to_reach_no_exact_test_and_six_do(tmp_path: Path) -> None:
    five = compare(read_results(two_rows(tmp_path / "5", drawn([0.97, 0.8], 5))))
    assert [note for note in five.notes if "with 5 paired seeds no exact test over seeds can reach p = 0.05" in note]
    assert rows_of(five)["ff"].difference.p_sign_flip is None  # type: ignore[union-attr]
    six = compare(read_results(two_rows(tmp_path / "6", drawn([0.97, 0.8], 6))))
    assert not [note for note in six.notes if "no exact test" in note]
    assert rows_of(six)["ff"].difference.p_sign_flip == pytest.approx(2 / 64)  # type: ignore[union-attr]
    assert "sign-flip test over seeds has p = 0.031" in six.sentences[0]


def test_one_seed_gets_no_verdict_however_large_the_difference(tmp_path: Path) -> None:
    comparison = compare(read_results(two_rows(tmp_path, drawn([0.97, 0.5], 1))))
    found = rows_of(comparison)["ff"].difference
    assert found is not None
    assert found.high < 0
    assert (found.verdict, found.detectable) == ("one seed, no verdict", None)
    assert [note for note in comparison.notes if "says nothing about another training" in note]
    assert "covers the choice of test clips only" in comparison.sentences[0]


def test_many_seeds_and_clips_without_a_difference_are_equivalent_and_few_are_not(tmp_path: Path) -> None:
    effects = Effects(seed=0.02, row=0.1)
    many = compare(read_results(two_rows(tmp_path / "many", drawn([0.95, 0.95], 10, 3000, effects))), rope=1)
    assert rows_of(many)["ff"].verdict == "equivalent"
    few = compare(read_results(two_rows(tmp_path / "few", drawn([0.95, 0.95], 3, 300, effects))), rope=1)
    assert rows_of(few)["ff"].verdict == "no difference shown"
    none = compare(read_results(two_rows(tmp_path / "none", drawn([0.95, 0.95], 10, 3000, effects))), rope=0)
    assert rows_of(none)["ff"].verdict == "no difference shown"


def test_rows_that_are_right_about_every_clip_are_not_proven_equal(tmp_path: Path) -> None:
    comparison = compare(read_results(two_rows(tmp_path, np.ones((2, 3, 150), bool))))
    found = rows_of(comparison)["ff"].difference
    assert found is not None
    assert (found.value, found.verdict) == (0, "no difference shown")
    assert found.high == pytest.approx(100 * 1.96 / 152, rel=1e-3)
    assert [row.high for row in comparison.rows] == [100, 100]
    assert not [note for note in comparison.notes if "copies" in note]


def test_seeds_that_are_right_on_the_same_clips_are_pointed_out(tmp_path: Path) -> None:
    one = drawn([0.9, 0.8], 1)
    comparison = compare(read_results(two_rows(tmp_path, np.repeat(one, 3, axis=1))))
    assert [note for note in comparison.notes if "may be copies of one training: zb-0, zb-1, zb-2" in note]


def test_two_clips_show_no_difference(tmp_path: Path) -> None:
    right = np.zeros((2, 3, 2), bool)
    right[0] = True
    right[1, :, 0] = True
    assert rows_of(compare(read_results(two_rows(tmp_path, right))))["ff"].verdict == "no difference shown"


def test_rows_with_other_seeds_are_paired_by_those_that_both_have(tmp_path: Path) -> None:
    right = drawn([0.95, 0.9], 5)
    comparison = compare(read_results(two_rows(tmp_path, [right[0], right[1][:3]])))  # type: ignore[arg-type]
    assert rows_of(comparison)["ff"].difference.seeds == 3  # type: ignore[union-attr]
    base = compare(read_results([RunFolder(tmp_path / f"zb-{seed}") for seed in range(3, 5)] + [RunFolder(tmp_path / "ff-0")]))
    assert "shares no seed with the base (seeds 0 and seeds 3, 4)" in rows_of(base)["ff"].reason
    both = compare(read_results([RunFolder(tmp_path / f"{name}") for name in ("zb-0", "zb-1", "zb-2", "ff-0", "ff-1")]))
    assert [note for note in both.notes if "paired with the base by the seeds that both have" in note]
    assert rows_of(both)["ff"].difference.seeds == 2  # type: ignore[union-attr]


def test_runs_that_were_tested_on_other_clips_are_named_and_not_compared(tmp_path: Path) -> None:
    right = drawn([0.9, 0.8], 2, 100)
    folders = two_rows(tmp_path, right)
    other = [f"other-{number}" for number in range(100)]
    for seed in range(2):
        write_run(
            tmp_path / f"ff-{seed}",
            right[1][seed],
            spec_of({"model.encoder": "FF", "model.decoder": "FF"}, seed),
            clip_ids=other,
        )
    comparison = compare(read_results(folders))
    assert "ff-0 and zb-0" in rows_of(comparison)["ff"].reason
    assert rows_of(comparison)["ff"].verdict == "not compared"
    assert "other clips than the base (100 and 100 clips, 0 in both" in comparison.sentences[0]
    write_run(tmp_path / "zb-1", right[0][1], spec_of({}, 1), clip_ids=other)
    assert [
        note
        for note in compare(read_results(folders)).notes
        if "tested on other clips or classes than zb-0, so left out: zb-1" in note
    ]


def test_clips_that_a_run_could_not_read_are_left_out_for_all_and_counted(tmp_path: Path) -> None:
    right = drawn([0.95, 0.8], 3, 200)
    folders = two_rows(tmp_path, right)
    ids = [f"{number:04d}" for number in range(200)]
    unread = dict.fromkeys(ids[197:], "damaged")
    write_run(tmp_path / "zb-1", right[0][1][:197], spec_of({}, 1), clip_ids=ids[:197], unreadable=unread)
    comparison = compare(read_results(folders))
    found = rows_of(comparison)["ff"].difference
    assert found is not None
    assert (found.seeds, found.clips) == (3, 197)
    assert [note for note in comparison.notes if "up to 3 test clips could not be read" in note]
    assert found.value == pytest.approx(100 * (right[1][:, :197].mean() - right[0][:, :197].mean()))


def test_a_run_whose_clips_have_other_true_classes_is_left_out_and_named(tmp_path: Path) -> None:
    right = drawn([0.95, 0.8], 3, 200)
    folders = two_rows(tmp_path, right)
    ids = [f"{number:04d}" for number in range(200)]
    write_run(tmp_path / "zb-1", right[0][1], spec_of({}, 1), clip_ids=[*ids[1:], ids[0]])
    comparison = compare(read_results(folders))
    assert rows_of(comparison)["ff"].difference.seeds == 2  # type: ignore[union-attr]
    assert [note for note in comparison.notes if "so left out: zb-1" in note]


def test_ntu_clips_are_a_sample_of_subjects(tmp_path: Path) -> None:
    ids = [f"S001C001P{1 + number // 20:03d}R001A{1 + number % 20:03d}" for number in range(200)]
    comparison = compare(read_results(two_rows(tmp_path, drawn([0.9, 0.8], 3, 200), clip_ids=ids)))
    assert rows_of(comparison)["ff"].difference.subjects == 10  # type: ignore[union-attr]
    assert "200 clips of 10 subjects" in comparison.sentences[0]


def test_runs_without_predictions_keep_their_mean_and_are_named(tmp_path: Path) -> None:
    folders = two_rows(tmp_path, drawn([0.9, 0.8], 2))
    for seed in range(2):
        (tmp_path / f"ff-{seed}" / "artifacts" / "predictions.parquet").unlink()
    comparison = compare(read_results(folders))
    row = rows_of(comparison)["ff"]
    assert row.mean is not None
    assert row.low is None
    assert row.reason == "it has no predictions of test clips"
    assert [note for note in comparison.notes if "no predictions" in note and "ff-0, ff-1" in note]


def test_damaged_predictions_and_records_are_named(tmp_path: Path) -> None:
    folders = two_rows(tmp_path, drawn([0.9, 0.8], 3))
    (tmp_path / "ff-0" / "artifacts" / "predictions.parquet").write_bytes(b"PAR1")
    (tmp_path / "ff-1" / "result.json").write_text("{")
    said: list[str] = []
    comparison = compare(read_results(folders, said.append))
    assert [line for line in said if "ff-1" in line and "result.json" in line]
    assert [note for note in comparison.notes if "ff-0" in note and "cannot be read as predictions" in note]
    assert rows_of(comparison)["ff"].difference.seeds == 1  # type: ignore[union-attr]


def grid_of_runs(runs: Path, right: np.ndarray, seeds: int = 3) -> list[RunFolder]:
    """FZ and FF at two learning rates: right[0] to right[3] are FZ at 0.1, FZ at 0.2, FF at 0.1 and FF at 0.2."""
    return [
        write_run(runs / f"r{index}-{seed}", right[index][seed], spec_of({"model.encoder": encoder, "train.lr": lr}, seed))
        for index, (encoder, lr) in enumerate((("FZ", 0.1), ("FZ", 0.2), ("FF", 0.1), ("FF", 0.2)))
        for seed in range(seeds)
    ]


def test_by_averages_over_the_settings_it_leaves_open_and_the_seeds_alone_are_replicates(tmp_path: Path) -> None:
    right = drawn([0.95, 0.75, 0.85, 0.65], 3)
    folders = grid_of_runs(tmp_path, right)
    assert len(compare(read_results(folders)).rows) == 4
    comparison = compare(read_results(folders), by=["model.encoder"])
    assert [row.name for row in comparison.rows] == ["encoder=FZ", "encoder=FF"]
    best, other = comparison.rows
    by_seed = 100 * right[:2].mean(axis=(0, 2))
    assert (best.seeds, best.settings, best.by_seed) == ((0, 1, 2), 2, pytest.approx(by_seed))
    assert best.sd == pytest.approx(np.std(by_seed, ddof=1))  # not the 20 points between the learning rates
    found = other.difference
    assert found is not None
    assert (found.seeds, found.settings, found.mcnemar) == (3, 2, ())
    assert found.value == pytest.approx(100 * (right[2:].mean() - right[:2].mean()))
    assert "3 paired seeds, each the mean over 2 settings, 300 clips" in comparison.sentences[0]
    assert [note for note in comparison.notes if "runs of a row also differ in train.lr" in note]
    assert json.loads(render(comparison, "json"))["rows"][1]["difference"]["settings"] == 2
    assert " 3 " in next(line for line in render(comparison, "markdown").splitlines() if line.startswith("| encoder=FZ"))


def test_settings_are_not_more_seeds(tmp_path: Path) -> None:
    right = np.repeat(drawn([0.95, 0.85], 1), 5, axis=1)  # one training copied to five learning rates says nothing new
    folders = [
        write_run(
            tmp_path / f"{encoder}-{lr}", right[index][lr], spec_of({"model.encoder": encoder, "train.lr": 0.1 * (lr + 1)})
        )
        for index, encoder in enumerate(("FZ", "FF"))
        for lr in range(5)
    ]
    row = compare(read_results(folders), by=["model.encoder"]).rows[1]
    assert row.difference is not None
    assert (row.difference.seeds, row.difference.settings, row.verdict) == (1, 5, "one seed, no verdict")


def test_only_seeds_and_settings_of_which_every_combination_ran_count(tmp_path: Path) -> None:
    right = drawn([0.95, 0.75, 0.85, 0.65], 3)
    folders = [folder for folder in grid_of_runs(tmp_path, right) if folder.path.name not in ("r1-1", "r1-2")]
    comparison = compare(read_results(folders), by=["model.encoder"])
    best, other = comparison.rows
    assert (best.seeds, best.settings, best.left_out) == ((0, 1, 2), 1, ("r1-0",))
    assert best.mean == pytest.approx(100 * right[0].mean())  # r1-0 alone would make seed 0 look worse than the others
    assert [note for note in comparison.notes if "not part of the mean of their row" in note and "r1-0" in note]
    assert (other.seeds, other.settings) == ((0, 1, 2), 2)
    assert other.difference is not None
    assert (other.difference.seeds, other.difference.settings) == (3, 1)
    assert other.difference.value == pytest.approx(100 * (right[2].mean() - right[0].mean()))
    assert [note for note in comparison.notes if note.startswith("rows have different settings")]
    apart = [RunFolder(tmp_path / f"r{index}-{seed}") for index in (0, 3) for seed in range(3)]
    assert compare(read_results(apart), by=["model.encoder"]).rows[1].reason == (
        "at no seed does it have a run with the same other settings as a run of the base"
    )


def test_runs_of_one_spec_on_other_data_are_not_replicates(tmp_path: Path) -> None:
    right = drawn([0.9, 0.8], 3)
    folders = [write_run(tmp_path / f"zb-{seed}", right[0][seed], spec_of({}, seed)) for seed in range(3)]
    for seed in range(3):
        other = write_run(tmp_path / f"more-{seed}", right[1][seed], spec_of({"data.store": "/data/more"}, seed))
        other.update(RunInfo, lambda info: replace(info, tags={**info.tags, "starlab.data_fingerprint": "ffff"}))
        folders.append(other)
    comparison = compare(read_results(folders))
    assert [len(row.runs) for row in comparison.rows] == [3, 3]
    assert [note for note in comparison.notes if "the same spec and other data" in note and "more-0" in note]
    assert not [note for note in comparison.notes if "the newer one counts" in note]


def test_a_run_on_other_clips_is_not_part_of_the_mean_beside_the_interval(tmp_path: Path) -> None:
    right = drawn([0.95, 0.8], 3, 200)
    folders = two_rows(tmp_path, right)
    write_run(tmp_path / "zb-1", np.zeros(200, bool), spec_of({}, 1), clip_ids=[f"other-{number}" for number in range(200)])
    row = rows_of(compare(read_results(folders)))["zb"]
    assert (row.seeds, row.left_out) == ((0, 2), ("zb-1",))
    assert row.mean == pytest.approx(100 * right[0][[0, 2]].mean())


def test_several_code_versions_and_optimistic_selection_are_warned_of(tmp_path: Path) -> None:
    right = drawn([0.9, 0.8], 2)
    folders = two_rows(tmp_path, right)
    write_run(tmp_path / "ff-1", right[1][1], spec_of({"model.encoder": "FF", "model.decoder": "FF"}, 1), code="ffffffffffff")
    folder = RunFolder(tmp_path / "zb-0")
    folder.write_json(Result.FILE, folder.read_json(Result.FILE) | {"selected_by": "test", "steps": 4})
    notes = compare(read_results(folders)).notes
    assert [note for note in notes if note.startswith("warning: 2 versions of the code") and "ffffffffffff (ff-1)" in note]
    assert [note for note in notes if "the test part chose the checkpoint" in note and "zb-0" in note]
    assert [note for note in notes if "ended early" in note and "zb-0" in note]


def an_ablation(runs: Path, rows: list[AblationRow], right: np.ndarray, **options: Any) -> RunFolder:
    folder = RunFolder(runs / "table-1")
    cells = []
    for index, row in enumerate(rows):
        for seed in range(right.shape[1]):
            at = runs / "table-1" / "trials" / f"c{index}-{seed}"
            write_run(at, right[index][seed], spec_of(row.changes, seed))
            cells.append(Cell(row=row.name, seed=seed, run=at.name, folder=str(at.relative_to(runs))))
    folder.write(
        AblationRecord(
            claim="FZ/FB is best",
            metric="top1",
            reference="FZ / FB",
            rows=tuple(rows),
            seeds=tuple(range(right.shape[1])),
            cells=tuple(cells),
            **options,
        )
    )
    return folder


ROWS = [
    AblationRow(name="FF / FF", changes={"model.encoder": "FF", "model.decoder": "FF"}, paper=96.1),
    AblationRow(name="FZ / FB", changes={}, paper=98.7),
]


def test_an_ablation_has_the_rows_reference_and_paper_numbers_of_its_record(tmp_path: Path) -> None:
    folder = an_ablation(tmp_path, ROWS, drawn([0.8, 0.97], 3))
    comparison = compare(read_results([folder]))
    assert [(row.name, row.paper, row.verdict) for row in comparison.rows] == [
        ("FZ / FB", 98.7, "base"),
        ("FF / FF", 96.1, "worse"),
    ]
    assert (comparison.base, comparison.claim) == ("FZ / FB", "FZ/FB is best")
    assert rows_of(compare(read_results([folder]), base="FF / FF"))["c1"].verdict == "better"


def test_cells_that_have_not_started_are_named_and_the_others_compared(tmp_path: Path) -> None:
    folder = an_ablation(tmp_path, ROWS, drawn([0.8, 0.97], 3))
    (tmp_path / "table-1" / "trials" / "c0-2").rename(tmp_path / "moved")
    (tmp_path / "table-1" / "trials" / "c0-2").mkdir()  # a cell that is just being started has a folder, but no record yet
    said: list[str] = []
    comparison = compare(read_results([folder], said.append))
    assert said == ["missing  table-1 has not started: FF / FF at seed 2"]
    assert rows_of(comparison)["c0"].difference.seeds == 2  # type: ignore[union-attr]


def test_a_row_named_twice_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = an_ablation(tmp_path, [ROWS[1], ROWS[1]], drawn([0.8, 0.97], 2))
    with pytest.raises(UserError, match="table-1 has two rows called 'FZ / FB'"):
        compare(read_results([folder]))


def test_trials_of_a_search_are_rows_and_the_best_one_is_called_optimistic(tmp_path: Path) -> None:
    search = RunFolder(tmp_path / "search-1")
    right = drawn([0.8, 0.9, 0.7], 1)
    for index, lr in enumerate((0.1, 0.2, 0.3)):
        folder = write_run(search.path / "trials" / f"t{index}", right[index][0], spec_of({"train.lr": lr}))
        if index != 1:  # only the best trial is tested
            folder.write_json(Result.FILE, {k: v for k, v in folder.read_json(Result.FILE).items() if k != "test"})
            (folder.artifacts / "predictions.parquet").unlink()
    trials = tuple(Trial(run=f"t{i}", values={"train.lr": 0.1 * (i + 1)}, val_top1=0.9, epochs=2, whole=True) for i in range(3))
    search.write(SearchSummary(trials=trials, best="t1", test_top1=0.9))
    results = read_results([search])
    comparison = compare(results)
    assert {row.name for row in comparison.rows} == {"t0", "t1", "t2"}
    assert comparison.base is None
    assert [row.val is not None for row in comparison.rows] == [True, True, True]
    assert [
        note
        for note in comparison.notes
        if "a search of 3 runs: its trials are not replicates" in note and "t1, is optimistic" in note
    ]
    assert [run.kind for run in results.runs] == ["trial"] * 3


def test_a_run_given_twice_counts_once_and_an_earlier_run_of_the_same_seed_gives_way(tmp_path: Path) -> None:
    folders = two_rows(tmp_path, drawn([0.9, 0.8], 2))
    assert len(read_results([*folders, *folders]).runs) == 4
    again = write_run(tmp_path / "zb-again", np.ones(300, bool), spec_of({}, 0))
    again.update(
        RunInfo, lambda info: RunInfo(**{name: getattr(info, name) for name in RunInfo.__slots__} | {"created": "2027"})
    )
    comparison = compare(read_results([*folders, again]))
    assert [note for note in comparison.notes if "zb-0 and zb-again are the same row at seed 0; the newer one counts" in note]
    assert len(rows_of(comparison)["zb"].runs) == 2


def test_mistakes_are_errors_that_name_the_choices(tmp_path: Path) -> None:
    results = read_results(two_rows(tmp_path, drawn([0.9, 0.8], 2)))
    with pytest.raises(UserError, match="--metric f1: there is no such metric of test clips; choose one of: top1"):
        compare(results, metric="f1")
    with pytest.raises(UserError, match=r"--by model\.layer: no run has this key .* model\.layers"):
        compare(results, by=["model.layer"])
    with pytest.raises(UserError, match=r"--base FX: no row has this name\. Rows: 'decoder=FB, encoder=FZ'"):
        compare(results, base="FX")
    with pytest.raises(UserError, match="--rope is -1"):
        compare(results, rope=-1)
    with pytest.raises(UserError, match="no runs to compare"):
        compare(read_results([]))
    for seed in range(2):
        for name in ("zb", "ff"):
            folder = RunFolder(tmp_path / f"{name}-{seed}")
            folder.write_json(Result.FILE, folder.read_json(Result.FILE) | {"test": {"top1": 0.5}})
    with pytest.raises(UserError, match="--metric loss: none of the 4 tested runs has it; they have: top1"):
        compare(read_results(map(RunFolder, sorted(tmp_path.iterdir()))), metric="loss")


def test_a_run_without_a_seed_is_left_out_and_named(tmp_path: Path) -> None:
    folders = two_rows(tmp_path, drawn([0.9, 0.8], 2))
    folder = RunFolder(tmp_path / "ff-0")
    spec = folder.read_json("spec.json")
    spec["train"]["seed"] = None
    folder.write_json("spec.json", spec)
    comparison = compare(read_results(folders))
    assert [note for note in comparison.notes if "the spec has no train.seed: ff-0" in note]


def test_all_runs_are_a_table_with_their_spec_metrics_and_costs(tmp_path: Path) -> None:
    folders = two_rows(tmp_path, drawn([0.9, 0.8], 2))
    table = results_table(read_results(folders))
    assert table.num_rows == 4
    assert {"run", "seed", "test/top1", "val/loss", "spec/model.encoder", "cost/parameters", "code"} <= set(table.column_names)
    frame = table.to_pandas()
    assert frame.groupby("spec/model.encoder")["test/top1"].count().to_dict() == {"FF": 2, "FZ": 2}
    assert (frame["cost/parameters"] == 193_762).all()


def test_two_rows_of_ablations_that_share_their_cells_are_both_there_and_said_to_be_the_same_runs(tmp_path: Path) -> None:
    folder = an_ablation(tmp_path, ROWS, drawn([0.8, 0.97], 2))
    record = folder.require(AblationRecord)
    cells = tuple(Cell(row="again", seed=c.seed, run=c.run, folder=c.folder) for c in record.cells if c.row == "FZ / FB")
    other = RunFolder(tmp_path / "table-2")
    rows = (AblationRow(name="again", changes={}),)
    other.write(AblationRecord(claim="", metric="top1", reference="again", rows=rows, seeds=(0, 1), cells=cells))
    comparison = compare(read_results([folder, other, RunFolder(tmp_path / "table-1" / "trials" / "c0-0")]))
    assert [row.name for row in comparison.rows] == ["FZ / FB", "again", "FF / FF"]
    again = comparison.rows[1].difference
    assert again is not None
    assert (again.value, again.verdict) == (0, "no difference shown")
    assert [note for note in comparison.notes if note.startswith("FZ / FB and again are the same runs")]


def test_a_region_of_equivalence_is_for_points_and_not_for_the_loss(tmp_path: Path) -> None:
    folders = two_rows(tmp_path, drawn([0.9, 0.9], 3))
    assert compare(read_results(folders)).rope == 0.5
    loss = compare(read_results(folders), metric="loss")
    assert loss.rope == 0
    assert "equivalent" not in {row.verdict for row in loss.rows}


def test_one_seed_rows_do_not_count_in_the_adjustment(tmp_path: Path) -> None:
    right = drawn([0.97, 0.85], 4)
    folders = two_rows(tmp_path, right)
    alone = rows_of(compare(read_results(folders)))["ff"].difference
    singles = [write_run(tmp_path / f"x{i}", right[1][0], spec_of({"train.lr": 0.1 * (i + 1)})) for i in range(3)]
    beside = rows_of(compare(read_results([*folders, *singles]), base="zb-0"))["ff"].difference
    assert alone is not None
    assert beside is not None
    assert beside.p_adjusted == alone.p_adjusted


def test_a_run_whose_loss_is_not_finite_is_skipped_and_named(tmp_path: Path) -> None:
    folders = two_rows(tmp_path, drawn([0.9, 0.8], 3))
    path = tmp_path / "ff-1" / "artifacts" / "predictions.parquet"
    table = pq.read_table(path)
    logits = table["logits"].to_pylist()
    logits[3] = [float("nan")] * len(logits[3])
    place = table.column_names.index("logits")
    pq.write_table(table.set_column(place, "logits", pa.array(logits, table.schema.field("logits").type)), path)
    comparison = compare(read_results(folders), metric="loss")
    assert "skipped  ff-1: the loss of 1 test clips is not finite" in comparison.notes
    assert rows_of(comparison)["ff"].difference.seeds == 2  # type: ignore[union-attr]
    folder = RunFolder(tmp_path / "zb-0")
    folder.write_json(Result.FILE, folder.read_json(Result.FILE) | {"test": {"top1": 0.9, "loss": float("nan")}})
    assert json.loads(render(compare(read_results(folders), metric="loss"), "json"))["rows"][-1]["mean"] is None
