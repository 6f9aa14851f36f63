"""Sections about single runs: learning curves, cost, and where the numbers come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from starlab.platform.reports.charts import Words, curves_chart
from starlab.platform.reports.page import NamedTable, Section
from starlab.platform.reports.report_runs import ReportRun, cost_of, groups, mean_curve, read_curves
from starlab.platform.reports.results import CODE
from starlab.platform.reports.svg import Cell, Number, Table, short_number
from starlab.platform.runs.jsonl import read_lines
from starlab.platform.runs.metric_names import TRAIN_LOSS, TRAIN_TOP1, VAL_LOSS, VAL_TOP1
from starlab.platform.runs.provenance import FILE as PROVENANCE

_CURVES = {
    TRAIN_LOSS: ("Training loss", "nats", "g"),
    VAL_LOSS: ("Validation loss", "nats", "g"),
    TRAIN_TOP1: ("Training top-1", "top-1", "%"),
    VAL_TOP1: ("Validation top-1", "top-1", "%"),
}


def curves_section(runs: Sequence[ReportRun], best: str | None = None) -> Section:
    """Draw the learning curves of every row, with a band over its seeds. With `best`, only this row stands out."""
    rows = groups(runs)
    points = max(12, min(80, 2400 // max(1, len(rows))))
    read = {run.name: read_curves(run.folder, list(_CURVES), points) for run in runs}
    charts = []
    for key, (title, unit, form) in _CURVES.items():
        curves = []
        for row, members in rows.items():
            series = [read[run.name][key] for run in members if key in read[run.name]]
            if series:
                curve = mean_curve(row if len(rows) > 1 else "mean", series)
                faint = best is not None and row != best
                curves.append(replace(curve, low=(), high=(), faint=True) if faint else curve)
        if curves:
            several = any(len(members) > 1 for members in rows.values())
            band = " Lines are means over seeds; bands reach from the lowest to the highest seed." if several else ""
            only = " The best trial is drawn in colour, all others in grey." if best else ""
            description = f"{title} over optimizer steps.{band}{only}"
            charts.append(curves_chart(Words(title, description, "step", unit), curves, form=form))
    return Section("Learning curves", charts=charts, absent="no journal holds a curve.")


def cost_section(rows: Mapping[str, Sequence[ReportRun]]) -> Section:
    """List what each row cost: its model, and the training of all its seeds."""
    body: list[tuple[Cell, ...]] = []
    for row, members in rows.items():
        costs = [cost_of(run) for run in members]
        speeds = [cost.clips_per_second for cost in costs if cost.clips_per_second]
        hours = [cost.device_hours for cost in costs if cost.device_hours is not None]
        memory = [cost.memory_gb for cost in costs if cost.memory_gb]
        flops = costs[0].flops
        body.append(
            (
                row,
                Number(str(len(members)), len(members)),
                _number(costs[0].parameters),
                _number(None if flops is None else flops / 1e9),
                _number(sum(speeds) / len(speeds) if speeds else None),
                _number(sum(hours) if hours else None),
                " and ".join(sorted({cost.device for cost in costs})),
                _number(max(memory) if memory else None),
            )
        )
    heads = ("row", "runs", "parameters", "GFLOP per clip", "training clips/s", "device-hours", "device", "GPU memory, GB")
    lead = (
        "FLOP count the forward pass of one clip, a multiply-add as two. Speeds and hours are those of the machine that "
        "trained; device-hours (of GPUs, else of CPU threads) are summed over the runs of a row."
    )
    return Section("Cost", lead, tables=[NamedTable("Cost of each row", Table(heads, tuple(body)))])


def provenance_section(runs: Sequence[ReportRun], commands: Sequence[str], base: Mapping[str, object]) -> Section:
    """List code, libraries, devices and data of the runs, the spec, and the commands that show and repeat them."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        tags = run.folder.info.tags
        codes = {line["tags"].get(CODE, "") for line, _ in read_lines(run.folder.path / PROVENANCE)} - {""}
        rows.append(
            (
                run.name,
                *(tags.get(f"starlab.{key}", "") for key in ("code", "git_commit", "device", "data_fingerprint")),
                f"trained by {len(codes)} versions of the code" if len(codes) > 1 else "",
            )
        )
    short = tuple((*row[:2], str(row[2])[:12], row[3], str(row[4])[:12], row[5]) for row in rows)
    heads = ("run", "code", "commit", "device", "data", "note")
    versions = _versions(runs)
    settings = tuple((key, _plain(value)) for key, value in base.items())
    tables = [
        NamedTable("Code, device and data of each run", Table(heads, short)),
        NamedTable("Libraries", Table(("library", "version"), versions), folded=True),
        NamedTable("Spec", Table(("key", "value"), settings), folded=True),
    ]
    return Section(
        "Where the numbers come from", tables=[table for table in tables if table.table.rows], listings=["\n".join(commands)]
    )


def _versions(runs: Sequence[ReportRun]) -> tuple[tuple[Cell, ...], ...]:
    found: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.folder.info.tags.items():
            if key.startswith("starlab.version.") or key in ("starlab.version", "starlab.python"):
                found.setdefault(
                    key.removeprefix("starlab.").removeprefix("version.").replace("version", "starlab"), set()
                ).add(value)
    return tuple((key, ", ".join(sorted(values))) for key, values in sorted(found.items()))


def _number(value: float | None) -> Cell:
    return "" if value is None else Number(short_number(value), value)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
