"""Tables as they are printed: columns in line for a terminal, Markdown for a document."""

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Cells as they are printed; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_text(table: Table) -> str:
    """Columns in line: the first to the left, numbers to the right."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in lines
    )


def as_markdown(table: Table) -> str:
    """As documents and issue trackers read it."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
