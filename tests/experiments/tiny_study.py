"""A study of arithmetic, to test the runner: two settings x two methods; ``TINY`` in the environment makes trouble."""

from __future__ import annotations

import dataclasses
import os
import signal

from experiments.runner import Cell, Options, Skip, Study, Table, choices, run
from jaxkit import check
from jaxkit.evaluation import table
from jaxkit.training import NonFiniteError

METHODS = ("alpha", "beta")


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options of the tiny study."""

    methods: tuple[str, ...] = METHODS
    scale: float = 1.0
    """Multiplies every value."""


PRESETS = {"tour": Config(seeds=2), "quick": Config(seeds=4, scale=2.0)}


def cells(config):
    check.positive("--scale", config.scale)
    methods = choices("method", config.methods, METHODS)
    return [Cell(s, m, {"seeds": config.seeds, "scale": config.scale}) for s in ("plain", "absent") for m in methods]


def run_cell(cell, config, context):
    with open("calls.txt", "a") as file:
        file.write(f"{cell.setting} {cell.method} {context.resume}\n")
    if cell.setting == "absent":
        raise Skip("the file absent.csv is not there;\n get it with: python -m jaxkit.data get absent")
    trouble = os.environ.get("TINY", "") if cell.method == os.environ.get("TINY_METHOD", "beta") else ""
    context.workdir.mkdir(parents=True, exist_ok=True)
    (context.workdir / "checkpoint").touch()
    if trouble == "nan":
        raise NonFiniteError("the loss is not finite at step 7")
    if trouble == "interrupt":
        # A shell that starts the tests in the background has all below it ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
    if trouble == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    if trouble == "crash":
        raise RuntimeError("a mistake in the program")
    values = [config.scale * (len(cell.method) + seed / 10) for seed in range(config.seeds)]
    context.log({"step": 0, "value": values[0]})
    return {"values": values, "headline": f"value {values[0]:.1f}"}


def rows(config, outcomes):
    return [
        table.make_row(
            "tiny", o.cell.setting, o.cell.method, "value", o.result["values"] if o.result else None, 5.1, "Table 1"
        )
        for o in outcomes
    ]


def figures(config, outcomes):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))  # not of pyplot, which would keep it after the test
    axes = figure.subplots()
    for o in outcomes:
        axes.plot(o.result["values"], label=o.cell.method)
    return {"values": (figure, "Values <by> seed")}


def tables(config, outcomes):
    methods = dict.fromkeys(o.cell.method for o in outcomes)
    rows = tuple((m, len(m), len(m) * 10_001, len(m) / 3, None if m == "alpha" else "a | b") for m in methods)
    return {"letters": Table("What the <names> hold", ("method", "letters", "many", "a third", "more"), rows)}


def remarks(config, outcomes):
    return ["The sum is [bold] arithmetic,\n and not <magic>."]


STUDY = Study(
    name="tiny_study",
    title="A tiny study",
    one_line="Arithmetic, to see the runner work.",
    Config=Config,
    presets=PRESETS,
    cells=cells,
    run_cell=run_cell,
    rows=rows,
    figures=figures,
    not_reproduced="everything but the sum",
    seconds=lambda cell, config: 0.1,
    tables=tables,
    remarks=remarks,
)

if __name__ == "__main__":
    raise SystemExit(run(STUDY))
