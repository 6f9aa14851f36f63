"""Tests system metrics. A script called nvidia-smi simulates the GPUs; the metrics of the machine are real."""

import os
import time
from pathlib import Path

import pytest

from starlab.platform.runs import system_metrics
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import SYSTEM_FILE, journals, read_points
from starlab.platform.runs.process import this_machine, this_process
from starlab.platform.runs.records import ProcessId, RunInfo
from starlab.platform.runs.system_metrics import SystemMetrics, gpu_metrics, machine_metrics, worker_metrics


def fake_smi(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_each_gpu_has_its_load_memory_and_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "echo '0, 98, 8192, 16384, 250.5'; echo '1, [N/A], 0, 16384, [Not Supported]'"
    monkeypatch.setenv("PATH", fake_smi(tmp_path / "bin", lines))
    assert gpu_metrics() == {
        "system/gpu_0_utilization_percentage": 98.0,
        "system/gpu_0_memory_usage_megabytes": pytest.approx(8589.9, abs=0.1),
        "system/gpu_0_memory_usage_percentage": 50.0,
        "system/gpu_0_power_usage_watts": 250.5,
        "system/gpu_1_memory_usage_megabytes": 0.0,
        "system/gpu_1_memory_usage_percentage": 0.0,
    }


@pytest.mark.parametrize("script", ["exit 9", "echo nonsense"])
def test_a_failing_nvidia_smi_gives_no_gpu_metrics_and_no_error(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", fake_smi(tmp_path / "bin", script))
    assert gpu_metrics() == {}


def test_sample_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        with SystemMetrics(tmp_path, every_seconds=0.05):
            before = len(list(read_points(tmp_path / SYSTEM_FILE)))
            deadline = time.monotonic() + 60
            while len(list(read_points(tmp_path / SYSTEM_FILE))) < before + 9 and time.monotonic() < deadline:
                time.sleep(0.02)
    points = [point for point in read_points(tmp_path / SYSTEM_FILE) if point.key == "system/cpu_utilization_percentage"]
    assert [point.step for point in points] == list(range(len(points)))
    assert len(points) >= 6
    assert set(machine_metrics()) <= {point.key for point in read_points(tmp_path / SYSTEM_FILE)}


def info(runs: Path, driver: ProcessId) -> RunInfo:
    return RunInfo(
        run_id="run",
        key="k",
        experiment="demo",
        mlflow_experiment="demo",
        tracking_uri="",
        runs=str(runs),
        status="RUNNING",
        tags={},
        driver=driver,
    )


def test_one_worker_of_each_machine_except_the_drivers_samples_into_a_journal_that_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.write(info(tmp_path, this_process()))
    assert not isinstance(worker_metrics(run, 0, 0), SystemMetrics)  # the driver samples its own machine
    monkeypatch.setattr(system_metrics, "this_machine", lambda: f"not {this_machine()}")
    assert not isinstance(worker_metrics(run, 3, 1), SystemMetrics)
    with worker_metrics(run, 3, 0):
        deadline = time.monotonic() + 60
        while len(journals(run.path)) < 3 or not list(read_points(journals(run.path)[-1])):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert {"system/node_3/cpu_utilization_percentage"} <= {point.key for point in read_points(journals(run.path)[-1])}
