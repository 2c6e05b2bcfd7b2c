"""The result table: published, ours with its interval, and the verdict stand in one row.

``table.csv`` is long form, one row per (study, setting, method, metric), columns as the fields of ``Row``. A metric
keeps its own unit (a fraction or per cent, as its name says); nothing here multiplies by 100. How rows look is
``views``.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

from jaxkit import check
from jaxkit.evaluation.files import write_atomic
from jaxkit.evaluation.intervals import finite_vector, mean_interval

FROM_MEMORY = "from memory"
VERDICTS = ("reproduced", "above", "below", "undecided", "other setting", "reported", "missing", "")
"""Every verdict:

* ``reproduced``: the published number lies inside our interval or within the stated tolerance of our value
* ``above``, ``below``: our value is larger or smaller than the published one (by number, not by merit)
* ``undecided``: one run and no tolerance, so nothing to judge by
* ``other setting``: data, network or budget differ; only the order of methods is compared
* ``reported``: the published number is from memory; shown and never asserted
* ``missing``: the cell was not run
* empty: no published number
"""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      study: the experiment.
      setting: data set, shift, size.
      method: what was trained.
      metric: what was measured; its unit is part of its name where it has one.
      value: our mean over runs; None where the cell was not run.
      low: lower end of the 95 % interval; None for a single run.
      high: upper end of the 95 % interval; None for a single run.
      n: the number of runs.
      published: the number in print, in the metric's unit; None where there is none.
      tag: where the published number comes from (paper, table), or ``from memory``.
      verdict: one of ``VERDICTS``.
    """

    study: str
    setting: str
    method: str
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    published: float | None = None
    tag: str = ""
    verdict: str = "missing"


COLUMNS = Row._fields
_NUMBERS = ("value", "low", "high", "published")


def name_of(row: Row) -> str:
    """A row's name in errors: study / setting / method / metric."""
    return " / ".join((row.study, row.setting, row.method, row.metric))


def verdict(
    value: SupportsFloat | None,
    low: SupportsFloat | None,
    high: SupportsFloat | None,
    published: SupportsFloat | None,
    *,
    tag: str = "",
    tolerance: SupportsFloat | None = None,
    comparable: bool = True,
) -> str:
    """Our number against the published one, in a word of ``VERDICTS``.

    Args:
      value: our mean; None where the cell was not run.
      low: lower end of its interval; None or nan where there is none.
      high: upper end of its interval; None or nan where there is none.
      published: the number in print, or None.
      tag: where that comes from; ``from memory`` anywhere in it gives ``reported``.
      tolerance: how far apart (in the metric's unit) still counts as reproduced, where the study states it.
      comparable: False where data, network or budget differ from the paper's.
    """
    if value is None:
        return "missing"
    if published is None:
        return ""
    if FROM_MEMORY in tag.lower():
        return "reported"
    if not comparable:
        return "other setting"
    ours, theirs = float(value), float(published)
    # Metrics are float32, and |0.93 - 0.92| is not <= 0.01 in binary: equality up to one part in a million.
    slack = 1e-6 * max(abs(ours), abs(theirs), 1e-300)
    ends = (math.nan, math.nan) if low is None or high is None else (float(low), float(high))
    if ends[0] - slack <= theirs <= ends[1] + slack:
        return "reproduced"
    if tolerance is not None and abs(ours - theirs) <= check.number("tolerance", float(tolerance), 0.0) + slack:
        return "reproduced"
    if tolerance is None and math.isnan(ends[0] + ends[1]):
        return "undecided"
    return "above" if ours > theirs else "below"


def make_row(
    study: str,
    setting: str,
    method: str,
    metric: str,
    values: Any,
    published: SupportsFloat | None = None,
    tag: str = "",
    tolerance: SupportsFloat | None = None,
    comparable: bool = True,
    *,
    interval: tuple[SupportsFloat, SupportsFloat] | None = None,
) -> Row:
    """A row from the values of independent runs: their mean, its 95 % t-interval, and the verdict.

    Args:
      study: the experiment.
      setting: data set, shift, size.
      method: what was trained.
      metric: what was measured.
      values: one number per run (a number, a sequence or an array); None or empty where the cell was not run.
      published: the number in print, in the same unit.
      tag: where it comes from; a published number needs one.
      tolerance: see ``verdict``.
      comparable: see ``verdict``.
      interval: 95 % ends from elsewhere (bootstrap, Wilson) instead of the t-interval.

    Raises:
      UsageError: a value is nan or infinite (the row is named), or a published number has no tag.
    """
    cell = Row(study, setting, method, metric)
    name = name_of(cell)
    if published is not None:
        published = float(finite_vector(f"{name}: published", float(published))[0])
        if not tag:
            raise check.UsageError(f"{name}: a published number needs a tag that says where it stands, as 'Table 2'")
    if values is None or (hasattr(values, "__len__") and len(values) == 0):
        return cell._replace(published=published, tag=tag)
    value, low, high, n = mean_interval(values, name=name)
    if interval is not None:
        low, high = (float(end) for end in interval)
        if low > high:
            raise check.UsageError(f"{name}: interval must be (low, high), got ({low:g}, {high:g})")
    word = verdict(value, low, high, published, tag=tag, tolerance=tolerance, comparable=comparable)
    row = Row(study, setting, method, metric, value, low, high, n, published, tag, word)
    return row._replace(low=None, high=None) if math.isnan(low + high) else row


def checked(rows: Iterable[Row]) -> list[Row]:
    """The rows as a list; UsageError names a row with a number that is not finite, an unknown verdict, or a twin."""
    listed, seen = list(rows), set()
    for row in listed:
        for column in _NUMBERS:
            number = getattr(row, column)
            if number is not None and not math.isfinite(number):
                raise check.UsageError(f"{name_of(row)}: {column} is {number}; it must be finite, or None for none")
        if row.verdict not in VERDICTS:
            known = ", ".join(VERDICTS[:-1])
            raise check.UsageError(f"{name_of(row)}: unknown verdict {row.verdict!r}; known: {known}")
        if row[:4] in seen:
            raise check.UsageError(f"{name_of(row)}: two rows have this name; give each setting its own")
        seen.add(row[:4])
    return listed


def csv_text(rows: Iterable[Row]) -> str:
    """The rows as CSV text: RFC 4180 quoting, line ends ``\\n``, numbers in the shortest form that reads back equal."""
    lines = [",".join(COLUMNS)]
    for row in checked(rows):
        fields = (getattr(row, column) for column in COLUMNS)
        lines.append(",".join(map(_field, fields)))
    return "\n".join(lines) + "\n"


def _field(value: str | SupportsFloat | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value) if isinstance(value, int) else repr(float(value))
    # csv.writer before Python 3.13 leaves a lone carriage return unquoted, which its reader takes for a line end.
    return '"' + value.replace('"', '""') + '"' if any(c in value for c in ',"\r\n') else value


def to_csv(rows: Iterable[Row], path: str | os.PathLike) -> Path:
    """Write ``table.csv`` atomically, making its folders; ``read_csv`` gives the same rows back exactly."""
    return write_atomic(path, csv_text(rows))


def read_csv(path: str | os.PathLike) -> list[Row]:
    """Read what ``to_csv`` wrote.

    Raises:
      UsageError: no such file, other columns, or a line that is not a row (its number is named).
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except FileNotFoundError:
        raise check.UsageError(f"no table at {os.fspath(path)}; give the table.csv of a run folder") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise check.UsageError(f"{os.fspath(path)} is not a table in CSV: {error}") from None
    if not lines or tuple(lines[0]) != COLUMNS:
        found = ", ".join(lines[0])[:80] if lines else "nothing"
        raise check.UsageError(f"{os.fspath(path)}: the first line must be {','.join(COLUMNS)}, found {found}")
    rows = []
    for at, line in enumerate(lines[1:], start=2):
        if len(line) != len(COLUMNS):
            raise check.UsageError(f"{os.fspath(path)}, record {at}: {len(line)} fields, expected {len(COLUMNS)}")
        fields: dict[str, Any] = dict(zip(COLUMNS, line, strict=True))
        try:
            fields |= {column: float(fields[column]) if fields[column] else None for column in _NUMBERS}
            fields["n"] = int(fields["n"])
        except ValueError as error:
            raise check.UsageError(f"{os.fspath(path)}, record {at}: {error}") from None
        rows.append(Row(**fields))
    return checked(rows)
