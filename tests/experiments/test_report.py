"""What a study shows beside its result table: further tables and remarks, in every place where a reader looks."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from experiments import report, runner
from experiments.runner import Table
from jaxkit import check

spec = importlib.util.spec_from_file_location("tiny_study", Path(__file__).with_name("tiny_study.py"))
tiny = importlib.util.module_from_spec(spec)
sys.modules["tiny_study"] = tiny
spec.loader.exec_module(tiny)

REMARK = "The sum is [bold] arithmetic, and not <magic>."


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINY", raising=False)
    monkeypatch.delenv("TINY_METHOD", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def go(**changes):
    return runner.run(tiny.STUDY._replace(**changes), ["--out", "here"])


def in_order(text, *parts):
    places = [text.index(part) for part in parts]
    return places == sorted(places)


def test_further_tables_and_remarks_stand_under_the_result_table(capsys):
    assert go() == 0
    out = capsys.readouterr().out
    assert in_order(out, "95 % interval", REMARK, "What the <names> hold", "50,005", "here/tables/letters.csv")
    text = Path("here/table.md").read_text()
    assert in_order(text, "# A tiny study", "**value**", "| verdict", REMARK, "**What the &lt;names> hold**", "50,005")
    page = Path("here/report.html").read_text()
    remark = REMARK.replace("<", "&lt;").replace(">", "&gt;")
    assert in_order(page, "95 % interval", remark, "<b>Missing</b>", "<caption>What the &lt;names&gt; hold</caption>")
    section = json.loads(Path("here/report.json").read_text())
    assert section["remarks"] == [REMARK]
    assert [part["file"] for part in section["tables"]] == ["tables/letters.csv"]
    assert section["tables"][0]["html"] in page


def test_the_csv_of_a_further_table_has_the_numbers_in_full():
    assert go() == 0
    with open("here/tables/letters.csv", newline="") as file:
        header, alpha, beta = csv.reader(file)
    assert header == ["method", "letters", "many", "a third", "more"]
    assert alpha[:3] == ["alpha", "5", "50005"] and float(alpha[3]) == 5 / 3 and alpha[4] == ""
    assert beta[4] == "a | b"


def test_a_study_without_them_leaves_no_trace_of_them(capsys):
    assert go(tables=None, remarks=None) == 0
    assert not Path("here/tables").exists() and "magic" not in Path("here/report.html").read_text()
    assert Path("here/table.md").read_text().endswith("|\n\nours: mean ± half width of the 95 % interval\n")


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("odd", Table("Odd", ("a", "b"), ((1, 2), (3,))), "table 'odd': row 1 has 1 entries; the header has 2"),
        ("gap", Table("Gap", ("a",), ((float("nan"),),)), "table 'gap': row 0, a is nan; give None"),
        ("../up", Table("Up", ("a",), ()), "table '../up': the name is that of a file"),
    ],
)
def test_a_bad_table_is_named_and_nothing_is_written(name, given, says, capsys):
    assert go(tables=lambda config, outcomes: {name: given}) == 2
    errors = capsys.readouterr().err.strip()
    assert says in errors and "\n" not in errors
    assert not Path("here/table.csv").exists() and not Path("here/tables").exists()


def test_remarks_are_a_list():
    with pytest.raises(check.UsageError, match="must be a list of sentences"):
        report.checked_remarks("One sentence.")
