import csv
import html.parser
import math
import os
import stat

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import rich.console

from jaxkit import evaluation as ev
from jaxkit.check import UsageError

# Five runs with mean 0.93 and standard deviation 0.01: t_{4, 0.975} = 2.776 (any table).
RUNS = 0.93 + 0.01 * np.array([-1.0, 1.0, -1.0, 1.0, 0.0])
HALF = 2.776445 * 0.01 / math.sqrt(5)


def row(values=RUNS, setting="digits", method="erm", metric="accuracy", **settings):
    return ev.make_row("first steps", setting, method, metric, values, **settings)


def test_make_row_computes_mean_and_t_interval():
    made = row(published=0.935, tag="Table 2")
    assert made[:4] == ("first steps", "digits", "erm", "accuracy")
    assert made.n == 5 and made.tag == "Table 2" and made.verdict == "reproduced"
    np.testing.assert_allclose([made.value, made.low, made.high], [0.93, 0.93 - HALF, 0.93 + HALF], rtol=1e-6)
    assert all(type(number) is float for number in (made.value, made.low, made.high, made.published))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, ""),
        ({"published": 0.93 + 0.99 * HALF}, "reproduced"),
        ({"published": 0.93 + 1.01 * HALF}, "below"),
        ({"published": 0.93 - 1.01 * HALF}, "above"),
        ({"published": 0.95, "tolerance": 0.02}, "reproduced"),
        ({"published": 0.96, "tolerance": 0.02}, "below"),
        ({"published": 0.93, "comparable": False}, "other setting"),
        ({"published": 0.93, "tag": "from memory"}, "reported"),
        ({"published": 0.5, "tag": "From memory: Table 1", "comparable": False}, "reported"),
        ({"published": 0.93, "values": None}, "missing"),
        ({"published": 0.93, "values": []}, "missing"),
        ({"values": None}, "missing"),
        ({"values": 0.93}, ""),
        ({"values": 0.93, "published": 0.92}, "undecided"),
        ({"values": 0.93, "published": 0.92, "tolerance": 0.01}, "reproduced"),
        ({"values": 0.93, "published": 0.95, "tolerance": 0.01}, "below"),
        ({"values": np.float32([0.93, 0.93]), "published": 0.93}, "reproduced"),
        ({"published": 0.97, "interval": (0.9, 0.98)}, "reproduced"),
    ],
)
def test_verdict(settings, expected):
    made = row(**({"tag": "Table 1"} | settings))
    assert made.verdict == expected
    assert made.verdict in ev.VERDICTS


def test_missing_cell_has_no_numbers_of_ours_and_one_run_no_interval():
    assert row(None, published=0.9, tag="Table 1") == ev.Row(
        "first steps", "digits", "erm", "accuracy", None, None, None, 0, 0.9, "Table 1", "missing"
    )
    single = row([0.5])
    assert (single.value, single.low, single.high, single.n) == (0.5, None, None, 1)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: row([0.9, math.nan]), "first steps / digits / erm / accuracy: entry 1 of 2 is nan"),
        (lambda: row([0.9, math.inf]), "is inf"),
        (lambda: row(published=0.9), "needs a tag"),
        (lambda: row(published=math.nan, tag="Table 1"), "accuracy: published"),
        (lambda: row(["high"]), "must be numbers"),
        (lambda: row(interval=(1.0, 0.0)), "interval must be"),
        (lambda: row(published=0.9, tag="T", tolerance=-1.0), "tolerance must lie"),
        (lambda: ev.csv_text([row(), row()]), "two rows have this name"),
        (lambda: ev.to_markdown([row()._replace(low=math.nan)]), "low is nan"),
        (lambda: ev.to_html([row()._replace(verdict="great")]), "unknown verdict 'great'"),
        (lambda: ev.pivot([row()], "acuracy"), "did you mean 'accuracy'"),
    ],
)
def test_mistakes_are_one_line_that_names_the_row(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


FLOATS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.builds(
    ev.Row,
    *(TEXTS, TEXTS, TEXTS, TEXTS, FLOATS, FLOATS, FLOATS),
    *(st.integers(0, 10**9), FLOATS, TEXTS, st.sampled_from(ev.VERDICTS)),
)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(rows=st.lists(ROWS, max_size=4, unique_by=lambda row: row[:4]))
@hypothesis.example(rows=[ev.Row("a,b", 'say "x"', "carriage\rreturn", "two\r\nlines\n", 0.1 + 0.2, -0.0, 5e-324, 3)])
def test_csv_round_trip_is_exact(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round" / "table.csv"
    assert ev.to_csv(rows, path) == path
    again = ev.read_csv(path)
    assert again == rows
    assert repr(again) == repr(rows)  # tells -0.0 from 0.0
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]  # no temporary file stays


def test_csv_has_the_columns_of_the_design(tmp_path):
    path = ev.to_csv([row(published=0.935, tag="Table 2"), row(None, setting="mnist")], tmp_path / "deep" / "table.csv")
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    names = "study setting method metric value low high n published tag verdict".split()
    assert list(read[0]) == names == list(ev.COLUMNS)
    assert float(read[0]["value"]) == row().value and read[0]["verdict"] == "reproduced"
    assert read[1]["value"] == read[1]["low"] == read[1]["published"] == "" and read[1]["verdict"] == "missing"


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no table at"),
        (b"", "found nothing"),
        (b"a,b\n1,2\n", "found a, b"),
        (b"\xff\xfe\x00", "not a table"),
        ((",".join(ev.COLUMNS) + "\nx,y\n").encode(), "record 2: 2 fields"),
        ((",".join(ev.COLUMNS) + "\ns,s,m,m,high,,,1,,,\n").encode(), "record 2: could not convert"),
        ((",".join(ev.COLUMNS) + "\ns,s,m,m,nan,,,1,,,\n").encode(), "value is nan"),
    ],
)
def test_read_csv_says_what_is_wrong(tmp_path, content, words):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        ev.read_csv(path)


def test_write_is_atomic(tmp_path, monkeypatch):
    path = ev.write_atomic(tmp_path / "a.txt", "old\r\n")
    assert path.read_bytes() == b"old\r\n"
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)

    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        ev.write_atomic(path, "new")
    assert path.read_bytes() == b"old\r\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "plain.txt"]


@pytest.mark.parametrize(
    "value, half, text",
    [
        (0.93123, 0.0124, "0.931"),
        (0.9312, 0.0996, "0.93"),
        (97.314, 0.21, "97.31"),
        (97.314, 3.0, "97.3"),
        (1234.5678, 56.0, "1235"),
        (1234567.0, 5600.0, "1234567"),
        (3.21e-9, 1.1e-10, "3.21e-09"),
        (0.0, 1e-9, "0"),
        (0.98765432, None, "0.9877"),
        (0.98765432, 0.0, "0.9877"),
        (123456.0, None, "123456"),
        (-0.5, 0.1, "-0.50"),
    ],
)
def test_digits_follow_the_interval(value, half, text):
    assert ev.format_number(value, half) == text


def test_format_value():
    assert ev.format_value(row()) == "0.930 ± 0.012"
    assert ev.format_value(row(None)) == "missing"
    assert ev.format_value(row(0.5)) == "0.5"
    assert ev.format_value(row(0.97, interval=(0.92, 0.99))) == "0.970 -0.050 +0.020"
    assert ev.format_value(row([0.5, 0.5])) == "0.5 ± 0"


TABLE = [
    row(published=0.935, tag="Table 2"),
    row(method="jtt", published=0.99, tag="from memory"),
    row(setting="mnist", published=0.98, tag="Table 3", comparable=False),
    row(None, setting="mnist", method="jtt"),
    row([0.1, 0.2], metric="ece"),
]


def test_pivot_is_methods_by_settings():
    grid = ev.pivot(TABLE, "Accuracy")
    assert grid.title == "accuracy" and grid.header == ("method", "digits", "mnist")
    assert [[cell.text for cell in line] for line in grid.body] == [
        ["erm", "0.930 ± 0.012 [0.935]", "0.930 ± 0.012 [0.98†]"],
        ["jtt", "0.930 ± 0.012 [0.99‡]", "missing"],
    ]
    assert "† published in another setting" in grid.note and "‡ published number from memory" in grid.note
    other = row()._replace(study="second")
    assert ev.pivot([row(), other], "accuracy").header == ("method", "first steps / digits", "second / digits")
    alone = ev.pivot([row(), row(setting="mnist", method="jtt")], "accuracy")
    assert [cell.text for cell in alone.body[0]] == ["erm", "0.930 ± 0.012", ""] and "[published]" not in alone.note


def test_markdown_is_a_table_with_escaped_text():
    text = ev.to_markdown([row(method="a|b <i>*c*\nd", published=0.935, tag="Table 2")])
    lines = text.splitlines()
    assert lines[3:] == ["", "ours: mean ± half width of the 95 % interval"]
    assert len({len(line) for line in lines[:3]}) == 1
    header = "| setting | method | metric | ours | n | published | source | verdict |"
    assert lines[0].split() == header.split()
    assert r"a\|b &lt;i>\*c\* d" in lines[2] and "| 0.930 ± 0.012 |" in lines[2] and "| reproduced |" in lines[2]
    assert set(lines[1]) <= set("|-: ")
    wide = ev.to_markdown(ev.pivot(TABLE, "accuracy"))
    assert wide.startswith("**accuracy**\n\n| method") and "0.930 ± 0.012 [0.935]" in wide
    assert "study" in ev.to_markdown([row(), row()._replace(study="b")]).splitlines()[0]
    assert ev.to_markdown([]).count("\n") == 2


class _Balance(html.parser.HTMLParser):
    """Collects tags and text of a fragment and asserts that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.classes = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append(tag)
        self.classes |= set((dict(attrs).get("class") or "").split())

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("view", [lambda rows: rows, lambda rows: ev.pivot(rows, rows[0].metric)])
def test_html_is_escaped_and_balanced(view):
    evil = "<script>alert(\"1\")</script> & 'x'"
    text = ev.to_html(view([row(setting=evil, method=evil, metric=evil, published=0.935, tag=evil)]))
    parser = _Balance()
    parser.feed(text)
    assert parser.open == [] and parser.seen.count("table") == 1
    assert set(parser.seen) <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert evil in parser.text
    assert {"results", "number", "verdict", "verdict-reproduced"} <= parser.classes


def test_html_class_of_a_verdict_of_two_words():
    assert 'class="number verdict verdict-other-setting"' in ev.to_html(ev.pivot(TABLE, "accuracy"))


@pytest.mark.parametrize("view", [lambda rows: rows, lambda rows: ev.pivot(rows, "accuracy")])
def test_terminal_shows_text_not_markup(view):
    console = rich.console.Console(width=200, record=True, file=open(os.devnull, "w"))
    console.print(ev.to_terminal(view([row(method="[bold]erm[/bold]", published=0.935, tag="Table 2")])))
    shown = console.export_text()
    assert "[bold]erm[/bold]" in shown and "0.935" in shown


def test_terminal_of_80_columns_keeps_numbers_whole():
    console = rich.console.Console(width=80, record=True, file=open(os.devnull, "w"))
    console.print(ev.to_terminal([row(published=0.935, tag="Table 2, left half, page 11")]))
    lines = console.export_text().splitlines()
    assert any("0.930 ± 0.012" in line and "0.935" in line and "reproduced" in line for line in lines)
    assert max(map(len, lines)) <= 80
