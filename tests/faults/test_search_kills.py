"""The driver of a search is killed at five random moments, and the same command loses and doubles nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from starlab.experiments.spec import load_search
from starlab.platform.runs.end_request import read_early_end
from starlab.platform.runs.folder import RunFolder
from starlab.platform.search.space import Space
from starlab.platform.search.trial_folders import TrialFolders

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(1800)]

SEARCH = """
import json, sys
from pathlib import Path
from ray import tune
from starlab.experiments.spec import load_search
from starlab.platform.cluster.connect import connect
from starlab.platform.runs.folder import RunFolder
from starlab.platform.search import tuning
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import objectives_of
from starlab.platform.search.trial import Study
from starlab.platform.search.trial_folders import TrialFolders

def simulated(values, study):
    '''A run that keeps what it has done, as a checkpoint does, and counts how often it does an epoch.'''
    import time
    run = study.folder.path / "trials" / study.spec.spec_of(values).run_id("f")
    run.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, 5):
        if not (run / str(epoch)).exists():
            time.sleep(0.3)
            (run / str(epoch)).touch()
        tune.report({"objective": values["train.lr"] * epoch, "epoch": epoch})
    tune.report({"objective": 1.0, "outcome": json.dumps({"values": {"val/top1": values["train.lr"]}, "epochs": 4})})

path = Path(sys.argv[1])
path.mkdir(exist_ok=True)
spec = load_search("demo_search", ["search.trials=12", "search.seeds=2"])
folder = RunFolder(path)
folders, objectives = TrialFolders(folder, spec, "f"), objectives_of(spec)
connect(num_cpus=2, object_store_bytes=80_000_000)
tuning.run_trial = simulated
ledger = Ledger(folders, spec.search, objectives)
tuning.run_trials(Study(spec, None, objectives, path, folder), ledger, folders, lambda: 2, print)
print("DONE", len(ledger.trials()))
"""


def test_a_search_of_twelve_points_killed_at_five_random_moments_tries_each_run_once(kill_family, tmp_path: Path) -> None:
    path, dice = tmp_path / "search", random.Random(13)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SEARCH, str(path)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def epochs() -> int:
        return len([file for file in path.glob("trials/*/*") if file.name.isdigit()])

    for _ in range(5):
        process, target = start(), epochs() + dice.randrange(1, 12)
        while process.poll() is None and epochs() < target:
            time.sleep(0.05)
        time.sleep(dice.random())
        kill_family(process)
    process = start()
    said, _ = process.communicate(timeout=1200)
    assert "DONE 12" in said, said[-3000:]
    [summary] = optuna.get_all_study_summaries(f"sqlite:///{path / 'optuna.db'}")
    study = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{path / 'optuna.db'}")
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len({str(trial.params) for trial in complete}) == len(complete) == 12
    # ASHA's request that a trial end early may lie beside its epochs.
    runs = {run.name: sorted(file.name for file in run.iterdir() if file.name.isdigit()) for run in path.glob("trials/*")}
    assert set(map(tuple, runs.values())) == {("1", "2", "3", "4")}
    spec = load_search("demo_search", ["search.trials=12", "search.seeds=2"])
    folders, space = TrialFolders(RunFolder(path), spec, "f"), Space(spec.space)
    expected = set()
    for trial in complete:
        values = space.values(trial.params)
        first, second = (folders.run_id(folders.seeded(values, seed)) for seed in spec.seeds)
        # A point that ASHA gave up during its first seed never starts the second one.
        given_up = read_early_end(RunFolder(path / "trials" / first)) is not None
        expected |= {first} if given_up and second not in runs else {first, second}
    assert set(runs) == expected  # and no run beside those of the twelve points
