"""Checks whether this machine can run an experiment, and counts what an experiment costs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from starlab.experiments.spec import Spec
from starlab.models.cost import cost
from starlab.platform.cluster.device import mismatch


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    fine: bool
    says: str
    """What was found and, if it is not fine, how to fix it."""


def examine(runs: Path) -> Iterator[Finding]:
    """Check the most frequent causes of failed trainings: GPUs that torch was not built for, shared memory, disk."""
    yield _gpus()
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        fine = free > 1e9
        fix = "" if fine else "; Ray spills to disk and crawls: give the container --shm-size=8g"
        yield Finding("shared memory", fine, f"{free / 1e9:.1f} GB free in /dev/shm{fix}")
    place = next(path for path in (runs, *runs.parents) if path.exists())
    free = shutil.disk_usage(place).free
    fine = free > 5e9 and os.access(place, os.W_OK)
    fix = "" if fine else "; name another folder with --runs or STARLAB_RUNS"
    yield Finding("runs folder", fine, f"{runs}, {free / 1e9:.0f} GB free{fix}")


def _gpus() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPU", True, f"none; torch {torch.__version__} computes on {os.cpu_count()} CPUs")
    for index in range(torch.cuda.device_count()):
        if problem := mismatch(index):
            return Finding("GPU", False, problem)
    return Finding("GPU", True, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}")


def cost_rows(spec: Spec) -> list[tuple[str, str, str]]:
    """Rows of (part, parameters, GFLOP of one clip's forward pass): the parts of the model, their sum, and a training step."""
    total = cost(spec.model, height=spec.data.size, width=spec.data.size)
    rows = [(name, f"{part.parameters:,}", f"{part.flops / 1e9:,.2f}") for name, part in total.parts.items()]
    rows.append(("forward", f"{total.parameters:,}", f"{total.forward_flops / 1e9:,.2f}"))
    rows.append(("training step", "", f"{total.training_flops / 1e9:,.2f}"))
    return rows
