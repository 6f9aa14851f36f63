"""Exported files compute the same logits at any batch size, and one that does not is not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from starlab.experiments.spec import load_spec
from starlab.platform.errors import RunFailedError
from starlab.platform.serving import export as exporting
from starlab.platform.serving.export import example, export
from starlab.platform.serving.recogniser import Place, Recogniser


def test_weights_keep_every_bit_and_say_what_they_are(recogniser: Recogniser, tmp_path: Path) -> None:
    found = export(recogniser, tmp_path / "new" / "model.safetensors", "safetensors")
    assert found.difference == 0
    with safe_open(found.path, framework="pt") as file:
        about = json.loads(file.metadata()["starlab"])
    assert about["classes"] == list(recogniser.classes)
    assert about["temperature"] == 2.0
    assert about["spec"]["data"]["frames"] == 4


@pytest.mark.slow
def test_a_program_runs_without_starlab_at_any_batch_size(recogniser: Recogniser, tmp_path: Path) -> None:
    found = export(recogniser, tmp_path / "model.pt2", "pt2")
    module = torch.export.load(found.path).module()
    for clips in (1, 3, 7):
        inputs = example(recogniser, clips, seed=9)
        torch.testing.assert_close(module(*inputs), recogniser.model(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_onnx_runtime_computes_the_same_logits(recogniser: Recogniser, rgb_place: Place, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'starlab[onnx]'")
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'starlab[onnx]'")
    found = export(recogniser, tmp_path / "model.onnx", "onnx")
    assert found.difference < 1e-4
    session = onnxruntime.InferenceSession(str(found.path))
    about = json.loads(session.get_modelmeta().custom_metadata_map["starlab"])
    assert about["classes"] == list(recogniser.classes)
    assert export(rgb_place.load(), tmp_path / "rgb.onnx", "onnx").difference < 1e-4


@pytest.mark.slow
def test_a_model_that_finds_the_joints_itself_is_exported_with_frames_as_its_only_input(
    learned_place: Place, tmp_path: Path
) -> None:
    recogniser = learned_place.load()
    assert len(example(recogniser, 2)) == 1
    assert export(recogniser, tmp_path / "model.safetensors", "safetensors").difference == 0
    assert export(recogniser, tmp_path / "model.pt2", "pt2").difference < 1e-4
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'starlab[onnx]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'starlab[onnx]'")
    assert export(recogniser, tmp_path / "model.onnx", "onnx").difference < 1e-4
    assert [node.name for node in onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).get_inputs()] == ["frames"]


@pytest.mark.slow
def test_a_model_of_two_bodies_is_exported_with_its_mask(make: Any, tmp_path: Path) -> None:
    spec = load_spec(
        "demo", ["data.dataset=synthetic_ntu", "data.protocol=xsub", "data.frames=4", "data.size=24", "model.dim=16"]
    )
    assert export(make.model(tmp_path / "ntu", spec).load(), tmp_path / "ntu.pt2", "pt2").difference < 1e-4


def test_a_file_that_computes_other_logits_is_not_kept(
    recogniser: Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_load_weights", lambda *_: lambda frames, joints: recogniser.model(frames, joints) + 0.1)
    with pytest.raises(RunFailedError, match=r"computes other logits than .*: they differ by 0.1"):
        export(recogniser, tmp_path / "model.safetensors", "safetensors")
    assert list(tmp_path.iterdir()) == []
