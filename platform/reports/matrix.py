"""A matrix as a chart: pairings of attentions, confusions, importance over frames and joints."""

from __future__ import annotations

from collections.abc import Sequence

from starlab.platform.reports.charts import Words
from starlab.platform.reports.svg import WIDTH_PX, Cell, Chart, Number, Table, bar, shortened, text, text_width


def matrix_chart(
    words: Words,
    row_names: Sequence[str],
    column_names: Sequence[str],
    cells: Sequence[Sequence[tuple[float, str] | None]],
    *,
    best: bool = False,
) -> Chart:
    """Draw a matrix whose cells are shaded by a share in [0, 1] and carry a text; None leaves a cell empty.

    Args:
        best: Whether a frame marks the cell with the largest share.
    """
    row_labels = [shortened(name, 18) for name in row_names]
    column_labels = [shortened(name, 18) for name in column_names]
    left = max(map(text_width, row_labels)) + 26
    size = max(15.0, min(64.0, (WIDTH_PX - left - 4) / len(column_names)))
    height = min(size, 40.0)
    turned = max(map(text_width, column_labels)) > size
    top = (0.75 * max(map(text_width, column_labels)) + 26) if turned else 38.0
    largest = max((cell[0] for row in cells for cell in row if cell), default=0.0)
    parts = [text(0, 12, f"{words.y} ↓   {words.x} →", "label")]
    for column, label in enumerate(column_labels):
        middle = left + (column + 0.5) * size
        parts.append(
            text(middle + (4 if turned else 0), top - 6, label, "tick", "start" if turned else "middle", -48 if turned else 0)
        )
    for row, label in enumerate(row_labels):
        y = top + row * height
        parts.append(text(left - 8, y + height / 2 + 4, label, "tick", "end"))
        for column, cell in enumerate(cells[row]):
            if cell is None:
                continue
            share, says = cell
            x, tip = left + column * size, f"{row_names[row]}, {column_names[column]}: {says}"
            framed = " best" if best and share == largest else ""
            parts.append(bar(x, y, size - 1.5, height - 1.5, f"heat{framed}", tip, max(0.04, min(1.0, share))))
            if says and text_width(says) * 0.9 < size:
                parts.append(
                    text(x + size / 2 - 0.75, y + height / 2 + 3.5, says, "cell over" if share > 0.5 else "cell", "middle")
                )
    drawn_width = left + size * len(column_names) + (0.7 * text_width(column_labels[-1]) if turned else 0)
    table = Table(
        (f"{words.y} ↓ {words.x} →", *column_names),
        tuple(_matrix_row(name, row) for name, row in zip(row_names, cells, strict=True)),
    )
    return Chart(
        words.title, words.description, max(WIDTH_PX, drawn_width), top + height * len(row_names) + 8, "".join(parts), table
    )


def _matrix_row(name: str, row: Sequence[tuple[float, str] | None]) -> tuple[Cell, ...]:
    return (name, *("" if cell is None else Number(cell[1], cell[0]) for cell in row))
