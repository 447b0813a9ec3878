"""Tables and pictures on one page that needs nothing else: no network, no other file."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from manifest_tables import Table

from valle.utils.plot import import_pyplot

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
img { max-width: 100%; height: auto; } .note { color: #555; }
"""


@dataclass
class Section:
    """A part of the page.

    Attributes:
      title: Its heading.
      note: What the reader sees there, in a sentence or two.
      tables: In their order; an empty one is left out.
      draw: Makes the matplotlib figure below them; none: there is none.
    """

    title: str
    note: str
    tables: Sequence[Table] = ()
    draw: Callable[[], Any] | None = None


def page(title: str, sections: Sequence[Section], with_pictures: bool = True) -> str:
    """The whole HTML document; without pictures it asks for no matplotlib."""
    name = html.escape(title)
    body = "\n".join(_section(section, with_pictures) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{name}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section, with_pictures: bool) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.note:
        parts.append(f'<p class="note">{html.escape(section.note)}</p>')
    parts += [_table(table) for table in section.tables if table.rows]
    if section.draw is not None and with_pictures:
        parts.append(f'<img alt="{html.escape(section.title)}" src="{_as_uri(section.draw())}">')
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(rows) + "\n</table>"


def _as_uri(figure: Any) -> str:
    """A figure as an SVG image inside the page; the figure is closed."""
    pyplot = import_pyplot()
    content = io.BytesIO()
    # the same corpus, the same bytes: no date, and names that do not change
    with pyplot.rc_context({"svg.hashsalt": "statistics"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()
