"""A comparison as text: for a terminal, Markdown, LaTeX (booktabs), CSV or JSON.

The tables for readers have a footnote per row with its run ids and code version. CSV and JSON have them as columns and fields,
and numbers in full.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from starlab.platform.reports.comparison import Comparison, Row
from starlab.platform.reports.costs import RunCost
from starlab.platform.reports.latex_text import in_latex

_MOST_KEYS = 3
"""Settings that have a column each; more of them are one text."""
_SETTINGS = "settings"
_SHA256 = re.compile(r"^([0-9a-f]{12})[0-9a-f]{52}$")
"""A digest, of which a table shows the beginning."""
_TEXT_COLUMNS = frozenset({"row", "verdict", _SETTINGS})
_MOST_SENTENCES = 12
_COST_COLUMNS = frozenset({"M parameters", "GFLOP a clip", "CPU-hours", "GPU-hours", "clips/s", "GPU GB"})


def render(comparison: Comparison, form: str, *, width: int | None = None) -> str:
    """Return a comparison as text.

    Args:
        comparison: The comparison.
        form: A name in FORMATS.
        width: Columns of the terminal. None does not squeeze the table; only "terminal" uses it.

    Raises:
        KeyError: There is no such format.
    """
    return _terminal(comparison, width) if form == "terminal" else FORMATS[form](comparison)


def heads_and_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the column heads and the texts of each row, without columns that are empty in every row."""
    shown = [key for key in comparison.keys if not all(_names(row, key) for row in comparison.rows)]
    rows = [_texts(comparison, row, _settings(comparison, row, shown)) for row in comparison.rows]
    heads = [head for head in rows[0] if any(row[head] for row in rows)]
    return heads, [[row[head] for head in heads] for row in rows]


def _names(row: Row, key: str) -> bool:
    """Whether the row's name already holds the value of a key."""
    return f"{key.rpartition('.')[2]}={row.values.get(key)}" in row.name.split(", ")


def _settings(comparison: Comparison, row: Row, keys: Sequence[str]) -> dict[str, str]:
    """Return the values of a few keys by key; of many, in one text. Beside a base's, only what differs from them."""
    values = {key: _SHA256.sub(r"\1", str(row.values.get(key))) for key in keys}
    if len(keys) <= _MOST_KEYS:
        return values
    base = next((other for other in comparison.rows if other.is_base), None)
    if base is not None and base is not row:
        values = {key: text for key, text in values.items() if row.values.get(key) != base.values.get(key)}
    return {_SETTINGS: ", ".join(f"{key}={text}" for key, text in values.items()) or "as the base"}


def _texts(comparison: Comparison, row: Row, settings: Mapping[str, str]) -> dict[str, str]:
    unit, found = comparison.unit, row.difference
    cost, pck = mean_cost(row), mean_pck(row)
    digits = 2 if unit == "%" else 4
    interval = "" if row.low is None or row.high is None else f"{row.low:.{digits}f} to {row.high:.{digits}f}"
    texts = {"row": row.name} | dict(settings)
    texts |= {
        "seeds": str(len(row.seeds) or ""),
        f"{comparison.metric} {unit}": _with_spread(row.mean, row.sd, digits),
        "95 % interval": interval,
        "PCK@0.2 %": "" if pck is None else f"{100 * pck:.1f}",
        "paper": "" if row.paper is None else f"{row.paper:.1f}",
        f"validation {unit}": "" if row.val is None else f"{row.val:.{digits}f}",
        "difference": ""
        if found is None
        else f"{found.value:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})",
        "p (Holm)": "" if found is None or found.seeds == 1 else _p(found.p_adjusted),
        "verdict": row.verdict,
        "can see": "" if found is None or found.detectable is None else f"{found.detectable:.2g}",
        "M parameters": "" if cost.parameters is None else f"{cost.parameters / 1e6:.2f}",
        "GFLOP a clip": "" if cost.flops is None else f"{cost.flops / 1e9:.3g}",
        f"{cost.device}-hours": _hours(cost.device_hours),
        "clips/s": "" if cost.clips_per_second is None else f"{cost.clips_per_second:.3g}",
        "GPU GB": "" if cost.memory_gb is None else f"{cost.memory_gb:.1f}",
    }
    if len({mean_cost(other).device for other in comparison.rows}) > 1:
        for device in ("CPU", "GPU"):
            texts.setdefault(f"{device}-hours", "")
    return texts


def mean_cost(row: Row) -> RunCost:
    """Return the mean cost of a run of this row; the memory is the largest."""
    costs = [run.cost for run in row.runs]

    def mean(name: str) -> float | None:
        values = [value for cost in costs if (value := getattr(cost, name)) is not None]
        return sum(values) / len(values) if values else None

    return RunCost(
        parameters=costs[0].parameters,
        flops=costs[0].flops,
        device=costs[0].device,
        device_hours=mean("device_hours"),
        clips_per_second=mean("clips_per_second"),
        memory_gb=max((cost.memory_gb for cost in costs if cost.memory_gb is not None), default=None),
    )


def mean_pck(row: Row) -> float | None:
    """Return the mean share of joints that the row's models found (PCK@0.2), None for models that are given the joints."""
    shares = [run.test["pck_0.2"] for run in row.runs if "pck_0.2" in run.test]
    return sum(shares) / len(shares) if shares else None


def _with_spread(mean: float | None, sd: float | None, digits: int) -> str:
    if mean is None:
        return ""
    return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def _hours(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.01" if value < 0.01 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _origin(row: Row) -> str:
    return f"runs {', '.join(run.run for run in row.runs)}; code {', '.join(row.codes)}"


def _title(comparison: Comparison) -> str:
    base = f", compared with {comparison.base}" if comparison.base else ""
    return f"{comparison.metric} on the test part{base}"


def _sentences(comparison: Comparison) -> list[str]:
    """Return the first sentences, and where the rest can be read."""
    shown, left = comparison.sentences[:_MOST_SENTENCES], len(comparison.sentences) - _MOST_SENTENCES
    return [*shown, *([f"… and {left} more rows in words: --format json"] if left > 0 else [])]


def _terminal(comparison: Comparison, width: int | None) -> str:
    """Draw several tables, because one of all columns would be too wide: values and verdicts, what the rows cost, settings."""
    heads, rows = heads_and_rows(comparison)
    stream = io.StringIO()
    console = Console(file=stream, width=width or 1000, force_terminal=width is not None)
    if comparison.claim:
        console.print(Text(f"claim: {comparison.claim}"))
    costs = [place for place, head in enumerate(heads) if head in _COST_COLUMNS or head.startswith("validation")]
    settings = [place for place, head in enumerate(heads) if head == _SETTINGS]
    values = [place for place in range(1, len(heads)) if place not in (*costs, *settings)]
    for title, places in (
        (_title(comparison), values),
        ("cost and validation", costs),
        ("settings; beside a base, only those that differ from it" if comparison.base else "settings", settings),
    ):
        table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("row", overflow="fold")
        for place in places:
            head = heads[place]
            left = head in _TEXT_COLUMNS or head in comparison.keys
            table.add_column(Text(head), justify="left" if left else "right", overflow="fold")
        for number, row in enumerate(rows, 1):
            table.add_row(Text(f"{row[0]} [{number}]"), *(Text(row[place]) for place in places))
        if places:
            console.print(table)
    for line in (*_sentences(comparison), *(f"note: {note}" for note in comparison.notes)):
        console.print(Text(line))
    for number, one in enumerate(comparison.rows, 1):
        console.print(Text(f"[{number}] {_origin(one)}"))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _markdown(comparison: Comparison) -> str:
    heads, rows = heads_and_rows(comparison)
    align = ["---" if head in _TEXT_COLUMNS or head in comparison.keys else "---:" for head in heads]
    lines = [f"*{_in_markdown(comparison.claim)}*", ""] if comparison.claim else []
    lines += [f"**{_in_markdown(_title(comparison))}**", "", _pipes([_in_markdown(head) for head in heads]), _pipes(align)]
    for number, row in enumerate(rows, 1):
        cells = [_in_markdown(text) for text in row]
        lines.append(_pipes([f"{cells[0]}[^{number}]", *cells[1:]]))
    lines += ["", *(f"- {_in_markdown(line)}" for line in (*_sentences(comparison), *comparison.notes)), ""]
    lines += [f"[^{number}]: {_in_markdown(_origin(row))}" for number, row in enumerate(comparison.rows, 1)]
    return "\n".join(lines) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_markdown(text: str) -> str:
    """Escape what Markdown or HTML would read as markup."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain)


def _latex(comparison: Comparison) -> str:
    heads, rows = heads_and_rows(comparison)
    columns = "".join("l" if head in _TEXT_COLUMNS or head in comparison.keys else "r" for head in heads)
    lines = ["% needs \\usepackage{booktabs}", "\\begin{tabular}{" + columns + "}", "\\toprule"]
    lines += [" & ".join(in_latex(head) for head in heads) + r" \\", "\\midrule"]
    for number, row in enumerate(rows, 1):
        cells = [in_latex(text) for text in row]
        lines.append(" & ".join([f"{cells[0]}\\textsuperscript{{{number}}}", *cells[1:]]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", "", "{\\par\\smallskip\\footnotesize"]
    lines += [in_latex(line) + r"\par" for line in (*_sentences(comparison), *comparison.notes)]
    lines += [f"\\textsuperscript{{{number}}} {in_latex(_origin(row))}\\par" for number, row in enumerate(comparison.rows, 1)]
    return "\n".join([*lines, "}"]) + "\n"


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one flat record per row with numbers in full, for a table in a notebook: `pyarrow.Table.from_pylist`."""
    found = []
    for row in comparison.rows:
        difference = asdict(row.difference) if row.difference else {}
        difference.pop("verdict", None)
        difference.pop("mcnemar", None)
        found.append(
            {"row": row.name, **{key: row.values.get(key) for key in comparison.keys}}
            | {"seeds": len(row.seeds), "metric": comparison.metric, "unit": comparison.unit, "mean": row.mean, "sd": row.sd}
            | {"low": row.low, "high": row.high, "paper": row.paper, "validation": row.val, "verdict": row.verdict}
            | {"pck_0.2": mean_pck(row)}
            | {f"difference_{name}": value for name, value in difference.items()}
            | {"reason": row.reason, **asdict(mean_cost(row))}
            | {"runs": " ".join(run.run for run in row.runs), "code": " ".join(row.codes)}
        )
    names = list(dict.fromkeys(name for record in found for name in record))
    return [{name: record.get(name) for name in names} for record in found]


def _csv(comparison: Comparison) -> str:
    stream = io.StringIO()
    rows = records(comparison)
    table = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return stream.getvalue()


def _json(comparison: Comparison) -> str:
    rows = []
    for row in comparison.rows:
        runs = [
            {"run": run.run, "folder": str(run.folder), "seed": run.seed, "code": run.code, "test": run.test, "val": run.val}
            for run in row.runs
        ]
        plain = {name: getattr(row, name) for name in Row.__slots__ if name not in ("runs", "difference")}
        difference = asdict(row.difference) if row.difference else None
        rows.append(plain | {"verdict": row.verdict, "difference": difference, "cost": asdict(mean_cost(row)), "runs": runs})
    whole = {name: getattr(comparison, name) for name in Comparison.__slots__ if name != "rows"} | {"rows": rows}
    return json.dumps(_finite(whole), indent=1, default=str) + "\n"


def _finite(value: Any) -> Any:
    """Replace numbers that JSON lacks, such as the loss of a run that diverged, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    return [_finite(below) for below in value] if isinstance(value, list | tuple) else value


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "terminal": lambda comparison: _terminal(comparison, None),
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
}
"""All formats by name."""
ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".txt": "terminal"}
"""The format of a file by its ending."""
