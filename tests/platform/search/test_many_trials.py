"""Many simulated trials through the same ledger, proposer and tuning: the driver's memory, and what a trial costs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from ray import tune

from starlab.experiments.spec import load_search
from starlab.pipelines.clip import ClipSource
from starlab.platform.runs.folder import RunFolder
from starlab.platform.search import tuning
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import objectives_of
from starlab.platform.search.trial import Study
from starlab.platform.search.trial_folders import TrialFolders
from starlab.platform.search.tuning import run_trials

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slowest, pytest.mark.timeout(7200)]


def test_500_trials_keep_the_driver_small_and_the_cost_of_a_trial_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def simulated(values: dict[str, Any], study: Any) -> None:
        value = values["train.lr"]
        for epoch in range(1, 9):
            tune.report({"objective": value * epoch, "epoch": epoch})
        tune.report({"objective": value, "outcome": json.dumps({"values": {"val/top1": value}, "epochs": 8})})

    simulated.__module__ = "__main__"
    monkeypatch.setattr(tuning, "run_trial", simulated)
    trials = int(os.environ.get("STARLAB_SIMULATED_TRIALS", "500"))
    spec = load_search("demo_search", [f"search.trials={trials}"])
    folder = RunFolder(tmp_path / "search")
    folder.path.mkdir()
    folders, objectives = TrialFolders(folder, spec, "f"), objectives_of(spec)
    study = Study(spec, cast(ClipSource, None), objectives, tmp_path, folder)
    ends, memory, process = [], [], psutil.Process()

    def say(line: str) -> None:
        if " ends " in line:
            ends.append(time.monotonic())
            memory.append(process.memory_info().rss)

    ledger = Ledger(folders, replace(spec.search), objectives)
    run_trials(study, ledger, folders, lambda: 2, say)
    assert len(ledger.trials()) == trials
    tenth = trials // 10
    costs = [(ends[stop - 1] - ends[stop - 1 - tenth]) / tenth for stop in range(2 * tenth, trials + 1, tenth)]
    first, last = costs[0], costs[-1]
    print(f"{trials} trials in {ends[-1] - ends[0]:.0f} s, {max(memory) / 1e6:.0f} MB")
    print("s a trial, by tenths from the second:", *(f"{cost:.2f}" for cost in costs))
    print("MB at the end of each tenth:", *(f"{memory[stop - 1] / 1e6:.0f}" for stop in range(tenth, trials + 1, tenth)))
    assert max(memory) < 2e9
    assert last < 2 * first  # the machine is not alone
