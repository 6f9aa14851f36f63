"""A finished run that is trained longer: exactly as a single run where the rate is constant, and refused where more changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from starlab.experiments.spec import Spec, load_spec, spec_from_dict
from starlab.pipelines.sources import open_source
from starlab.platform.errors import UserError
from starlab.platform.extension import extended_spec, extension_lines
from starlab.platform.preflight import split_parts
from starlab.platform.runs.checkpoint import find_checkpoint
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.records import Result
from starlab.platform.tracking.description import command
from starlab.platform.trainer import RunResult, train


def longer(run: RunResult, **changes: Any) -> Spec:
    spec = spec_from_dict(RunFolder(run.folder).read_json(SPEC), "run")
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, **{"epochs": 3, **changes}))


@pytest.mark.slow
def test_with_a_constant_rate_the_longer_run_is_the_single_run_over_all_epochs_bit_for_bit(
    run: RunResult, runs: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    extended = train(longer(run), runs=runs, extend=run.run_id, say=said.append)
    single = train(longer(run), runs=tmp_path)
    assert extended.run_id != single.run_id
    folders = RunFolder(extended.folder), RunFolder(single.folder)
    results = [folder.require(Result) for folder in folders]
    assert results[0] == results[1]
    tensors = [find_checkpoint(folder.stored_checkpoints, results[0].steps).tensors for folder in folders]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    curves = [
        {
            (point.key, point.step): point.value
            for point in read_points(folder.path / FILE)
            if point.key.startswith(("train/loss", "val/"))
        }
        for folder in folders
    ]
    assert curves[0] == curves[1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    steps = RunFolder(run.folder).require(Result).steps
    assert any(f"{run.run_id} ended at step {steps} with learning rate 0.001; it goes on to step" in line for line in said)
    assert any("another look at the test part" in line for line in said)
    assert json.loads((extended.folder / "run.json").read_text())["tags"]["starlab.extends"] == run.run_id
    assert train(longer(run), runs=runs, extend=run.run_id).was_complete
    again = command(folders[0])
    assert again.endswith(f" --extend {run.run_id}")
    assert "train.extends" not in again
    with pytest.raises(UserError, match=r"train.extends cannot be set by hand; name the finished run instead"):
        train(longer(run, extends="0" * 64), runs=runs)


def test_another_schedule_is_another_run(run: RunResult, runs: Path) -> None:
    one, other = (extended_spec(longer(run, schedule=name), RunFolder(run.folder)) for name in ("constant", "cosine"))
    assert one.train.extends == other.train.extends is not None
    assert one.run_id("x") != other.run_id("x")
    source = open_source(other.data, runs)
    lines = extension_lines(other, RunFolder(run.folder), source, len(split_parts(other, source).train))
    assert lines[1].startswith("         schedule cosine, from 0.00023 to ")  # a quarter of the peak after two of three epochs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 2}, "train.epochs is 2, and run .* was trained for 2 already; .* set e.g. train.epochs=4"),
        ({"global_batch": 4}, "train.global_batch is 4, but run .* has 8; --extend cannot change it"),
        ({"optimizer": "sgd"}, "train.optimizer is 'sgd', but run .* has 'adamw'"),
    ],
)
def test_more_than_the_schedule_cannot_change(run: RunResult, runs: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        train(longer(run, **changes), runs=runs, extend=run.run_id)


def test_whether_actions_are_learned_cannot_change(run: RunResult) -> None:
    with pytest.raises(UserError, match=r"train.action_loss_weight is 0.0, but run .* has 1.0; --extend cannot change it"):
        extended_spec(longer(run, action_loss_weight=0.0), RunFolder(run.folder))


def test_another_model_and_other_data_are_refused(run: RunResult, runs: Path) -> None:
    spec = longer(run)
    with pytest.raises(UserError, match=r"model.layers is 2, but run .* has 1; --extend cannot change it"):
        train(dataclasses.replace(spec, model=dataclasses.replace(spec.model, layers=2)), runs=runs, extend=run.run_id)
    with pytest.raises(UserError, match=r"data.color_jitter is 0.1, but run .* has 0.2"):
        train(dataclasses.replace(spec, data=dataclasses.replace(spec.data, color_jitter=0.1)), runs=runs, extend=run.run_id)
    with pytest.raises(UserError, match=r"no run or experiment 'nothing'"):
        train(spec, runs=runs, extend="nothing")


def test_the_keys_that_start_from_another_run_leave_run_ids_as_they_were() -> None:
    assert load_spec("demo").run_id("x") == load_spec("demo", ["train.init_lr_scale=1.0"]).run_id("x") == "demo-51d0d706"
