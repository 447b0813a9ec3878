"""One page that needs nothing else: tables, pictures and sounds, no network, no other file."""

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from valle.utils.plot import import_pyplot
from valle.utils.tables import Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, .words th, .words td { text-align: left; padding-left: 0; }
td span { display: inline-block; white-space: nowrap; }
.words td + td { overflow-wrap: anywhere; } .words td:first-child { white-space: nowrap; }
img { max-width: 100%; height: auto; } .note { color: #555; max-width: 46rem; }
nav a { margin-right: 1rem; white-space: nowrap; } a { color: #1c5d99; }
"""


@dataclass
class Section:
    """A part of the page.

    Attributes:
      title: Its heading.
      note: What the reader sees there, in a sentence or two.
      tables: In their order; an empty one is left out.
      draw: Makes the matplotlib figure below them; none: there is none.
      body: HTML that comes last; whoever wrote it has escaped what it holds.
      in_words: The tables hold words, and no numbers that stand below each other.
    """

    title: str
    note: str
    tables: Sequence[Table] = ()
    draw: Callable[[], Any] | None = None
    body: str = ""
    in_words: bool = False


def page(
    title: str,
    sections: Sequence[Section],
    with_pictures: bool = True,
    style: str = "",
    script: str = "",
    with_contents: bool = False,
) -> str:
    """The whole HTML document.

    Args:
      title: Of the page.
      sections: In their order.
      with_pictures: Without them it asks for no matplotlib.
      style: CSS of this page alone.
      script: JavaScript that is run at the end.
      with_contents: Begin with links to the sections.
    """
    name = html.escape(title)
    body = "\n".join(_section(section, with_pictures) for section in sections)
    contents = f"{_contents(sections)}\n" if with_contents else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{name}</h1>\n{contents}{body}\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def data_uri(content: bytes, media_type: str) -> str:
    """A file inside the page, as the address of a picture or a sound."""
    return f"data:{media_type};base64," + base64.b64encode(content).decode()


def _contents(sections: Sequence[Section]) -> str:
    links = (f'<a href="#{_anchor(s.title)}">{html.escape(s.title)}</a>' for s in sections)
    return f'<nav aria-label="Contents">{" ".join(links)}</nav>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _section(section: Section, with_pictures: bool) -> str:
    title = html.escape(section.title)
    parts = [f'<h2 id="{_anchor(section.title)}">{title}</h2>']
    if section.note:
        parts.append(f'<p class="note">{html.escape(section.note)}</p>')
    kind = "words" if section.in_words else "numbers"
    parts += [_table(table, title, kind) for table in section.tables if table.rows]
    if section.draw is not None and with_pictures:
        parts.append(f'<img alt="{title}" src="{_as_uri(section.draw())}">')
    return "\n".join([*parts, *([section.body] if section.body else [])])


def _table(table: Table, name: str, kind: str) -> str:
    """It scrolls by itself where the window is narrow, by keys as well."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    rows = (
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">\n'
        f'<table class="{kind}">\n<tr>{head}</tr>\n' + "\n".join(rows) + "\n</table>\n</div>"
    )


def _cell(text: str) -> str:
    """What is in brackets at the end stays on one line, if need be on the next."""
    return re.sub(r" (\([^()]*\))$", r" <span>\1</span>", html.escape(text))


def _as_uri(figure: Any) -> str:
    """A figure as an SVG image; the figure is closed."""
    pyplot = import_pyplot()
    content = io.BytesIO()
    # the same figures, the same bytes: no date, and names that do not change
    with pyplot.rc_context({"svg.hashsalt": "valle"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return data_uri(content.getvalue(), "image/svg+xml")
