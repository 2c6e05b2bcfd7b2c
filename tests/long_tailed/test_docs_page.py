"""The page on long-tailed learning: it lists every method where it belongs, what it names exists, its blocks run."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from jaxkit import long_tailed

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "long_tailed.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def listed() -> dict[str, tuple[str, str]]:
    """Method -> (the heading that it stands under, its year), from the tables of the section on methods."""
    (section,) = re.findall(r"^## The methods\n(.*?)^## ", text(), re.MULTILINE | re.DOTALL)
    found, heading = {}, ""
    for line in section.splitlines():
        if line.startswith("### "):
            heading = line.removeprefix("### ").lower()
        elif row := re.match(r"\| `(\w+)` \| [^|]+ \| (\d{4}) \| [^|]+ \|$", line):
            assert row[1] not in found, f"{row[1]} is listed twice"
            found[row[1]] = (heading, row[2])
    return found


@pytest.mark.parametrize("name", sorted(long_tailed.METHODS))
def test_every_method_is_listed_where_it_belongs(name):
    method = long_tailed.METHODS[name]
    assert listed().get(name) == (method.categories[0], str(method.year))


def test_nothing_is_listed_that_is_not_there():
    assert listed().keys() <= long_tailed.METHODS.keys()


def test_what_the_page_names_exists():
    anchors = {re.sub(r"[^a-z -]", "", line.lower()).strip().replace(" ", "-") for line in headings()}
    links = set(re.findall(r"\]\(#([a-z-]+)\)", text()))
    assert links and links <= anchors
    parts = "long_tailed|representation|ensembles|data|evaluation|networks|supervised"
    named = re.findall(rf"`(?:jaxkit\.)?((?:{parts})\.[\w.]+)`", text())
    assert len(named) > 10
    for name in named:
        inside = name if not name.startswith(("representation", "ensembles")) else f"long_tailed.{name}"
        part, _, last = inside.rpartition(".")
        if part == "long_tailed" and last in long_tailed.METHODS:
            continue
        pkgutil.resolve_name(f"jaxkit.{inside}")  # raises where there is none


def headings() -> list[str]:
    return re.findall(r"^#+ (.+)$", text(), re.MULTILINE)


def test_the_blocks_of_the_page_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    printed = capsys.readouterr().out
    assert "cross-validated" in printed and "macro_accuracy" in printed
    assert names["better"].shape == (600, 3) and names["rows"].shape == (600,)
    # The made-up logits have the training prior in them, and rescue takes it out again.
    assert names["found"].change["macro_accuracy"].low > 0
    assert names["predicted"].shape == (len(names["test"]["y"]), 10)
