import dataclasses
from pathlib import Path

import pytest

from starlab.experiments.spec import load_spec
from starlab.pipelines.clip import DataError
from starlab.pipelines.sources import open_source
from starlab.platform import dry_run
from starlab.platform.dry_run import forecast, usable_cpus

SMALL = ["data.synthetic.train_clips_per_class=6", "data.synthetic.test_clips_per_class=2", "data.synthetic.size_px=48"]


def test_a_dry_run_writes_nothing_and_its_plan_is_that_of_the_run(tmp_path: Path) -> None:
    before = forecast(load_spec("demo", SMALL), tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []
    assert any("would be generated" in line for line in before.lines)
    open_source(load_spec("demo", SMALL).data, tmp_path / "runs")
    there = sorted(tmp_path.rglob("*"))
    after = forecast(load_spec("demo", SMALL), tmp_path / "runs")
    assert sorted(tmp_path.rglob("*")) == there
    assert after.steps == before.steps == 50 * 8 // 8  # 60 training clips, one of each class held out
    assert after.flops == before.flops
    text = "\n".join(after.lines)
    assert "50 steps of 8 clips, 8 epochs over 50 clips; 4 looks at 10 validation clips; one look at 20 test clips" in text
    assert "demo-" in text
    assert "would be new" in text


def test_more_flops_for_a_larger_model_and_fewer_for_a_shorter_run(tmp_path: Path) -> None:
    flops = [
        forecast(load_spec("demo", [*SMALL, *more]), tmp_path).flops for more in (["train.epochs=2"], [], ["model.layers=3"])
    ]
    assert flops == sorted(flops)
    assert flops[0] < flops[1] / 3 < flops[2]


def test_a_run_that_does_not_fit_is_told_with_the_numbers_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = forecast(load_spec("demo", [*SMALL, "resources.cpus_per_worker=1000"]), tmp_path)
    assert any("resources.cpus_per_worker" in problem for problem in found.problems)
    little = dataclasses.make_dataclass("Memory", ["available"])(100_000_000)
    monkeypatch.setattr(dry_run.psutil, "virtual_memory", lambda: little)
    [problem] = forecast(load_spec("demo", [*SMALL, "resources.workers=1"]), tmp_path).problems
    assert "has 0.1; use a smaller train.global_batch" in problem


def test_data_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    spec = load_spec("penn_action", ["model.weights=none", f"data.store={tmp_path / 'nowhere'}"])
    with pytest.raises(DataError, match="nowhere"):
        forecast(spec, tmp_path / "runs")


def test_there_is_a_cpu_to_use() -> None:
    assert usable_cpus() >= 1


def test_generated_people_with_a_place_of_their_own_are_not_generated_either(tmp_path: Path) -> None:
    said = forecast(load_spec("demo", [f"data.store={tmp_path / 'nowhere'}"]), tmp_path / "runs")
    assert any("would be generated into" in line and "nowhere" in line for line in said.lines)
    assert list(tmp_path.iterdir()) == []
