"""Text tables: the first line names the columns; comma, semicolon or tab. What is wrong is said with its line."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxkit import check


def column_of(names: Sequence[str], wanted: str, path: Path) -> int:
    """The place of the column called ``wanted``; UsageError with the nearest names otherwise."""
    if wanted in names:
        return names.index(wanted)
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(names[:12])}"
    raise check.UsageError(f"{path} has no column {wanted!r}; {hint}")


def number_of(text: str) -> float:
    """The number that a cell holds; nan where it holds none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_table(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """(column names, cells, line number of each row) of a text table in UTF-8.

    Raises:
      UsageError: it cannot be read, is empty, has no line of names, a name twice, or rows of another length.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise check.UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise check.UsageError(f"{path} cannot be read as UTF-8 text: {error}") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        read = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise check.UsageError(
            f"{path} cannot be read as a text table, near line {reader.line_num}: {error}; "
            "check that every quotation mark is closed"
        ) from None
    lines = [(number, row) for number, row in read if any(row)]
    if not lines:
        raise check.UsageError(f"{path} is empty; expected a line of column names and one line per row")
    names = lines[0][1]
    if all(not math.isnan(number_of(cell)) for cell in names):
        raise check.UsageError(f"{path} has no column names; its first line is numbers ({', '.join(names[:4])}, ...)")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise check.UsageError(f"{path} has the column {twice!r} twice; give each column its own name")
    if len(lines) == 1:
        raise check.UsageError(f"{path} has column names and no rows")
    for number, row in lines[1:]:
        if len(row) != len(names):
            raise check.UsageError(
                f"{path} line {number} has {len(row)} cells, expected {len(names)} as in its first line"
            )
    return names, [row for _, row in lines[1:]], [number for number, _ in lines[1:]]


def numbers_of(cells: Sequence[str], name: str, path: Path, lines: Sequence[int], mend: str) -> np.ndarray:
    """A column as float64; UsageError with the line of the first cell that holds no finite number, and ``mend``."""
    values = np.asarray([number_of(cell) for cell in cells], np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise check.UsageError(
            f"{path} line {lines[bad[0]]}: column {name!r} holds {cells[bad[0]]!r}, expected a number "
            f"({bad.size} such cells); {mend}"
        )
    return values


def is_whole(cell: str) -> bool:
    """Whether a cell is written as a whole number."""
    return cell.removeprefix("-" if cell[:1] == "-" else "+").isdecimal()
