"""The GPU benchmark as far as a CPU can run it: its file, its faults, and the pieces that only a GPU would use."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.nn.functional import scaled_dot_product_attention

HERE = Path(__file__).parent
PARTS = ["card", "correctness", "shipped", "gains", "batch-norm", "training", "profile"]
BARE = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
for name in ("ray", "mlflow", "av", "pyarrow", "pydantic", "optuna", "cv2", "simplejpeg", "typer"):
    sys.modules[name] = None
sys.path.insert(0, str(sys.argv[1]))
sys.argv = [sys.argv[1] + "/bench_gpu.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the script where starlab is not installed, nor anything else that it should not need."""


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_bare_cpu_every_part_gives_rows_of_finite_numbers_and_nothing_fails(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-c", BARE, str(HERE), "--quick", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    record = json.loads(out.read_text())
    assert list(record["parts"]) == PARTS
    for name, part in record["parts"].items():
        assert part["status"] == "done", (name, part)
        measured = [row for row in part["rows"] if "skipped" not in row]
        assert measured, name
        assert [row for row in part["rows"] if "failed" in row] == []
        assert all(any(True for _ in numbers(row)) for row in measured)
        assert all(row.get("reached", True) for row in part["rows"] if name == "correctness")
    assert all(map(math.isfinite, numbers(record)))
    assert {row["skipped"] for row in record["parts"]["gains"]["rows"] if "skipped" in row} >= {"a CUDA graph needs a GPU"}
    assert len(record["parts"]["training"]["rows"]) == 12
    assert 1 <= len(record["parts"]["profile"]["rows"][0]["kernels"]) <= 20
    assert "of the bf16 matrix rate" in done.stdout


def test_a_part_that_raises_or_runs_out_of_time_leaves_its_rows_and_the_other_parts_in_the_file(tmp_path: Path) -> None:
    from gpu.report import Part, Report, run_parts

    def fine() -> Iterator[dict[str, Any]]:
        yield {"what": "a figure", "value": 1.0}

    def raises() -> Iterator[dict[str, Any]]:
        yield {"what": "before the fault", "value": 2.0}
        raise RuntimeError("a kernel broke")

    def never_ends() -> Iterator[dict[str, Any]]:
        yield {"what": "before the end", "value": 3.0}
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    report = Report(tmp_path / "runs" / "figures.json", {"device": "none"})
    parts = [Part("one", 1, fine), Part("two", 1, raises), Part("three", 0.02, never_ends), Part("four", 1, fine)]
    run_parts(parts, report, 150)
    stored = json.loads(report.path.read_text())["parts"]
    assert {name: part["status"] for name, part in stored.items()} == {
        "one": "done",
        "two": "failed",
        "three": "out of time",
        "four": "done",
    }
    assert stored["two"]["error"] == "RuntimeError: a kernel broke"
    assert [part["rows"][0]["value"] for part in stored.values()] == [1.0, 2.0, 3.0, 1.0]


def test_a_part_without_time_is_passed_over_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gpu.report import Part, Report, run_parts

    report = Report(tmp_path / "figures.json", {})
    run_parts([Part("late", 1, lambda: iter([{"what": "never", "value": 1.0}]))], report, 0.0)
    assert json.loads(report.path.read_text())["parts"]["late"] == {
        "status": "skipped",
        "rows": [],
        "error": "no time left of 0 s",
        "seconds": 0.0,
    }
    assert "late: skipped: no time left" in capsys.readouterr().out


def test_the_file_is_there_and_whole_after_every_row(tmp_path: Path) -> None:
    from gpu.report import Report

    report = Report(tmp_path / "figures.json", {})
    report.open(["one", "two"])
    report.add("one", {"what": "first", "value": 1.0})
    stored = json.loads(report.path.read_text())["parts"]
    assert [row["what"] for row in stored["one"]["rows"]] == ["first"]
    assert stored["two"]["status"] == "not reached"


def test_a_row_that_raises_or_holds_nan_is_a_line_of_its_own_and_no_figure(tmp_path: Path) -> None:
    from gpu.report import Report, guarded

    def out_of_memory() -> dict[str, Any]:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    report = Report(tmp_path / "figures.json", {})
    report.open(["one"])
    report.add("one", guarded("too large", out_of_memory))
    report.add("one", guarded("poisoned", lambda: {"value": math.nan}))
    report.add("one", guarded("fine", lambda: {"value": 1.0}))
    assert [row["what"] for row in report.rows("one")] == ["fine"]
    assert [row.get("failed") for row in report.parts["one"]["rows"]] == [
        "out of the device's memory",
        "not finite: value",
        None,
    ]
    assert all(map(math.isfinite, numbers(json.loads(report.path.read_text()))))


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_gpu

    monkeypatch.setattr(bench_gpu, "NEEDED", ("torch", "einops_which_is_nowhere"))
    assert bench_gpu.main(["--quick", "--device", "cpu"]) == 2
    assert "python -m pip install einops_which_is_nowhere" in capsys.readouterr().err


def looped_attention(q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` computes, one sequence after the other."""
    assert longest_q == int(starts_q.diff().max())
    assert longest_k == int(starts_k.diff().max())
    assert starts_q.dtype == starts_k.dtype == torch.int32
    outputs = []
    for group in range(len(starts_q) - 1):
        mine = [x[a[group] : a[group + 1]].transpose(0, 1) for x, a in ((q, starts_q), (k, starts_k), (v, starts_k))]
        outputs.append(scaled_dot_product_attention(*mine).transpose(0, 1))
    return torch.cat(outputs)


def test_packed_keys_give_what_masked_keys_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu.variants import VarlenAttention
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", looped_attention)
    torch.manual_seed(0)
    q = torch.randn(4, 2, 5, 8)
    k, v = torch.randn(2, 4, 2, 7, 8)
    mask = torch.rand(4, 1, 1, 7) > 0.4
    mask[..., 0] = True
    attend = VarlenAttention()
    for _ in range(2):  # the second time from what was kept
        torch.testing.assert_close(attend(q, k, v, attn_mask=mask), scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_a_setup_that_benchmarks_convolutions_runs_in_a_thread_of_its_own_and_its_errors_come_back() -> None:
    from gpu.step import OwnThread

    thread = OwnThread()

    def backward_thread() -> list[int]:
        import threading

        seen = [threading.get_ident()]
        x = torch.ones(1, requires_grad=True)
        x.register_hook(lambda _: seen.append(threading.get_ident()))
        (2 * x).backward()
        return seen

    seen = thread.call(backward_thread)
    assert len(set(seen)) == 1
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 / 0)
    thread.close()


@dataclass
class Event:
    """As much of a profiler's event as is read."""

    name: str
    device_type: DeviceType
    start: float
    end: float
    is_user_annotation: bool = False

    @property
    def time_range(self) -> Event:
        return self


def test_a_trace_gives_kernels_idle_time_and_the_waits_inside_steps() -> None:
    from gpu.trace import MARK, STEPS, figures_of

    cpu, gpu = DeviceType.CPU, DeviceType.CUDA
    events = [Event("cudaDeviceSynchronize", cpu, 310, 320)]  # after the steps
    for step in range(STEPS):
        at = 100.0 * step
        events += [
            Event(MARK, cpu, at, at + 100),
            Event(MARK, gpu, at, at + 100, is_user_annotation=True),
            Event("Optimizer.step#SGD.step", cpu, at + 80, at + 90),
            Event("Optimizer.step#SGD.step", gpu, at, at + 100, is_user_annotation=True),  # a mark and no kernel
            Event("triton_poi_fused", cpu, at + 3, at + 4),  # the launch of a compiled kernel has the kernel's name
            Event("triton_poi_fused", gpu, at + 35, at + 45),
            Event("cudaStreamSynchronize", cpu, at + 50, at + 70),
            Event("cudaLaunchKernel", cpu, at + 1, at + 2),
            Event("pytorch_flash::flash_fwd_kernel", gpu, at + 10, at + 40),
            Event("gemm", gpu, at + 30, at + 50),
        ]
    figures = figures_of(events, on_gpu=True)
    assert figures["device_idle_share"] == pytest.approx(0.6)
    assert figures["host_waiting_share"] == pytest.approx(0.2)
    assert figures["synchronisations_per_step"] == 1
    assert figures["attention_kernels"] == ["pytorch_flash::flash_fwd_kernel"]
    assert [(row["name"], row["calls_per_step"], row["share"]) for row in figures["kernels"]] == [
        ("pytorch_flash::flash_fwd_kernel", 1, pytest.approx(0.5)),
        ("gemm", 1, pytest.approx(1 / 3)),
        ("triton_poi_fused", 1, pytest.approx(1 / 6)),
    ]


def test_parts_can_be_chosen() -> None:
    import bench_gpu

    assert [part.name for part in bench_gpu.parts_of(None, ["gains", "card"])] == ["card", "gains"]  # type: ignore[arg-type]
    assert [part.name for part in bench_gpu.parts_of(None, [])] == PARTS  # type: ignore[arg-type]


def test_every_improvement_is_an_option_of_a_setup_and_changes_it() -> None:
    import dataclasses

    gains: ModuleType = __import__("gpu.gains", fromlist=["IMPROVEMENTS"])
    setup: ModuleType = __import__("gpu.setup", fromlist=["Setup"])
    for improvement in gains.IMPROVEMENTS:
        base = dataclasses.replace(setup.Setup(clips=16), **improvement.base)
        changed = dataclasses.replace(base, **improvement.change)
        assert (changed != base) == bool(improvement.change), improvement.name
