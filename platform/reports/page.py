"""One self-contained HTML page: a summary, and sections of charts and tables. Nothing is loaded from anywhere.

Style and script are page.css and page.js beside this file; they are copied into the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from starlab.platform.reports.svg import WIDTH_PX, Cell, Chart, Number, Table, escape, tag


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the page, with its description for those who do not see it."""

    title: str
    description: str
    address: str
    """A `data:` address, which holds the picture itself."""


@dataclass(frozen=True, slots=True)
class NamedTable:
    """A table under its own heading."""

    title: str
    table: Table
    folded: bool = False
    """Whether the table is shown only on request, because it is long."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a page. If it has nothing to show, `absent` says why in one line, and no heading stands above nothing."""

    title: str
    lead: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[NamedTable] = ()
    pictures: Sequence[Picture] = ()
    listings: Sequence[str] = ()
    """Texts that keep their line breaks, such as commands."""
    absent: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.charts or self.tables or self.pictures or self.listings)


@dataclass(frozen=True, slots=True)
class Summary:
    """The top of a page."""

    title: str
    kind: str
    """What the page is about: a run, a search or an ablation, its state and time."""
    verdict: Sequence[str]
    """The answer first, then at most a few lines that qualify it."""
    facts: Sequence[tuple[str, str]] = field(default=())
    """Names and values."""


def page(summary: Summary, sections: Sequence[Section]) -> str:
    """Write the page as HTML. Every text is escaped; only charts are markup."""
    shown = [section for section in sections if not section.is_empty]
    left_out = [section for section in sections if section.is_empty and section.absent]
    links = "".join(f'<li><a href="#section-{index}">{escape(section.title)}</a></li>' for index, section in enumerate(shown))
    body = "".join(_section(f"section-{index}", section) for index, section in enumerate(shown))
    absent = "".join(f'<p class="absent">{escape(section.title)}: {escape(section.absent)}</p>' for section in left_out)
    if absent:
        absent = f'<section aria-labelledby="absent"><h2 id="absent">Not in this report</h2>{absent}</section>'
    style, script = (files("starlab.platform.reports").joinpath(name).read_text() for name in ("page.css", "page.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(summary.title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(summary.title)}</h1><p class="kind">{escape(summary.kind)}</p>{_verdict(summary)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f"<main>{body}{absent}</main><footer>Written by starlab; everything shown is in this file.</footer>"
        f"<script>{script}</script></body></html>\n"
    )


def _verdict(summary: Summary) -> str:
    lines = "".join(f"<p>{escape(words)}</p>" for words in summary.verdict)
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in summary.facts)
    return f'<div class="verdict">{lines}</div>' + (f'<dl class="facts">{facts}</dl>' if facts else "")


def _section(name: str, section: Section) -> str:
    lead = f"<p>{escape(section.lead)}</p>" if section.lead else ""
    pictures = "".join(_picture(picture) for picture in section.pictures)
    charts = "".join(_figure(f"{name}-chart-{index}", chart) for index, chart in enumerate(section.charts))
    charts = f'<div class="charts">{charts}</div>' if charts else ""
    tables = "".join(_named_table(named) for named in section.tables)
    listings = "".join(f'<pre tabindex="0">{escape(listing)}</pre>' for listing in section.listings)
    heading = f'<h2 id="{name}">{escape(section.title)}</h2>'
    return f'<section aria-labelledby="{name}">{heading}{lead}{tables}{pictures}{charts}{listings}</section>'


def _figure(name: str, chart: Chart) -> str:
    wide = chart.width > WIDTH_PX
    drawing = chart.svg(name)
    if wide:
        drawing = _scroll(
            drawing.replace("<svg ", f'<svg width="{chart.width:.0f}" height="{chart.height:.0f}" ', 1), chart.title
        )
    table = _scroll(_table(chart.table, ""), f"{chart.title}, as a table")
    return (
        f"<figure{' class=' + chr(34) + 'wide' + chr(34) if wide else ''}><h3>{escape(chart.title)}</h3>{drawing}"
        f"<figcaption>{escape(chart.description)}</figcaption>"
        f"<details><summary>The numbers as a table</summary>{table}</details></figure>"
    )


def _picture(picture: Picture) -> str:
    attributes = {"class": "strip", "src": picture.address, "alt": picture.description}
    shown = _scroll(tag("img", attributes), picture.title)
    caption = f"<figcaption>{escape(picture.description)}</figcaption>"
    return f'<figure class="wide"><h3>{escape(picture.title)}</h3>{shown}{caption}</figure>'


def _scroll(content: str, name: str) -> str:
    """Put wide content into a box that scrolls by itself, with the keyboard too, so that the page does not."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{content}</div>'


def _named_table(named: NamedTable) -> str:
    if named.folded:
        inside = _scroll(_table(named.table, ""), named.title)
        return f"<details><summary>{escape(named.title)}</summary>{inside}</details>"
    return _scroll(_table(named.table, named.title), named.title)


def _table(table: Table, title: str) -> str:
    numeric = [any(isinstance(row[column], Number) for row in table.rows) for column in range(len(table.heads))]
    kinds = [' class="number"' if number else "" for number in numeric]
    heads = "".join(f'<th scope="col"{kind}>{escape(head)}</th>' for head, kind in zip(table.heads, kinds, strict=True))
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f'<table class="sortable">{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, Number):
        return f'<td class="number" data-value="{cell.value:.6g}">{escape(cell.text)}</td>'
    return f"<td>{escape(cell)}</td>"
