from pathlib import Path

import pytest
import torch

from starlab.experiments.spec import load_spec
from starlab.platform.doctor import cost_rows, examine


def test_a_machine_without_a_gpu_is_fine_for_the_demo(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in examine(tmp_path / "runs" / "deep")}
    assert findings["GPU"].fine
    assert str(tmp_path / "runs" / "deep") in findings["runs folder"].says
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("capability", "built", "fine"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),  # a V100 under the registry's CUDA 13 build
        ((7, 0), ["sm_50", "sm_70", "sm_80", "sm_90"], True),
        ((7, 5), ["sm_70", "sm_80"], True),
        ((8, 6), ["sm_75", "sm_80", "sm_90a"], True),
        ((9, 0), ["sm_75", "sm_80", "sm_100"], False),
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_found_before_a_run_is(
    capability: tuple[int, int], built: list[str], fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = next(finding for finding in examine(tmp_path) if finding.name == "GPU")
    assert gpu.fine is fine
    assert fine or "CUDA 12.6" in gpu.says


def test_the_papers_model_costs_what_was_counted_by_hand() -> None:
    rows = {name: float(gflop.replace(",", "")) for name, _, gflop in cost_rows(load_spec("penn_action"))}
    assert rows["backbone"] == pytest.approx(347, rel=0.02)
    assert rows["forward"] == pytest.approx(730 - 27, rel=0.02)
    assert rows["training step"] == pytest.approx(3 * (730 - 27), rel=0.02)
