"""The runner: one study is a grid of cells, each computed once, saved, and shown in one table.

A study file ends with::

    STUDY = Study(name="first_steps", title="...", one_line="...", Config=Config, presets=PRESETS, cells=cells,
                  run_cell=run_cell, rows=rows, figures=figures, not_reproduced="...")

    if __name__ == "__main__":
        raise SystemExit(run(STUDY))

Exit codes: 0 done, 1 an error in the program, 2 bad input, 3 a cell diverged (the others are done and the table is
written), 130 Ctrl-C, 143 SIGTERM. After the last three the run can be resumed, and the command that does it is printed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import run_folder
from experiments.command_line import PRESETS, Options, Preset, choices, configure, parsed
from jaxkit import check

__all__ = [
    "PRESETS",
    "Cell",
    "Context",
    "Options",
    "Outcome",
    "Preset",
    "Skip",
    "Study",
    "Table",
    "choices",
    "configure",
    "parsed",
    "run",
]


class Cell(NamedTuple):
    """One square of a study's grid.

    Attributes:
      setting: the row's setting, in words that say what is special (a subset, another network).
      method: the method.
      options: JSON values; everything else that the result depends on, seeds among them.
    """

    setting: str
    method: str
    options: dict[str, Any] = {}


class Skip(Exception):
    """Raised by ``run_cell`` when a cell cannot run here (a file is not there); one line, why and what would help."""


class Context(NamedTuple):
    """What a cell gets from the runner.

    Attributes:
      workdir: for checkpoints (``fit(workdir=...)``); deleted when the cell is done.
      resume: whether what lies in workdir is to be continued.
      log: appends one record to metrics.jsonl.
      profile: folder for a profiler trace (``fit(profile=...)``), or None.
    """

    workdir: Path
    resume: bool
    log: Callable[[dict[str, Any]], None]
    profile: Path | None


class Outcome(NamedTuple):
    """A cell and what became of it: status ``done`` with a result, or ``missing`` with the reason."""

    cell: Cell
    status: str
    result: dict[str, Any] | None = None
    reason: str = ""
    seconds: float = 0.0


class Table(NamedTuple):
    """A table of a study that sets nothing beside a published number: an architecture, paired differences.

    Attributes:
      caption: what it shows.
      header: the names of the columns.
      rows: as many entries each as the header; text, a finite number, or None where there is nothing to show.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


class Study(NamedTuple):
    """A study; ``name``, ``title`` and ``one_line`` are literal text, because the listing does not import it.

    Attributes:
      name: the module's name.
      title: a heading.
      one_line: what it shows, for the listing.
      Config: a frozen dataclass that extends ``Options``; a field ``data: Path | None`` where own data makes sense.
      presets: the configuration of each preset; at least tour and quick.
      cells: ``config -> cells``; checks the configuration (UsageError) and computes nothing.
      run_cell: ``(cell, config, context) -> result``, a dict of JSON values; may raise Skip.
      rows: ``(config, outcomes) -> table rows`` from all outcomes, the missing ones included.
      figures: ``(config, outcomes) -> {name: (matplotlib figure, caption)}`` from the finished cells.
      not_reproduced: what of the paper is not here.
      notes: ``(config, outcomes) -> text``, how the numbers were made; shown above the table.
      seconds: ``(cell, config) -> rough seconds on two CPU cores``, for the estimate printed at the start.
      tables: ``(config, outcomes) -> {name: Table}`` from all outcomes; further tables, each also tables/<name>.csv.
      remarks: ``(config, outcomes) -> sentences`` from all outcomes, what the table means; shown under it.
      said: ``(config, cells to run) -> lines`` printed before the first of them, where there is one.
      wide: the metrics that get a table of their own, methods by settings; None: every one. All are in table.csv.
    """

    name: str
    title: str
    one_line: str
    Config: type
    presets: dict[str, Any]
    cells: Callable[[Any], Sequence[Cell]]
    run_cell: Callable[[Cell, Any, Context], dict[str, Any]]
    rows: Callable[[Any, Sequence[Outcome]], list[Any]]
    figures: Callable[[Any, Sequence[Outcome]], dict[str, Any]]
    not_reproduced: str = ""
    notes: Callable[[Any, Sequence[Outcome]], str] | None = None
    seconds: Callable[[Cell, Any], float] | None = None
    tables: Callable[[Any, Sequence[Outcome]], dict[str, Table]] | None = None
    remarks: Callable[[Any, Sequence[Outcome]], list[str]] | None = None
    said: Callable[[Any, Sequence[Cell]], list[str]] | None = None
    wide: tuple[str, ...] | None = None


def run(study: Study, argv: Sequence[str] | None = None) -> int:
    """Run a study from the command line and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    folder: list[Path] = []
    try:
        return _run(study, argv, folder)
    except check.UsageError as error:
        _ended(folder, "failed")
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _stopped(study, argv, folder, "stopped", 130, "interrupted")
    except SystemExit as stop:
        if stop.code != 143:
            raise
        return _stopped(study, argv, folder, "stopped", 143, "terminated")
    except Exception:
        _ended(folder, "failed")
        traceback.print_exc()
        return 1


def _run(study: Study, argv: list[str], started: list[Path]) -> int:
    config = configure(study, argv)
    grid = list(study.cells(config))
    if not grid:
        raise check.UsageError(f"{study.name}: this configuration has no cell to run")
    _compilation_cache()
    command = _command(study, argv)
    folder = run_folder.start(study.name, config, command)
    started.append(folder)
    begin = time.perf_counter()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        print(start_line(study.name, config.preset, folder))
        warning = gpu_warning()
        if warning:
            print(warning, file=sys.stderr)
        todo = _plan(study, config, folder, grid)
        reasons: dict[str, str] = {}
        diverged = 0
        for number, cell in enumerate(todo, 1):
            diverged += _one(study, config, folder, cell, f"[{number}/{len(todo)}]", reasons) == "diverged"
        outcomes = read_outcomes(study.name, folder, grid)
        lost = [outcome for outcome in outcomes if outcome.status == "missing"]
        if len(lost) == len(outcomes) and not diverged:
            raise check.UsageError(f"no cell could run: {lost[0].reason}")
        from experiments import report  # matplotlib and jinja2 only now

        state = "diverged" if diverged else "finished"
        run_folder.finish(folder, state, seconds=round(time.perf_counter() - begin, 1))
        report.write(study, config, folder, outcomes)
        if diverged:
            reason, label = next((why, who) for why, who in reasons.items() if why.startswith("diverged: "))
            why = f"{diverged} of {len(grid)} cells diverged; {label} {reason}"
            return _stopped(study, argv, started, state, 3, why)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _one(study: Study, config: Any, folder: Path, cell: Cell, number: str, reasons: dict[str, str]) -> str:
    """Run one cell, save what became of it, and return that: done, missing or diverged.

    A cell that diverged is a missing one whose checkpoints are kept. ``reasons`` has the label of the first cell that
    each reason was printed for, because one data set that is not there is missing for many cells.
    """
    from jaxkit.training import NonFiniteError, release_programs

    release_programs()  # a grid of many methods would come to the limit of a process
    name = run_folder.cell_id(study.name, cell)
    record, workdir = folder / "cells" / f"{name}.json", folder / "cells" / name
    if not config.resume:
        shutil.rmtree(workdir, ignore_errors=True)
    label = f"{cell.setting} · {cell.method}"
    log = lambda line: run_folder.append_line(
        folder / "metrics.jsonl", {"setting": cell.setting, "method": cell.method, **line}
    )
    profile = folder / "profile" / name if config.profile else None
    context = Context(workdir, config.resume, log, profile)
    begin = time.perf_counter()
    try:
        result = study.run_cell(cell, config, context)
    except (Skip, NonFiniteError) as error:
        diverged = isinstance(error, NonFiniteError)
        if diverged and config.debug:
            traceback.print_exc()
        reason = "diverged: " * diverged + " ".join(str(error).split())
        run_folder.write_json(record, {"cell": cell._asdict(), "status": "missing", "reason": reason})
        first = reasons.setdefault(reason, label)
        print(f"{number} {label}: missing, {reason if first == label else f'as above for {first}'}", flush=True)
        return "diverged" if diverged else "missing"
    seconds = round(time.perf_counter() - begin, 2)
    for line in run_folder.read_lines(workdir / "metrics.jsonl"):  # what fit logged
        log(line)
    run_folder.write_json(record, {"cell": cell._asdict(), "status": "done", "result": result, "seconds": seconds})
    shutil.rmtree(workdir, ignore_errors=True)
    log({"event": "done", "seconds": seconds, "headline": result.get("headline", "")})
    print(f"{number} {label}: {result.get('headline', 'done')}  ({seconds:.1f} s)", flush=True)
    return "done"


def _plan(study: Study, config: Any, folder: Path, grid: list[Cell]) -> list[Cell]:
    """Write every cell of the grid down as planned, and return those that are not done yet; print the estimate."""
    todo = []
    for cell in grid:
        record = folder / "cells" / f"{run_folder.cell_id(study.name, cell)}.json"
        if record.exists() and run_folder.read_json(record)["status"] == "done":
            continue
        run_folder.write_json(record, {"cell": cell._asdict(), "status": "missing", "reason": "not run yet"})
        todo.append(cell)
    kept = f", {len(grid) - len(todo)} done before" if len(todo) < len(grid) else ""
    estimate = ""
    if study.seconds is not None and todo:
        estimate = f", about {duration(sum(study.seconds(cell, config) for cell in todo))} on two CPU cores"
    print(f"{len(todo)} cell{'s' * (len(todo) != 1)} to run{kept}{estimate}", flush=True)
    for line in study.said(config, todo) if study.said is not None and todo else ():
        print(line, flush=True)
    return todo


def read_outcomes(study: str, folder: Path, grid: Sequence[Cell]) -> list[Outcome]:
    """All cells of a run: this grid's in its order, then what earlier calls did for other settings or methods."""
    asked = {run_folder.cell_id(study, cell): cell for cell in grid}
    squares = {(cell.setting, cell.method) for cell in grid}
    others = [path.stem for path in sorted((folder / "cells").glob("*.json"), key=lambda path: path.stat().st_mtime)]
    outcomes = []
    for name in [*asked, *(name for name in others if name not in asked)]:
        path = folder / "cells" / f"{name}.json"
        record = run_folder.read_json(path) if path.exists() else {"cell": asked[name]._asdict(), "status": "missing"}
        cell = Cell(**record["cell"])
        if name in asked or (cell.setting, cell.method) not in squares:
            result, seconds = record.get("result"), record.get("seconds", 0.0)
            outcomes.append(Outcome(cell, record["status"], result, record.get("reason", ""), seconds))
    return outcomes


def start_line(study: str, preset: str, folder: Path) -> str:
    """What runs, on which device, with which versions, and where its files go."""
    about = run_folder.read_json(folder / "environment.json")
    device = f"{about['device']} ({about['backend']}, {about['cpu_cores']} CPU cores)"
    return f"{study} ({preset}) on {device}, jax {about['jax']}, python {about['python']} -> {folder}"


def gpu_warning() -> str | None:
    """One line when this machine has an NVIDIA GPU that JAX does not see; None where the user chose the CPU."""
    import jax

    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return None
    present = Path("/proc/driver/nvidia/version").exists()
    if not present and shutil.which("nvidia-smi"):
        try:
            present = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=10).returncode == 0
        except (OSError, subprocess.SubprocessError):
            present = False
    if not present:
        return None
    return (
        "warning: this machine has an NVIDIA GPU but JAX sees only the CPU; "
        "python -m pip install -e '.[gpu]' (CUDA 13) or '.[gpu-cuda12]' in the checkout gives the JAX that uses it"
    )


def duration(seconds: float) -> str:
    """A time as a person says it: 40 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user or JAX_COMPILATION_CACHE_DIR says otherwise."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "jaxkit" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _command(study: Study, argv: Sequence[str], *more: str) -> str:
    """What was typed, without where it went (--out, --resume), and ``more``."""
    words, skip = [], False
    for word in argv:
        if skip or word in ("--resume", "--out") or word.startswith("--out="):
            skip = word == "--out"
            continue
        words.append(word)
    return shlex.join(["python", "-m", f"experiments.{study.name}", *words, *more])


def _terminate(signum, frame):
    raise SystemExit(143)


def _ended(folder: list[Path], state: str) -> None:
    if folder:
        run_folder.finish(folder[0], state)


def _stopped(study: Study, argv: Sequence[str], folder: list[Path], state: str, code: int, why: str) -> int:
    _ended(folder, state)
    print(f"{study.name}: {why}", file=sys.stderr)
    if state == "diverged":
        print("the same configuration diverges again; change it (a lower learning rate), or", file=sys.stderr)
    if folder:
        print(f"go on with: {_command(study, argv, '--out', str(folder[0]), '--resume')}", file=sys.stderr)
    return code
