"""The trials of a search that has not ended, read from their runs for its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlab.experiments.space import Distribution
from starlab.platform.recipe.metrics import METRICS
from starlab.platform.reports.report_runs import ReportRun
from starlab.platform.reports.search_charts import Judge
from starlab.platform.runs.search_records import Trial


def _values(run: ReportRun, space: Mapping[str, Distribution]) -> dict[str, Any]:
    values = {key: run.settings.get(key) for key in space}
    return {key: value for key, value in values.items() if space[key].is_on(values)}


def first_objective(raw: Mapping[str, Any]) -> str:
    """The first objective of a search that has not ended, from its spec. One that runs do not hold gives way to top-1."""
    named = (raw.get("search", {}).get("objectives") or [f"val/{raw.get('train', {}).get('select_by', 'top1')}"])[0]
    return str(named) if str(named).removeprefix("val/") in METRICS else "val/top1"


def trials_of(runs: Mapping[str, ReportRun], space: Mapping[str, Distribution], judge: Judge) -> list[Trial]:
    """The finished trials of a search that has not ended, best first."""
    found = [
        Trial(
            run=run.name,
            values=_values(run, space),
            val_top1=run.result.val.get("top1", 0.0),
            epochs=run.result.epochs or 0,
            whole=not run.result.ended_early,
            objectives={f"val/{name}": value for name, value in run.result.val.items()},
        )
        for run in runs.values()
    ]
    sign = -1 if METRICS[judge.objective.removeprefix("val/")].higher_is_better else 1
    return sorted(found, key=lambda trial: (not trial.whole, sign * judge.value(trial), trial.run))
