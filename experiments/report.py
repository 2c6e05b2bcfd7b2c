"""What a run leaves to read: table.md, table.csv, tables/*.csv, figures/*.png, report.json and the page report.html.

The page is one self-contained file: figures are embedded, nothing is loaded from anywhere, it opens without a network.
A page shows one section per study, so that one study's page and the tour's are the same template.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments import run_folder
from jaxkit import check
from jaxkit.evaluation import figures as drawing
from jaxkit.evaluation import table, views
from jaxkit.evaluation.files import write_atomic

TEMPLATE = Path(__file__).with_name("report.html")


def write(study: Any, config: Any, folder: Path, outcomes: Sequence[Any], show: bool = True) -> dict[str, Any]:
    """Write the tables, the figures and the page of a run; show the table and where all lies; return the section."""
    rows = study.rows(config, outcomes)
    remarks = checked_remarks(study.remarks(config, outcomes)) if study.remarks else []
    tables = study.tables(config, outcomes) if study.tables else {}
    further = {name: further_view(name, given) for name, given in tables.items()}
    table.to_csv(rows, folder / "table.csv")
    metrics = [metric for metric in dict.fromkeys(row.metric for row in rows) if metric in (study.wide or (metric,))]
    wide = [views.pivot(rows, metric) for metric in metrics]
    for name, given in tables.items():
        write_atomic(folder / "tables" / f"{name}.csv", csv_text(given))
    notes = study.notes(config, outcomes) if study.notes else ""
    parts = [f"# {study.title}", notes, *(views.to_markdown(grid) for grid in [*wide, rows]), *remarks]
    parts += [views.to_markdown(grid) for grid in further.values()]
    write_atomic(folder / "table.md", "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n")
    pictures, done = [], [one for one in outcomes if one.status == "done"]
    for name, (figure, caption) in (study.figures(config, done) if done else {}).items():
        drawing.save(figure, folder / "figures" / f"{name}.png")
        pictures.append({"file": f"figures/{name}.png", "caption": caption})
    record = run_folder.read_json(folder / "run.json")
    section = {
        "name": study.name,
        "title": study.title,
        "one_line": study.one_line,
        "preset": config.preset,
        "notes": notes,
        "wide": [views.to_html(grid) for grid in wide],
        "long": views.to_html(rows),
        "remarks": remarks,
        "tables": [{"file": f"tables/{name}.csv", "html": views.to_html(grid)} for name, grid in further.items()],
        "figures": pictures,
        "missing": missing(outcomes),
        "not_reproduced": study.not_reproduced,
        "command": record["command"],
        "seconds": round(sum(one.seconds for one in outcomes), 1),
        "environment": run_folder.read_json(folder / "environment.json"),
        "config": run_folder.read_json(folder / "config.json"),
    }
    run_folder.write_json(folder / "report.json", section)
    page = write_page(folder / "report.html", study.title, [(folder, section)])
    if show:
        import rich.console

        console = rich.console.Console()
        for grid in wide:
            console.print(views.to_terminal(grid))
        if remarks:
            console.print()
        for remark in remarks:
            console.print(remark, markup=False, highlight=False)
        for grid in further.values():
            console.print()
            console.print(views.to_terminal(grid))
        shown = [part["file"] for part in (*section["tables"], *section["figures"])]
        for place in ("table.md", "table.csv", *shown):
            print(folder / place)
        print(f"report: {page}")
    return section


def further_view(name: str, given: Any) -> views.Grid:
    """The view of a study's further table; what is wrong with it is an error that begins with its name."""
    if not re.fullmatch(r"[\w-]+", name):
        raise check.UsageError(f"table {name!r}: the name is that of a file; use letters, digits, - and _")
    return views.plain_view(name, given.header, given.rows)._replace(title=given.caption)


def checked_remarks(remarks: Sequence[str]) -> list[str]:
    """A study's remarks, each in one line."""
    if isinstance(remarks, str) or not all(isinstance(remark, str) for remark in remarks):
        raise check.UsageError(f"a study's remarks must be a list of sentences, got {remarks!r}")
    return [" ".join(remark.split()) for remark in remarks]


def csv_text(given: Any) -> str:
    """A further table as CSV: numbers in full, nothing where an entry is None."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([given.header, *given.rows])
    return file.getvalue()


def missing(outcomes: Sequence[Any]) -> list[str]:
    """One line per reason: which cells are missing, and why."""
    reasons: dict[str, list[str]] = {}
    for one in outcomes:
        if one.status == "missing":
            reasons.setdefault(one.reason or "not run yet", []).append(f"{one.cell.setting} · {one.cell.method}")
    return [f"{', '.join(dict.fromkeys(cells))}: {reason}" for reason, cells in reasons.items()]


def write_page(
    path: Path, title: str, sections: Sequence[tuple[Path, dict[str, Any]]], failures: Sequence[dict[str, str]] = ()
) -> Path:
    """Render sections (each with the folder its figures lie in) and failed studies into one self-contained page."""
    shown = []
    for folder, section in sections:
        pictures = [{**picture, "uri": data_uri(folder / picture["file"])} for picture in section["figures"]]
        shown.append({**section, "figures": pictures, "folder": str(folder)})
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    when = time.strftime("%Y-%m-%d %H:%M")
    return write_atomic(path, template.render(title=title, when=when, sections=shown, failures=list(failures)))


def data_uri(path: Path) -> str:
    """A PNG file as a data: address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
