"""The page on class-incremental learning lists every method where it belongs, what it names exists, its blocks run."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from jaxkit import class_incremental

PAGE = Path(__file__).parents[2] / "docs" / "class_incremental.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def listed() -> dict[str, tuple[str, str]]:
    """Method -> (the heading that it stands under, its year), from the tables of the section on methods."""
    section, found, heading = text().split("\n## The methods\n")[1], {}, ""
    for line in section.splitlines():
        if line.startswith("### "):
            heading = line.removeprefix("### ").lower()
        elif row := re.match(r"\| `(\w+)` \| [^|]+ \| (\d{4}) \| [^|]+ \|$", line):
            assert row[1] not in found, f"{row[1]} is listed twice"
            found[row[1]] = (heading, row[2])
    return found


def test_every_method_is_listed_where_it_belongs_and_nothing_else():
    methods = class_incremental.METHODS
    assert listed() == {name: (method.categories[0], str(method.year)) for name, method in methods.items()}


def test_what_the_page_names_exists():
    headings = re.findall(r"^#+ (.+)$", text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", line.lower()).strip().replace(" ", "-") for line in headings}
    links = set(re.findall(r"\]\(#([a-z-]+)\)", text()))
    assert links and links <= anchors
    named = re.findall(r"`(?:jaxkit\.)?((?:class_incremental|budget|losses|networks)\.[\w.]+)`", text())
    assert len(named) > 3
    for name in named:
        pkgutil.resolve_name(f"jaxkit.{'class_incremental.' * name.startswith('budget')}{name}")
    for name in re.findall(r"`(\w+)\((?:[^`]*)\)`", text()):
        assert hasattr(class_incremental, name), name


def test_the_blocks_of_the_page_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["603", "7431"]  # as in print
    assert set(names["predicted"].tolist()) <= set(range(6))
    assert names["curve"].seen.shape == (5,)
    assert names["steps"] == sum(stage.steps for stage in names["plan"])  # by the recipe
