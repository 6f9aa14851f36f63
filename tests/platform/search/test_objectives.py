"""What a point of a search is judged by: any metric, the model's cost, several objectives at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from starlab.experiments.spec import SearchSpec, load_search
from starlab.models.cost import cost
from starlab.platform.errors import UserError
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import Journal
from starlab.platform.runs.records import Result
from starlab.platform.runs.search_records import Trial
from starlab.platform.search.objectives import Outcome, mean_outcome, objectives_of, outcome_of, pareto_front


def search(*overrides: str) -> SearchSpec:
    return load_search("demo_search", overrides)


def test_a_search_ranks_by_the_metric_that_selects_checkpoints_unless_it_names_objectives() -> None:
    [top1] = objectives_of(search())
    assert (top1.name, top1.direction) == ("val/top1", "maximize")
    [loss] = objectives_of(search("train.select_by=loss"))
    assert (loss.name, loss.direction) == ("val/loss", "minimize")
    several = objectives_of(search("search.objectives=[val/mean_class, flops, clips_per_second]"))
    assert [objective.direction for objective in several] == ["maximize", "minimize", "maximize"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("val/top2", "search.objectives names 'val/top2', which no run has; did you mean 'val/top"),
        (
            "zzz",
            "which no run has; there are: val/top1, val/top5, val/mean_class, val/loss, flops, parameters, clips_per_second",
        ),
        ("test/top1", "a search never chooses by the test part; use val/top1"),
    ],
)
def test_a_metric_that_no_run_has_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        objectives_of(search(f"search.objectives=[{name}]"))
    assert message in str(caught.value)


def test_a_run_is_measured_from_its_folder(tmp_path: Path) -> None:
    spec = search("search.objectives=[val/loss, flops, parameters, clips_per_second]")
    run, objectives = RunFolder(tmp_path), objectives_of(spec)
    assert outcome_of(run, spec.base, objectives) is None
    val = {"top1": 0.75, "loss": 0.5}
    run.write(Result(steps=6, total_steps=8, best_step=4, selected_by="validation", classes=("a",), val=val, epochs=3))
    journal = Journal(tmp_path / "journal.jsonl")
    for step, speed in ((1, 2.0), (2, 50.0), (3, 60.0)):
        journal.log(step, {"system/clips_per_second": speed})
    journal.close()
    outcome = outcome_of(run, spec.base, objectives)
    counted = cost(spec.base.model, height=48, width=48)
    assert outcome is not None
    assert outcome.values == {
        "val/top1": 0.75,
        "val/loss": 0.5,
        "flops": counted.forward_flops,
        "parameters": counted.parameters,
        "clips_per_second": 50.0,
    }
    assert (outcome.epochs, outcome.whole, outcome.problem) == (3, False, None)
    assert Outcome.parse(outcome.text) == outcome
    assert "val/loss is not a finite number" in str(Outcome(values={"val/loss": math.nan}, epochs=1).problem)


def test_a_point_has_the_means_over_its_seeds_and_is_whole_where_every_run_is() -> None:
    runs = [Outcome(values={"val/top1": value}, epochs=4) for value in (0.5, 0.75)]
    assert mean_outcome(runs, 2) == Outcome(values={"val/top1": 0.625}, epochs=4)
    assert not mean_outcome(runs, 3).whole
    assert not mean_outcome([runs[0], Outcome(values={"val/top1": 0.1}, epochs=1, whole=False)], 2).whole


def test_the_pareto_front_holds_the_whole_trials_that_no_other_one_beats() -> None:
    def trial(run: str, top1: float, flops: float, *, whole: bool = True) -> Trial:
        values = {"val/top1": top1, "flops": flops}
        return Trial(run=run, values={}, val_top1=top1, epochs=1, whole=whole, objectives=values)

    trials = [
        trial("best", 0.9, 100),
        trial("cheaper", 0.9, 90),
        trial("cheapest", 0.5, 10),
        trial("beaten", 0.4, 20),
        trial("twin", 0.5, 10),
        trial("ended early", 0.99, 1, whole=False),
    ]
    objectives = objectives_of(search("search.objectives=[val/top1, flops]"))
    assert [trial.run for trial in pareto_front(trials, objectives)] == ["cheaper", "cheapest", "twin"]


def test_a_trial_of_an_earlier_version_has_its_top_1_as_its_objective() -> None:
    old = Trial(run="r", values={}, val_top1=0.5, epochs=1, whole=True)
    assert old.value_of("val/top1") == 0.5
    assert math.isnan(old.value_of("flops"))
