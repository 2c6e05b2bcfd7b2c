"""How the result table looks: Markdown, an HTML fragment, and the terminal.

A view is long (one row a line), wide (methods x settings) or plain (a table of anything), and first of all a ``Grid``
of text cells; the three writers take rows or a grid. Numbers show two significant digits of their interval and the
value as many decimals; a published number stands as it was given.
"""

from __future__ import annotations

import html
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from jaxkit import check
from jaxkit.evaluation.table import Row, checked, name_of

MISSING = "missing"
LEGEND = "mean ± half width of the 95 % interval"
_MARKS = {"other setting": "†", "reported": "‡"}
_MEANING = {"†": "† published in another setting", "‡": "‡ published number from memory"}
_COLOURS = {"reproduced": "green", "above": "cyan", "below": "yellow", "missing": "dim", "reported": "dim"}


class Cell(NamedTuple):
    """One cell of a grid: its text, whether it is a number (aligned right), and the verdict that styles it."""

    text: str
    number: bool = False
    verdict: str = ""


class Grid(NamedTuple):
    """A table of text: title and note (each may be empty), a header, and a body of equal rows."""

    title: str
    header: tuple[str, ...]
    body: tuple[tuple[Cell, ...], ...]
    note: str = ""


def _decimals(half: float) -> int:
    """Decimals that show two significant digits of ``half`` > 0, at least 0."""
    return max(0, 1 - int(f"{half:.1e}".partition("e")[2]))


def format_number(value: float, half: float | None = None) -> str:
    """``value`` to the digits that its interval's half width justifies; without one, to four significant digits."""
    if not half or not math.isfinite(half):
        return f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e7 else f"{value:.0f}"
    decimals = _decimals(half)
    if decimals <= 6:
        return f"{value:.{decimals}f}"
    digits = 1 + (math.floor(math.log10(abs(value))) if value else 0) + decimals
    return f"{value:.{min(max(digits, 2), 7)}g}"


def _half(row: Row) -> float | None:
    return None if row.low is None or row.high is None else (row.high - row.low) / 2


def format_value(row: Row) -> str:
    """Our value: ``0.9731 ± 0.0012``; ``0.95 -0.03 +0.02`` where the interval is lopsided; the value alone without
    one."""
    if row.value is None:
        return MISSING
    half = _half(row)
    text = format_number(row.value, half)
    if half is None:
        return text
    below, above = row.value - row.low, row.high - row.value  # type: ignore[operator]
    if abs(below - above) > 0.05 * (below + above):
        return f"{text} -{format_number(below, half)} +{format_number(above, half)}"
    return f"{text} ± {format_number(half, half)}"


def format_published(row: Row) -> str:
    """The published number as it was given, or nothing."""
    return "" if row.published is None else f"{row.published:.12g}"


def long_view(rows: Iterable[Row]) -> Grid:
    """One line a row: published, ours with its interval, and the verdict. The column of the study is there where there
    are several."""
    rows = checked(rows)
    several = len({row.study for row in rows}) > 1
    header = ("setting", "method", "metric", "ours", "n", "published", "source", "verdict")
    body = []
    for row in rows:
        body.append(
            (
                *((Cell(row.study),) if several else ()),
                Cell(row.setting),
                Cell(row.method),
                Cell(row.metric),
                Cell(format_value(row), True, MISSING if row.value is None else ""),
                Cell(str(row.n) if row.n else "", True),
                Cell(format_published(row), True),
                Cell(row.tag),
                Cell(row.verdict, verdict=row.verdict),
            )
        )
    return Grid("", (("study",) if several else ()) + header, tuple(body), f"ours: {LEGEND}" if body else "")


def pivot(rows: Iterable[Row], metric: str) -> Grid:
    """The wide view of one metric: methods down, settings across, a cell ``value ± half width [published]``.

    Orders are those of first appearance. With several studies a column is named ``study / setting``. A cell that was
    not run says so; a combination that has no row is empty. † and ‡ mark published numbers of another setting and from
    memory.

    Raises:
      UsageError: no row has this metric.
    """
    rows = checked(rows)
    metric = check.choose("metric", metric, dict.fromkeys(row.metric for row in rows))
    rows = [row for row in rows if row.metric == metric]
    several = len({row.study for row in rows}) > 1
    column = lambda row: f"{row.study} / {row.setting}" if several else row.setting
    cells: dict[tuple[str, str], Cell] = {}
    notes = []
    for row in rows:
        if (row.method, column(row)) in cells:
            raise check.UsageError(f"{name_of(row)}: another row falls into the same cell; rename a study or a setting")
        mark = _MARKS.get(row.verdict, "") if row.published is not None else ""
        notes += [_MEANING[mark]] if mark else []
        published = "" if row.published is None else f" [{format_published(row)}{mark}]"
        cells[row.method, column(row)] = Cell(format_value(row) + published, True, row.verdict)
    columns = tuple(dict.fromkeys(column(row) for row in rows))
    methods = dict.fromkeys(row.method for row in rows)
    body = tuple((Cell(m), *(cells.get((m, c), Cell("", True)) for c in columns)) for m in methods)
    legend = LEGEND + (" [published]" if any(row.published is not None for row in rows) else "")
    return Grid(metric, ("method", *columns), body, "; ".join([legend, *dict.fromkeys(notes)]))


def plain_view(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Grid:
    """A table that sets nothing beside a published number: text, numbers, and None (an empty cell) as they are given.

    Whole numbers of five digits and more are grouped (``12,345``), other numbers have four significant digits.

    Raises:
      UsageError: there is no column, a row is longer or shorter than the header, or an entry is neither text nor a
        finite number nor None; the message begins with the title.
    """
    header = tuple(header)
    if not header:
        raise check.UsageError(f"table {title!r} has no column; give a header")
    body = []
    for place, row in enumerate(rows):
        if isinstance(row, str) or len(row) != len(header):
            found = f"is the text {row!r}" if isinstance(row, str) else f"has {len(row)} entries"
            raise check.UsageError(f"table {title!r}: row {place} {found}; the header has {len(header)}: {header}")
        body.append(tuple(_entry(f"table {title!r}: row {place}, {name}", x) for name, x in zip(header, row)))
    return Grid(title, header, tuple(body))


def _entry(name: str, value: Any) -> Cell:
    if value is None or isinstance(value, str):
        return Cell(value or "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise check.UsageError(f"{name} is {value!r}; give text, a number, or None")
    if not math.isfinite(value):
        raise check.UsageError(f"{name} is {value}; give None where there is no number")
    if isinstance(value, numbers.Integral):
        return Cell(f"{int(value):,}" if abs(int(value)) >= 10_000 else f"{int(value)}", True)
    return Cell(format_number(float(value)), True)


def _grid(table: Iterable[Row] | Grid) -> Grid:
    return table if isinstance(table, Grid) else long_view(table)


def _markdown_text(text: str) -> str:
    text = re.sub(r"([\\|*`])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def to_markdown(table: Iterable[Row] | Grid) -> str:
    """A GitHub-flavoured Markdown table, padded so that it also reads well as plain text; ends with a line end."""
    grid = _grid(table)
    lines = [[_markdown_text(text) for text in grid.header]]
    lines += [[_markdown_text(cell.text) for cell in row] for row in grid.body]
    right = [any(row[i].number for row in grid.body) for i in range(len(grid.header))]
    width = [max(3, *(len(line[i]) for line in lines)) for i in range(len(grid.header))]
    padded = [[t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, width, right, strict=True)] for line in lines]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(width, right, strict=True)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))
    title = f"**{_markdown_text(grid.title)}**\n\n" if grid.title else ""
    note = f"\n\n{_markdown_text(grid.note)}" if grid.note else ""
    return f"{title}{text}{note}\n"


def to_html(table: Iterable[Row] | Grid) -> str:
    """An HTML fragment of one ``<table class="results">``, every text escaped; styling is the page's.

    Classes: ``results`` (table), ``number`` (right-aligned cells), ``verdict`` and ``verdict-reproduced``,
    ``verdict-other-setting`` and so on (cells that carry a verdict).
    """
    grid = _grid(table)
    right = [any(row[i].number for row in grid.body) for i in range(len(grid.header))]
    caption = html.escape(": ".join(filter(None, (grid.title, grid.note))))
    out = ['<table class="results">', *([f"<caption>{caption}</caption>"] if caption else []), "<thead><tr>"]
    for text, number in zip(grid.header, right, strict=True):
        align = ' class="number"' if number else ""
        out.append(f'<th scope="col"{align}>{html.escape(text)}</th>')
    out.append("</tr></thead>\n<tbody>")
    for row in grid.body:
        cells = []
        for cell in row:
            names = ["number"] * cell.number
            names += ["verdict", "verdict-" + cell.verdict.replace(" ", "-")] if cell.verdict else []
            names_text = f' class="{html.escape(" ".join(names))}"' if names else ""
            cells.append(f"<td{names_text}>{html.escape(cell.text)}</td>")
        out.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*out, "</tbody></table>"]) + "\n"


def to_terminal(table: Iterable[Row] | Grid) -> Table:
    """A rich ``Table`` for ``rich.print``; the colour repeats the verdict, never carries it alone in the long view."""
    grid = _grid(table)
    text = lambda words, style="": Text(words, style=style) if words else None
    out = Table(
        title=text(grid.title, "bold"),
        caption=text(grid.note, "dim"),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for i, name in enumerate(grid.header):
        number = any(row[i].number for row in grid.body)
        # Where the terminal is narrow, cells wrap between words, and numbers not at all.
        words = " ".join([name, *(row[i].text for row in grid.body)]).split()
        least = min(max(map(len, words), default=1), 16)
        out.add_column(
            Text(name), justify="right" if number else "left", no_wrap=number, min_width=least, overflow="fold"
        )
    for row in grid.body:
        out.add_row(*(Text(cell.text, style=_COLOURS.get(cell.verdict, "")) for cell in row))
    return out
