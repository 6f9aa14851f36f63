"""SVG written by hand: elements, scales, axes, and the chart that a page shows with the table of its numbers.

Colours are classes and variables of page.css, so that one drawing is right in a light and in a dark page and in print.
Lengths are in pixels of the drawing, which a page scales to its own width.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

WIDTH_PX = 400
"""Width of a chart. It is that of a phone, so that text is as large there as in the rest of the page."""
SERIES = 6
"""Number of colours that can be told apart with any colour vision (classes s0 to s5 of page.css)."""
_CHARACTER_PX = 6.6
"""Width of a character of the labels, on average."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a table: its text, and the value by which it is sorted."""

    text: str
    value: float


Cell = str | Number


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page. A click on a head sorts by its column."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, with its title, its description in words and the table of the numbers that it shows."""

    title: str
    description: str
    """What the drawing shows, in one or two sentences; screen readers read it, and it stands below the drawing."""
    width: float
    height: float
    body: str
    """The drawing's elements."""
    table: Table

    def svg(self, name: str) -> str:
        """Return the `<svg>` element. `name` is unique in the page and a valid id."""
        attributes = {
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
            "viewBox": f"0 0 {self.width:g} {self.height:g}",
        }
        title = tag("title", {"id": f"{name}-title"}, escape(self.title))
        return tag("svg", attributes, title, tag("desc", {"id": f"{name}-desc"}, escape(self.description)), self.body)


def escape(text: object) -> str:
    """Escape a text for HTML and SVG, quotes included. Characters that XML forbids are replaced."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text)), quote=True)


def tag(name: str, attributes: Mapping[str, object], *children: str) -> str:
    """Write an element. Attribute values are escaped, numbers shortened; children are markup and stay as they are."""
    written = "".join(f' {key}="{_attribute(value)}"' for key, value in attributes.items() if value is not None)
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", turn: float = 0) -> str:
    """Write a text at a place. `kind`: classes of page.css; `anchor`: start, middle or end; `turn`: degrees."""
    attributes = {"x": x, "y": y, "class": kind or None, "text-anchor": None if anchor == "start" else anchor}
    if turn:
        attributes["transform"] = f"rotate({turn:g} {x:.1f} {y:.1f})"
    return tag("text", attributes, escape(words))


def dot(x: float, y: float, kind: str, says: str, radius: float = 4) -> str:
    """Draw a dot with a tooltip."""
    return tag("circle", {"cx": x, "cy": y, "r": radius, "class": kind}, tag("title", {}, escape(says)))


def bar(left: float, top: float, width: float, height: float, kind: str, says: str = "", opacity: float | None = None) -> str:
    """Draw a rectangle with a tooltip; `opacity` is that of its fill."""
    attributes = {"x": left, "y": top, "width": max(0.0, width), "height": max(0.0, height), "class": kind}
    shade = {} if opacity is None else {"fill-opacity": round(opacity, 2)}
    return tag("rect", attributes | shade, *([tag("title", {}, escape(says))] if says else []))


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Draw a straight line."""
    return tag("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def path(points: Sequence[tuple[float, float]], kind: str, says: str = "", *, closed: bool = False) -> str:
    """Draw a line through points, or with `closed` the area that it surrounds."""
    moves = "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points) + ("Z" if closed else "")
    return tag("path", {"d": moves, "class": kind}, *([tag("title", {}, escape(says))] if says else []))


def marker(x: float, y: float, series: int, says: str, radius: float = 4) -> str:
    """Draw a mark of a series: colours repeat after `SERIES`, and then the shape is another."""
    kind, shape = f"mark s{series % SERIES}", (series // SERIES) % 3
    if shape == 0:
        return dot(x, y, kind, says, radius)
    if shape == 1:
        return bar(x - radius * 0.9, y - radius * 0.9, 1.8 * radius, 1.8 * radius, kind, says)
    corners = [(x, y - 1.2 * radius), (x + 1.1 * radius, y + 0.9 * radius), (x - 1.1 * radius, y + 0.9 * radius)]
    return path(corners, kind, says, closed=True)


def text_width(words: str) -> float:
    """Estimate the width of a label, in pixels."""
    return _CHARACTER_PX * len(words)


def shortened(words: str, most: int) -> str:
    """Cut a text to at most `most` characters, with an ellipsis where something is missing."""
    return words if len(words) <= most else words[: most - 1] + "…"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least `gap`, within [low, high] if they fit, each near its place. Keeps their order."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [0.0] * len(places)
    floor = low
    for index in order:
        moved[index] = max(places[index], floor)
        floor = moved[index] + gap
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


class Scale(Protocol):
    """A scale turns values of an axis into pixels."""

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        ...

    def ticks(self) -> list[tuple[float, str]]:
        """Return the marked values and their texts."""
        ...


@dataclass(frozen=True, slots=True)
class LinearScale:
    """Equal steps of the value are equal lengths."""

    low: float
    high: float
    start: float
    end: float
    form: str = "g"
    """How ticks are written: "g", or "%" for shares in [0, 1]."""
    whole: bool = False
    """Whether only whole numbers are marked."""

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return three to six round values."""
        if self.high <= self.low:
            return [(self.low, self._text(self.low))]
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.9)
        step = max(1.0, round(step)) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(index * step, self._text(index * step)) for index in range(first, last + 1)]

    def _text(self, value: float) -> str:
        return f"{100 * value:.4g} %" if self.form == "%" else short_number(value)


@dataclass(frozen=True, slots=True)
class LogScale:
    """Equal factors of the value are equal lengths. Values are above 0."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        span = math.log(self.high / self.low)
        share = math.log(value / self.low) / span if span > 0 else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return powers of ten; if fewer than two of them are in the range, also 2 and 5 times each."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [f * 10.0**power for power in range(first, last + 1) for f in factors]
            found = [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
            if len(found) >= 2:
                break
        return [(value, short_number(value)) for value in found or [self.low]]


@dataclass(frozen=True, slots=True)
class BandScale:
    """Names at equal distances; the value of a name is its index."""

    names: tuple[str, ...]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the middle of a band."""
        return self.start + (value + 0.5) / max(1, len(self.names)) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return every name."""
        return list(enumerate(self.names))


def frame(x: Scale, y: Scale, x_label: str, y_label: str, box: tuple[float, float, float, float]) -> str:
    """Draw grid lines, tick texts and axis labels around the box (left, top, right, bottom)."""
    left, top, right, bottom = box
    parts = []
    for value, words in y.ticks():
        parts += [line(left, y(value), right, y(value), "grid"), text(left - 6, y(value) + 4, words, "tick", "end")]
    edge = -math.inf
    for value, words in x.ticks():
        half = text_width(words) / 2
        if x(value) - half > edge:  # a text that would touch the one before is left out
            parts.append(text(x(value), bottom + 16, words, "tick", "middle"))
            edge = x(value) + half + 4
        parts.append(line(x(value), bottom, x(value), bottom + 4, "axis"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts.append(text((left + right) / 2, bottom + 34, x_label, "label", "middle"))
    parts.append(text(left - 6 if left < 60 else 0, top - 10, y_label, "label"))
    return "".join(parts)


def padded(values: Sequence[float], low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Return a range that holds all values with some air, cut at `low` and `high`."""
    least, most = min(values), max(values)
    air = 0.06 * (most - least) or abs(most) * 0.1 or 1.0
    least, most = least - air, most + air
    return (least if low is None else max(low, least)), (most if high is None else min(high, most))


def percent(share: float) -> str:
    """Write a share as a percentage with one decimal: 0.934 is "93.4 %"."""
    return f"{100 * share:.1f} %"


def value_text(value: float, form: str) -> str:
    """Write a value: a share as a percentage where `form` is "%", else with at most four digits that matter."""
    return percent(value) if form == "%" else short_number(value)


def short_number(value: float) -> str:
    """Write a number with at most four digits that matter, and an SI letter from 10,000 on: 12,300,000 is "12.3M"."""
    if abs(value) >= 1e4:
        for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= power:
                return f"{value / power:.3g}{letter}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _attribute(value: object) -> str:
    return _short(value) if isinstance(value, float) else escape(value)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
