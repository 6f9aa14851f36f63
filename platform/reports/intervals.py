"""Charts of means with intervals: rows with a verdict, horizontal and vertical bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlab.platform.reports.charts import Words
from starlab.platform.reports.svg import (
    WIDTH_PX,
    BandScale,
    Cell,
    Chart,
    LinearScale,
    Number,
    Table,
    bar,
    dot,
    escape,
    frame,
    line,
    padded,
    shortened,
    tag,
    text,
    text_width,
    value_text,
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval, and the single values behind it."""

    name: str
    mean: float
    low: float
    high: float
    values: tuple[float, ...] = ()
    paper: float | None = None
    says: str = ""
    """A verdict in words, shown in the table."""


def intervals_chart(words: Words, rows: Sequence[Interval], *, zero: bool = False, form: str = "%") -> Chart:
    """Draw a mean with its interval per row, the single values as small dots and the paper's number as a diamond.

    Args:
        zero: Whether the values are differences, so that a line marks zero.
        form: "%" for values that are shares in [0, 1].
    """
    labels = [shortened(row.name, 30) for row in rows]
    left, top = min(170.0, max(map(text_width, labels)) + 14), 24.0
    right, bottom = WIDTH_PX - 14.0, top + 30.0 * len(rows)
    values = [value for row in rows for value in (row.low, row.high, row.mean, *row.values)]
    values += [row.paper for row in rows if row.paper is not None]
    values += [0.0] if zero else []
    limits = (None, None) if zero or form != "%" else (0.0, 1.0)
    x = LinearScale(*padded(values, *limits), left, right, form)
    bands = BandScale(tuple(labels), top, bottom)
    parts = [line(x(value), top, x(value), bottom, "grid") for value, _ in x.ticks()]
    if zero:
        parts.append(line(x(0), top - 4, x(0), bottom, "zero"))
    for index, row in enumerate(rows):
        middle = bands(index)
        says = f"{row.name}: {value_text(row.mean, form)}, interval {value_text(row.low, form)} to {value_text(row.high, form)}"
        parts += [
            text(left - 10, middle + 4, labels[index], "label", "end"),
            line(x(row.low), middle, x(row.high), middle, "interval s0"),
        ]
        parts += [dot(x(value), middle + 8, "single", value_text(value, form), 2) for value in row.values]
        parts.append(dot(x(row.mean), middle, "mark s0", says, 5))
        if row.paper is not None:
            parts.append(_diamond(x(row.paper), middle, f"paper: {value_text(row.paper, form)}"))
    parts += [text(x(value), bottom + 16, words_, "tick", "middle") for value, words_ in x.ticks()]
    parts += [line(left, bottom, right, bottom, "axis"), text((left + right) / 2, bottom + 34, words.x, "label", "middle")]
    return Chart(words.title, words.description, WIDTH_PX, bottom + 44, "".join(parts), _intervals_table(words, rows, form))


def bars_chart(words: Words, rows: Sequence[Interval], *, form: str = "%", top_value: float | None = None) -> Chart:
    """Draw horizontal bars with their values, and their intervals where these are wider than a point."""
    labels = [shortened(row.name, 26) for row in rows]
    left = min(170.0, max(map(text_width, labels)) + 14)
    right, top, step = WIDTH_PX - 62.0, 8.0, 24.0
    x = LinearScale(0.0, top_value or max((row.high for row in rows), default=1.0) or 1.0, left, right, form)
    parts = []
    for index, row in enumerate(rows):
        y, says = top + index * step, f"{row.name}: {value_text(row.mean, form)}"
        parts += [
            text(left - 8, y + 14, labels[index], "label", "end"),
            bar(left, y + 3, x(row.mean) - left, step - 8, "fill s0", says),
        ]
        if row.high > row.low:
            parts.append(line(x(row.low), y + step / 2 - 1, x(row.high), y + step / 2 - 1, "whisker"))
        parts.append(text(max(x(row.mean), x(row.high)) + 6, y + 14, value_text(row.mean, form), "tick"))
    parts.append(line(left, top, left, top + step * len(rows), "axis"))
    return Chart(
        words.title,
        words.description,
        WIDTH_PX,
        top + step * len(rows) + 8,
        "".join(parts),
        _intervals_table(words, rows, form),
    )


def columns_chart(words: Words, names: Sequence[str], rows: Sequence[Interval], *, level: float, form: str = "%") -> Chart:
    """Draw vertical bars with intervals; a dashed line marks the value `level` with which all bars would be equal."""
    left, top, right, bottom = 52.0, 34.0, WIDTH_PX - 12.0, 200.0
    most = max([level, *(row.high for row in rows)]) * 1.08
    x, y = BandScale(tuple(names), left, right), LinearScale(0.0, most, bottom, top, form)
    width = (right - left) / max(1, len(rows))
    parts = [frame(x, y, words.x, words.y, (left, top, right, bottom))]
    for index, row in enumerate(rows):
        middle, says = x(index), f"{row.name}: {value_text(row.mean, form)}"
        parts.append(bar(middle - 0.36 * width, y(row.mean), 0.72 * width, bottom - y(row.mean), "fill s0", says))
        if row.high > row.low:
            parts.append(line(middle, y(row.low), middle, y(row.high), "whisker"))
    parts.append(line(left, y(level), right, y(level), "zero"))
    return Chart(words.title, words.description, WIDTH_PX, 246, "".join(parts), _intervals_table(words, rows, form))


def _diamond(x: float, y: float, says: str) -> str:
    points = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in ((x, y - 6), (x + 5, y), (x, y + 6), (x - 5, y))) + "Z"
    return tag("path", {"d": points, "class": "paper"}, tag("title", {}, escape(says)))


def _intervals_table(words: Words, rows: Sequence[Interval], form: str) -> Table:
    spread_out = any(row.high > row.low for row in rows)
    paper = any(row.paper is not None for row in rows)
    says = any(row.says for row in rows)
    heads = (words.y or "name", words.x or "value", *(("low", "high") if spread_out else ()), *(("paper",) if paper else ()))
    body = []
    for row in rows:
        shown = [row.mean, *((row.low, row.high) if spread_out else ())]
        cells: list[Cell] = [row.name, *(Number(value_text(value, form), value) for value in shown)]
        if paper:
            cells.append("" if row.paper is None else Number(value_text(row.paper, form), row.paper))
        body.append((*cells, *((row.says,) if says else ())))
    return Table((*heads, *(("verdict",) if says else ())), tuple(body))
