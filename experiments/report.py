"""What a run leaves to read: table.md, table.csv, figures/*.png, report.json and the page report.html.

The page is one self-contained file: figures are embedded, nothing is loaded from anywhere, it opens without a network.
A page shows one section per study, so that one study's page and the tour's are the same template.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments import run_folder
from jaxkit.evaluation import figures as drawing
from jaxkit.evaluation import table, views
from jaxkit.evaluation.files import write_atomic

TEMPLATE = Path(__file__).with_name("report.html")


def write(study: Any, config: Any, folder: Path, outcomes: Sequence[Any], show: bool = True) -> dict[str, Any]:
    """Write the tables, the figures and the page of a run; show the table and where all lies; return the section."""
    rows = study.rows(config, outcomes)
    table.to_csv(rows, folder / "table.csv")
    wide = [views.pivot(rows, metric) for metric in dict.fromkeys(row.metric for row in rows)]
    markdown = "\n".join(views.to_markdown(grid) for grid in [*wide, rows])
    notes = study.notes(config, outcomes) if study.notes else ""
    write_atomic(folder / "table.md", "\n\n".join(part for part in (f"# {study.title}", notes, markdown) if part))
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
        for place in ("table.md", "table.csv", *(picture["file"] for picture in pictures)):
            print(folder / place)
        print(f"report: {page}")
    return section


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
