"""Writes a run's best weights for use elsewhere, and checks that what was written computes the same logits.

    pt2           a torch.export program: runs where PyTorch is, without starlab
    onnx          for other runtimes; about half as fast as PyTorch on a CPU
    safetensors   the weights with spec, classes and temperature in the file's metadata; needs starlab's code

The batch may have any size. Inputs are frames, uint8 (B, T, H, W, 3), and joints, float32 (B, T, M, N, 3), which a
model that finds the joints itself does not take.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.export import Dim

from starlab.models.star import StarTransformer, load_state
from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.serving.recogniser import Recogniser

Format = Literal["pt2", "onnx", "safetensors"]
Compute = Callable[..., Tensor]
BATCHES = (1, 2, 5)
"""Sizes of the batches that the check compares."""
LIMITS: dict[Format, float] = {"pt2": 1e-5, "onnx": 1e-3, "safetensors": 0.0}
"""Largest difference of a logit that passes, relative to the largest logit."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written and checked."""

    path: Path
    num_bytes: int
    difference: float
    """Largest difference of a logit from the run's model over all batches of the check."""
    largest: float
    """Largest logit by magnitude, for comparison."""


def export(recogniser: Recogniser, path: Path, kind: Format) -> Exported:
    """Write the model in a format, load the file again, and compare the logits of random clips at several batch sizes.

    Raises:
        UserError: The packages of the format are missing.
        RunFailedError: The file computes other logits. It is deleted.
    """
    if kind == "onnx" and not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise UserError("export to onnx needs packages of an extra: pip install 'starlab[onnx]'")
    model = recogniser.model.cpu().eval()
    write, load = {
        "pt2": (_write_pt2, _load_pt2),
        "onnx": (_write_onnx, _load_onnx),
        "safetensors": (_write_weights, _load_weights),
    }[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.draft{path.suffix}")
    try:
        with torch.inference_mode(), _quiet():
            write(recogniser, draft)
            difference, largest = _compare(model, load(recogniser, draft), recogniser)
        if not difference <= LIMITS[kind] * max(1.0, largest):
            raise RunFailedError(
                f"the exported {kind} computes other logits than {recogniser.name}: they differ by {difference:.2g} where the "
                f"largest is {largest:.2g}, more than {LIMITS[kind] * max(1.0, largest):.2g}; nothing was kept"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size, difference, largest)


def example(recogniser: Recogniser, clips: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Make random inputs of the model's shapes: frames, and joints unless the model finds them.

    In every second clip a body and some joints are not seen.
    """
    data, model, rng = recogniser.spec.data, recogniser.spec.model, np.random.default_rng(seed)
    frames = rng.integers(0, 256, (clips, data.frames, data.size, data.size, 3), dtype=np.uint8)
    if model.pose == "learned":
        return (torch.from_numpy(frames),)
    joints = rng.random((clips, data.frames, model.max_bodies, model.num_joints, 3), dtype=np.float32)
    joints[1::2, :, -1:, ::2, 2] = 0
    if model.max_bodies > 1:
        joints[1::2, :, -1, :, 2] = 0
    return torch.from_numpy(frames), torch.from_numpy(joints)


def metadata(recogniser: Recogniser) -> dict[str, str]:
    """Return what a user of the file needs, as text by name: spec, classes, temperature."""
    return {
        "starlab": json.dumps(
            {
                "name": recogniser.name,
                "spec": recogniser.spec.to_dict(),
                "classes": recogniser.classes,
                "temperature": recogniser.temperature,
                "clip_frames": recogniser.clip_frames,
            }
        )
    }


def _compare(model: StarTransformer, compute: Compute, recogniser: Recogniser) -> tuple[float, float]:
    difference = largest = 0.0
    for seed, clips in enumerate(BATCHES):
        inputs = example(recogniser, clips, seed)
        ours, theirs = model(*inputs), compute(*inputs)
        difference = max(difference, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
    return difference, largest


def _write_pt2(recogniser: Recogniser, path: Path) -> None:
    batch, inputs = Dim("batch", min=1), example(recogniser, 2)
    program = torch.export.export(recogniser.model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    torch.export.save(program, path, extra_files={f"{name}.json": text for name, text in metadata(recogniser).items()})


def _load_pt2(_: Recogniser, path: Path) -> Compute:
    return torch.export.load(path).module()


def _write_onnx(recogniser: Recogniser, path: Path) -> None:
    import onnx

    inputs = example(recogniser, 2)
    torch.onnx.export(
        recogniser.model,
        inputs,
        path,
        dynamo=True,
        dynamic_shapes=tuple({0: Dim.DYNAMIC} for _ in inputs),
        input_names=["frames", "joints"][: len(inputs)],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    written = onnx.load(path)
    onnx.helper.set_model_props(written, metadata(recogniser))
    onnx.save(written, path)


def _load_onnx(_: Recogniser, path: Path) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}  # a model of one modality has a single input

    def compute(*inputs: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in zip(("frames", "joints"), inputs, strict=False)}
        return torch.from_numpy(session.run(["logits"], {name: given[name] for name in names})[0])

    return compute


def _write_weights(recogniser: Recogniser, path: Path) -> None:
    state = {name: value.contiguous() for name, value in recogniser.model.state_dict().items()}
    save_file(state, path, metadata=metadata(recogniser))


def _load_weights(recogniser: Recogniser, path: Path) -> Compute:
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["starlab"])["classes"] == list(recogniser.classes)
    model = StarTransformer(recogniser.model.config)
    load_state(model, load_file(path))
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which warn about their own future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
