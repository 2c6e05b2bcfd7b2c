"""Every study, briefly, on one page: ``python -m experiments.tour``.

Each study runs on its tour preset in a process of its own, one after another, because a study that crashes, runs out of
memory or needs other process-wide settings (float64, simulated devices) must not touch the next one; the compilation
cache on disk is shared, so a child pays for its imports only. The page ``runs/tour/<time>/report.html`` holds every
table and figure, with what failed on top. A study of which a cell diverged is listed there too, and its table is shown.

Exit codes: 0 all studies ran, 1 at least one failed or diverged, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import dataclasses
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments import catalogue, command_line, run_folder
from jaxkit import check

TAIL = 25  # lines of a failed study's output that the page shows


@dataclasses.dataclass(frozen=True)
class Tour:
    """Every study on its tour preset, one page for all."""

    studies: tuple[str, ...] = ()
    """Only these studies, by name; all of them where none is named."""
    out: Path | None = None
    """The folder; by default runs/tour/<time>."""
    timeout: float = 600.0
    """Seconds after which a study is stopped and counted as failed."""


def main(argv: list[str] | None = None) -> int:
    """Run the tour and return the exit code."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        words = sys.argv[1:] if argv is None else argv
        return _tour(command_line.parsed(Tour, words, "python -m experiments.tour"))
    except check.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tour: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(signum, frame):
    raise SystemExit(143)


def _tour(options: Tour) -> int:
    from rich.console import Console

    from experiments import report

    check.positive("--timeout", options.timeout)
    entries = [catalogue.find(name) for name in options.studies] or list(catalogue.studies().values())
    folder = options.out or run_folder.new("tour")
    if options.out is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise check.UsageError(f"--out {folder} is not an empty folder; name a new one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise check.UsageError(f"cannot write to {folder}: {error.strerror}; name another folder by --out") from None
    console = Console()
    begin = time.perf_counter()
    sections, failures = [], []
    with _progress(console) as progress:
        bars = {
            entry.name: progress.add_task(entry.name, total=None, start=False, state="waiting") for entry in entries
        }
        for entry in entries:
            failure = _one(entry, folder, options.timeout, progress, bars[entry.name])
            if failure is None or failure["state"] == "diverged":
                sections.append((folder / entry.name, run_folder.read_json(folder / entry.name / "report.json")))
            if failure is not None:
                failures.append(failure)
    seconds = time.perf_counter() - begin
    page = report.write_page(folder / "report.html", "jaxkit: the tour", sections, failures)
    for failure in failures:
        log = folder / f"{failure['name']}.log"
        print(f"{failure['state']}: {failure['name']} ({failure['why']}), see {log}", file=sys.stderr)
    print(f"{len(entries) - len(failures)} of {len(entries)} studies in {seconds:.0f} s")
    print(f"report: {page}")
    return 1 if failures else 0


def _progress(console: Any) -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.fields[state]}"),
        progress.TimeElapsedColumn(),
        console=console,
    )


def _one(entry: catalogue.Entry, folder: Path, timeout: float, progress: Any, bar: Any) -> dict[str, str] | None:
    """Run one study in a child process; None where it finished, else its name, its state (``failed``, or ``diverged``
    where a cell did and the table is there), why, and its last lines."""
    place, log = folder / entry.name, folder / f"{entry.name}.log"
    words = ["-m", f"experiments.{entry.name}", "--preset", "tour", "--out", str(place)]
    progress.start_task(bar)
    progress.update(bar, state="starting")
    deadline = time.monotonic() + timeout
    with log.open("w", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(['python', *words])}\n")
        output.flush()
        child = subprocess.Popen(
            [sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                _show(place, progress, bar)
            late = child.poll() is None
        finally:
            _stop(child)
    if not late and child.returncode == 0 and (place / "report.json").exists():
        _show(place, progress, bar)
        progress.update(bar, state="done")
        progress.stop_task(bar)
        return None
    why = f"stopped after {timeout:g} s" if late else f"exit code {child.returncode}"
    state = "diverged" if not late and child.returncode == 3 and (place / "report.json").exists() else "failed"
    if state == "diverged":
        _show(place, progress, bar)
    progress.update(bar, state=f"{state}: {why}")
    progress.stop_task(bar)
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return {"name": entry.name, "state": state, "why": why, "log": "\n".join(tail)}


def _show(place: Path, progress: Any, bar: Any) -> None:
    """Move the bar to the number of cells that the run folder says are settled."""
    records = list((place / "cells").glob("*.json"))
    if records:
        settled = sum('"reason": "not run yet"' not in path.read_text(encoding="utf-8") for path in records)
        progress.update(bar, total=len(records), completed=settled, state=f"{settled} of {len(records)} cells")


def _stop(child: subprocess.Popen) -> None:
    """End a child that still runs: ask, and after ten seconds insist."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


if __name__ == "__main__":
    raise SystemExit(main())
