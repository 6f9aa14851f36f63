"""Tests trained models with worse joints than they were given: `starlab evaluate NAME --worse-joints`.

Each test is an evaluation of a run, with `data.joint_jitter_px` and `data.joint_drop` changed. The report draws accuracy
over both (`reports/line_sections.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from starlab.experiments.overrides import flatten
from starlab.platform.errors import UserError
from starlab.platform.evaluation import evaluate_run
from starlab.platform.reports.line_sections import JointNoise, metrics_by_noise, uses_given_joints
from starlab.platform.reports.report import report, report_runs
from starlab.platform.runs.folder import SPEC, RunFolder, find_run, runs_folder

JITTER_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8)
"""Standard deviations of the noise over the side of the frame."""
DROPS = (0.15, 0.3, 0.5, 0.7)
"""Shares of missing joints."""


def evaluate_worse_joints(
    name: str, *, overrides: Sequence[str] = (), runs: str | Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Test the finished runs that `name` means with moved and with missing joints, and write the report that draws it.

    Tests that exist are not repeated, so the same call goes on after a kill. A model that takes no joints in a test is
    left out, because worse joints change nothing for it.

    Args:
        name: Name of a run or an ablation.
        overrides: As those of `evaluate_run`, without the noise.
        runs: Folder of runs; None uses STARLAB_RUNS, else ./runs.
        say: Called with each line of output for the user.

    Returns:
        The report.

    Raises:
        UserError: No run has finished, `name` is a search, or `overrides` change the noise; also as `evaluate_run`.
    """
    for override in overrides:
        if override.startswith("data.joint_"):
            raise UserError(f"--worse-joints sets the noise itself, so {override!r} cannot be given with it")
    root = runs_folder(runs)
    folder = find_run(root, name, say)
    if folder.trials():
        raise UserError(f"{name} is a search, whose trials are not tested: name its best trial, or a run or an ablation")
    finished, _ = report_runs(folder, say)
    if not finished:
        raise UserError(f"{folder.path.name} has no finished run yet, so there is no model to test")
    for run in finished:
        label = run.name if run.row == run.name else f"{run.name} ({run.row})"
        if not uses_given_joints(run):
            say(f"{label} takes no joints in a test, so worse ones change nothing")
            continue
        if run.settings.get("data.person_crop") is not None:
            say(f"{label} sees crops to the joints before they are made worse, so it is left out")
            continue
        done = metrics_by_noise(run)
        for noise in noises(run.folder):
            if noise not in done:
                changes = [f"data.joint_jitter_px={noise.jitter_px}", f"data.joint_drop={noise.drop}"]
                result = evaluate_run(run.name, overrides=[*overrides, *changes], runs=root)
                say(f"{label}, {noise}: test top-1 {result.metrics['top1']:.3f}")
    return report(folder, say)


def noises(folder: RunFolder) -> list[JointNoise]:
    """Return what a run is tested with: joints as annotated, moved ones, then missing ones."""
    side_px = flatten(folder.read_json(SPEC))["data.size"]
    moved = [JointNoise(jitter_px=share * side_px) for share in JITTER_SHARES]
    return [JointNoise(), *moved, *(JointNoise(drop=drop) for drop in DROPS)]
