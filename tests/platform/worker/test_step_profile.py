import gzip
import json
from pathlib import Path

import torch

from starlab.platform.worker.step_profile import FIRST, STEPS, StepProfile


def test_a_profile_holds_the_steps_after_the_warm_up_and_no_others(tmp_path: Path) -> None:
    profile = StepProfile(tmp_path / "new" / "trace.json.gz", wanted=True)
    for step in range(FIRST + STEPS + 3):
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
        profile.step()
        assert (tmp_path / "new" / "trace.json.gz").exists() == (step >= FIRST + STEPS - 1)
    profile.close()
    with gzip.open(tmp_path / "new" / "trace.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {f"step {step}" for step in range(FIRST, FIRST + STEPS)} <= names
    assert not {f"step {FIRST - 1}", f"step {FIRST + STEPS}"} & names


def test_nothing_is_traced_unless_it_is_wanted(tmp_path: Path) -> None:
    profile = StepProfile(tmp_path / "trace.json.gz", wanted=False)
    for _ in range(FIRST + STEPS):
        profile.step()
    profile.close()
    assert list(tmp_path.iterdir()) == []
