"""Charts of curves with bands and of scattered points, and the words that every chart has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from starlab.platform.reports.svg import (
    SERIES,
    WIDTH_PX,
    Cell,
    Chart,
    LinearScale,
    LogScale,
    Number,
    Scale,
    Table,
    frame,
    marker,
    padded,
    path,
    short_number,
    shortened,
    spread,
    tag,
    text,
    text_width,
    value_text,
)

_LABEL_CHARACTERS = 22
_TABLE_POINTS = 12


@dataclass(frozen=True, slots=True)
class Words:
    """The texts of a chart."""

    title: str
    description: str
    x: str = ""
    y: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart, with a band around it where there is a spread."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    faint: bool = False
    """Whether the curve is only background for others, grey and without a label."""


@dataclass(frozen=True, slots=True)
class Place:
    """One point of a scatter chart."""

    x: float
    y: float
    says: str
    """Tooltip."""
    series: int = 0
    hollow: bool = False
    label: str = ""


def curves_chart(words: Words, curves: Sequence[Curve], *, form: str = "g", whole_x: bool = False) -> Chart:
    """Draw lines over a common axis. Each is labelled at its end; those that are `faint` are not.

    Args:
        form: "%" for values that are shares in [0, 1].
        whole_x: Whether x takes only whole values, each of which is marked with a dot.
    """
    strong = [curve for curve in curves if not curve.faint]
    labels = [shortened(curve.name, _LABEL_CHARACTERS) for curve in strong] if len(strong) > 1 else []
    right = WIDTH_PX - max((1.1 * text_width(label) + 12 for label in labels), default=12)  # the labels are bold
    left, top, bottom = 52.0, 34.0, 230.0
    xs = [value for curve in curves for value in curve.x]
    ys = [value for curve in curves for value in (*curve.y, *curve.low, *curve.high) if math.isfinite(value)]
    lowest, highest = padded(ys, *((0.0, 1.0) if form == "%" else (None, None)))
    air = 0.3 if whole_x else 0.0
    x = LinearScale(min(xs) - air, max(xs) + air, left, right, whole=whole_x)
    y = LinearScale(lowest, highest, bottom, top, form)
    parts = [frame(x, y, words.x, words.y, (left, top, right, bottom))]
    for curve in curves:
        if curve.faint:
            parts.append(path(_points(curve, x, y), "line faint", curve.name))
    for index, curve in enumerate(strong):
        kind = index % SERIES
        if curve.low:
            edge = [*zip(curve.x, curve.low, strict=True), *reversed(list(zip(curve.x, curve.high, strict=True)))]
            parts.append(path([(x(a), y(b)) for a, b in edge], f"band s{kind}", closed=True))
        dashed = " dashed" if (index // SERIES) % 2 else ""
        parts.append(path(_points(curve, x, y), f"line s{kind}{dashed}", curve.name))
        if whole_x or len(curve.x) == 1:
            points = zip(curve.x, curve.y, strict=True)
            parts += [marker(x(a), y(b), index, f"{curve.name}: {value_text(b, form)} at {short_number(a)}") for a, b in points]
    ends = spread([y(curve.y[-1]) + 4 for curve in strong], 14, top, bottom + 4)
    for index, (label, place) in enumerate(zip(labels, ends, strict=False)):
        parts.append(text(right + 8, place, label, f"label s{index % SERIES}"))
    return Chart(words.title, words.description, WIDTH_PX, 276, "".join(parts), _curves_table(words, curves, form))


def scatter_chart(
    words: Words, places: Sequence[Place], x: Scale, y: Scale, table: Table, under: str = "", names: Sequence[str] = ()
) -> Chart:
    """Draw points. The scales end within the box that `scatter_box` gives.

    Args:
        under: Markup below the points.
        names: Names of the series, for a legend below the chart.
    """
    left, top, right, bottom = scatter_box()
    parts = [frame(x, y, words.x, words.y, (left, top, right, bottom)), under]
    for place in places:
        mark = marker(x(place.x), y(place.y), place.series, place.says, 3.6)
        parts.append(tag("g", {"class": "hollow"}, mark) if place.hollow else mark)
    labelled = [place for place in places if place.label]
    for place, level in zip(labelled, spread([y(place.y) - 7 for place in labelled], 13, top + 8, bottom - 4), strict=True):
        side = "end" if x(place.x) > (left + right) / 2 else "start"
        parts.append(
            text(
                x(place.x) + (-7 if side == "end" else 7),
                level,
                shortened(place.label, 26),
                f"label s{place.series % SERIES}",
                side,
            )
        )
    for number, name in enumerate(names):
        row, column = divmod(number, 2)
        x_px, y_px = 12 + column * WIDTH_PX / 2, 288 + 18 * row
        parts += [marker(x_px, y_px, number, name), text(x_px + 10, y_px + 4, shortened(name, 26), "label")]
    return Chart(words.title, words.description, WIDTH_PX, 284 + 18 * -(-len(names) // 2), "".join(parts), table)


def scatter_box() -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a scatter chart's axes, in pixels."""
    return 52.0, 34.0, WIDTH_PX - 16.0, 230.0


def scale_of(
    values: Sequence[float], start: float, end: float, *, log: bool = False, whole: bool = False, form: str = "g"
) -> Scale:
    """Choose a scale that holds the values, logarithmic where `log` says so and all values are above 0."""
    if log and min(values) > 0:
        least, most = min(values), max(values)
        air = (most / least) ** 0.06 if most > least else 1.5
        return LogScale(least / air, most * air, start, end)
    return LinearScale(*padded(values), start, end, form, whole)


def _points(curve: Curve, x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x(a), y(b)) for a, b in zip(curve.x, curve.y, strict=True) if math.isfinite(b)]


def _curves_table(words: Words, curves: Sequence[Curve], form: str) -> Table:
    if len(curves) > 8:  # one row per curve
        heads = ("curve", f"{words.y}, first", f"{words.y}, last", f"last {words.x}")
        ends = ((curve.y[0], curve.y[-1]) for curve in curves)
        rows: list[tuple[Cell, ...]] = [
            (
                curve.name,
                *(Number(value_text(value, form), value) for value in pair),
                Number(short_number(curve.x[-1]), curve.x[-1]),
            )
            for curve, pair in zip(curves, ends, strict=True)
        ]
        return Table(heads, tuple(rows))
    xs = sorted({value for curve in curves for value in curve.x})
    shown = (
        [xs[round(index * (len(xs) - 1) / (_TABLE_POINTS - 1))] for index in range(_TABLE_POINTS)]
        if len(xs) > _TABLE_POINTS
        else xs
    )
    body = []
    for x in dict.fromkeys(shown):
        cells: list[Cell] = [Number(short_number(x), x)]
        for curve in curves:
            near = [b for a, b in zip(curve.x, curve.y, strict=True) if a <= x <= curve.x[-1]]  # nothing beyond a curve's end
            cells.append(Number(value_text(near[-1], form), near[-1]) if near else "")
        body.append(tuple(cells))
    return Table((words.x, *(curve.name for curve in curves)), tuple(body))
