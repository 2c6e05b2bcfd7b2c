"""The plain view: a table of anything."""

import numpy as np
import pytest

from jaxkit import evaluation as ev
from jaxkit.check import UsageError


def test_entries_are_shown_by_their_kind():
    grid = ev.plain_view(
        "Models", ("name", "size"), [("a", 9999), ("b", np.int64(12345)), ("c", 0.123456), ("d", None)]
    )
    assert (grid.title, grid.header) == ("Models", ("name", "size"))
    assert [row[1] for row in grid.body] == [
        ev.Cell("9999", True),
        ev.Cell("12,345", True),
        ev.Cell("0.1235", True),
        ev.Cell(""),
    ]
    assert [row[0].text for row in grid.body] == list("abcd")
    assert ev.plain_view("", ["n"], [(-12345,), (np.float32(0.5),)]).body == (
        (ev.Cell("-12,345", True),),
        (ev.Cell("0.5", True),),
    )


def test_all_three_writers_take_it():
    grid = ev.plain_view("A <b>", ("x|y", "n"), [("one & two", 3), ("", 12)])
    assert ev.to_markdown(grid).splitlines() == [
        "**A &lt;b>**",
        "",
        "| x\\|y          |   n |",
        "| ------------- | --: |",
        "| one &amp; two |   3 |",
        "|               |  12 |",
    ]
    text = ev.to_html(grid)
    assert "<caption>A &lt;b&gt;</caption>" in text and '<td class="number">12</td>' in text
    assert ev.to_terminal(grid).row_count == 2
    assert ev.plain_view("empty", ["a", "b"], []).body == ()


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        ((), [], "table 'T' has no column"),
        (("a", "b"), [("x", 1), ("y",)], "table 'T': row 1 has 1 entries; the header has 2"),
        (("a", "b"), ["xy"], "table 'T': row 0 is the text 'xy'"),
        (("a", "b"), [("x", float("inf"))], "table 'T': row 0, b is inf; give None where there is no number"),
        (("a",), [(True,)], "row 0, a is True; give text, a number, or None"),
        (("a",), [([1],)], r"row 0, a is \[1\]; give text, a number, or None"),
    ],
)
def test_bad_tables_are_named(header, rows, says):
    with pytest.raises(UsageError, match=says):
        ev.plain_view("T", header, rows)
