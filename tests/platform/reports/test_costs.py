"""The cost of a run from its folder: model, device-hours without pauses, speed, GPU memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from starlab.experiments.spec import load_spec
from starlab.platform.reports.costs import RunCost, run_cost
from starlab.platform.runs.journal import FILE, SYSTEM_FILE
from starlab.platform.runs.records import Result

SPEC = load_spec("demo").to_dict()
RESULT = Result(steps=1000, total_steps=1000, best_step=1000, selected_by="validation", classes=("a",), val={})


def write_curve(path: Path, seconds: list[float], key: str = "system/clips_per_second", value: float = 50.0) -> None:
    lines = [{"key": key, "step": n, "value": value + n % 3, "time_ms": int(1000 * at)} for n, at in enumerate(seconds)]
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.write('{"key": "train/loss", "step": 1, "value": 1.0, "time_ms": 0}\n{"key": "system/clips_per_sec')


def on_gpus(workers: int) -> dict[str, Any]:
    return SPEC | {"resources": SPEC["resources"] | {"workers": workers, "gpus_per_worker": 1}}


def test_hours_are_those_of_all_devices_and_a_pause_between_two_starts_counts_little(tmp_path: Path) -> None:
    first = [10.0 * n for n in range(181)]  # half an hour
    write_curve(tmp_path / FILE, [*first, *(first[-1] + 86_400 + 10.0 * n for n in range(180))])  # a day's pause, then as much
    cost = run_cost(tmp_path, on_gpus(4), RESULT)
    assert cost.device == "GPU"
    assert cost.device_hours == pytest.approx(4 * 1.0, rel=0.06)
    assert cost.clips_per_second == 51
    cpus = run_cost(tmp_path, SPEC, RESULT)
    assert cpus.device == "CPU"
    assert cpus.device_hours == pytest.approx(SPEC["resources"]["workers"] * 1.0, rel=0.06)


def test_memory_is_the_largest_of_any_gpu_and_unknown_on_cpus(tmp_path: Path) -> None:
    for index, value in enumerate((11_000.0, 15_500.0)):
        write_curve(tmp_path / SYSTEM_FILE, [0, 1], f"system/gpu_{index}_memory_usage_megabytes", value)
    write_curve(tmp_path / SYSTEM_FILE, [0, 1], "system/system_memory_usage_megabytes", 99_000)
    node = SYSTEM_FILE.replace(".jsonl", ".node-1.jsonl")
    write_curve(tmp_path / node, [0, 1], "system/node_1/gpu_0_memory_usage_megabytes", 15_700.0)
    assert run_cost(tmp_path, on_gpus(4), RESULT).memory_gb == pytest.approx(15.701)
    assert run_cost(tmp_path, SPEC, RESULT).memory_gb is None


def test_parameters_and_operations_are_those_of_the_model_and_a_model_of_another_version_has_none(tmp_path: Path) -> None:
    cost = run_cost(tmp_path, SPEC, RESULT)
    assert (cost.parameters, cost.flops) == (193_762, 297_485_568)
    other = SPEC | {"model": SPEC["model"] | {"a_key_of_the_future": 1}}
    assert run_cost(tmp_path, other, RESULT) == RunCost(device="CPU")


def test_a_run_without_a_curve_has_no_hours_and_a_short_one_has_those_of_its_steps(tmp_path: Path) -> None:
    assert run_cost(tmp_path, SPEC, RESULT).device_hours is None
    write_curve(tmp_path / FILE, [0.0])
    clips, devices = 1000 * SPEC["train"]["global_batch"], SPEC["resources"]["workers"]
    assert run_cost(tmp_path, SPEC, RESULT).device_hours == pytest.approx(devices * clips / 50 / 3600)
