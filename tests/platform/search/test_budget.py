"""Budgets in hours and GPU-hours, over all calls of a search."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from starlab.experiments.spec import SearchSpec, load_search
from starlab.platform.runs.folder import RunFolder
from starlab.platform.search.budget import Budget


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def search(*overrides: str) -> SearchSpec:
    return load_search("demo_search", overrides)


def spend(folder: RunFolder, spec: SearchSpec, seconds: int, runs: int) -> Budget:
    """A call of the search that counts every ten seconds."""
    budget = Budget(folder, spec, clock := Clock())
    for _ in range(seconds // 10):
        clock.now += 10
        budget.count(runs)
    budget.write()
    return budget


def test_hours_count_over_all_calls(tmp_path: Path) -> None:
    spec, folder = search("search.hours=0.1"), RunFolder(tmp_path)
    assert spend(folder, spec, 300, 2).spent is None
    budget = spend(folder, spec, 60, 2)
    assert budget.usage.seconds == pytest.approx(360)
    assert budget.spent == "its 0.1 hours (search.hours) are used up"
    assert Budget(folder, search("search.hours=0.2")).spent is None  # more of them, and it goes on


def test_gpu_hours_are_those_of_the_runs_under_way(tmp_path: Path) -> None:
    spec = search("search.gpu_hours=1", "resources.gpus_per_worker=1", "resources.workers=4")
    budget = spend(RunFolder(tmp_path), spec, 440, 2)
    assert budget.usage.gpu_seconds == pytest.approx(440 * 8)
    assert budget.spent is None
    budget = spend(RunFolder(tmp_path), spec, 20, 2)
    assert budget.spent == "its 1 GPU-hours (search.gpu_hours) are used up"


def test_a_killed_search_forgets_at_most_ten_seconds_and_a_machine_that_slept_is_not_billed(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path), search("search.hours=1")
    budget = Budget(folder, spec, clock := Clock())
    for _ in range(15):
        clock.now += 1
        budget.count(1)
    assert Budget(folder, spec).usage.seconds == pytest.approx(10)
    clock.now += 8 * 3600
    budget.count(1)
    assert budget.usage.seconds == pytest.approx(15 + 60)
    assert {field.name for field in dataclasses.fields(budget.usage)} == {"seconds", "gpu_seconds"}


def test_without_a_budget_in_hours_none_is_ever_spent(tmp_path: Path) -> None:
    assert spend(RunFolder(tmp_path), search(), 100_000, 2).spent is None
