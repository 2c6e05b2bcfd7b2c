"""What was measured, how sure it is, and how it stands beside the published number: metrics, tests, tables, figures."""

from jaxkit.evaluation.files import write_atomic
from jaxkit.evaluation.intervals import Interval, bootstrap_interval, mean_interval, wilson_interval
from jaxkit.evaluation.table import COLUMNS, FROM_MEMORY, VERDICTS, Row, csv_text, make_row, read_csv, to_csv, verdict
from jaxkit.evaluation.views import (
    Cell,
    Grid,
    format_number,
    format_published,
    format_value,
    long_view,
    pivot,
    to_html,
    to_markdown,
    to_terminal,
)

__all__ = [
    "COLUMNS",
    "FROM_MEMORY",
    "VERDICTS",
    "Cell",
    "Grid",
    "Interval",
    "Row",
    "bootstrap_interval",
    "csv_text",
    "format_number",
    "format_published",
    "format_value",
    "long_view",
    "make_row",
    "mean_interval",
    "pivot",
    "read_csv",
    "to_csv",
    "to_html",
    "to_markdown",
    "to_terminal",
    "verdict",
    "wilson_interval",
    "write_atomic",
]
