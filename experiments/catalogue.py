"""Which studies there are, read from their source text: listing them imports none of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

from jaxkit import check


class Entry(NamedTuple):
    """One study as the listing shows it; ``name`` is the module: ``python -m experiments.<name>``."""

    name: str
    title: str
    one_line: str


def studies(folder: Path | None = None) -> dict[str, Entry]:
    """Every module in the folder with a line ``STUDY = Study(...)`` whose name, title and one_line are literal text."""
    found = {}
    for path in sorted((folder or Path(__file__).parent).glob("*.py")):
        words = _literals(ast.parse(path.read_text(encoding="utf-8")))
        if words is not None:
            found[path.stem] = Entry(path.stem, words.get("title", path.stem), words.get("one_line", ""))
    return found


def _literals(tree: ast.Module) -> dict[str, str] | None:
    for node in tree.body:
        names = (
            [target.id for target in node.targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
        if "STUDY" in names and isinstance(node.value, ast.Call):
            values = {word.arg: word.value for word in node.value.keywords if word.arg}
            return {name: value.value for name, value in values.items() if isinstance(value, ast.Constant)}
    return None


def find(name: str) -> Entry:
    """The study that is meant by ``name``; an unknown one raises UsageError with the nearest."""
    known = studies()
    return known[check.choose("study", name, known)]
