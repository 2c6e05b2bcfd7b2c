"""Seeing a run: one progress display for people, one JSON line per dispatch for files."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_LINE_S = 30.0


def device_memory() -> str:
    """Memory in use on the first device, or nothing where the backend does not tell (a CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return f"{stats['bytes_in_use'] / 2**30:.2f} GiB" if "bytes_in_use" in stats else ""


class Display:
    """Step, loss, steps/s, remaining time and device memory: a bar where a person looks, a line every 30 s
    elsewhere."""

    def __init__(self, steps: int, enabled: bool):
        console = Console(stderr=True)
        self._live = enabled and (console.is_terminal or console.is_jupyter)
        self._plain = enabled and not self._live
        self._steps, self._told = steps, time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._progress.add_task("", total=steps, status="")

    def update(self, stage: str, step: int, loss: float, rate: float) -> None:
        """Show that ``step`` steps of the plan are done."""
        status = f"loss {loss:.4g}  {rate:,.0f} steps/s  {device_memory()}".rstrip()
        if self._live:
            self._progress.update(self._task, completed=step, description=stage, status=status)
        elif self._plain and time.monotonic() - self._told > QUIET_LINE_S:
            self._told = time.monotonic()
            print(f"{stage}: step {step}/{self._steps}  {status}", file=sys.stderr, flush=True)

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._progress.stop()


class RunLog:
    """``metrics.jsonl`` in the run folder: one line per dispatch and per evaluation, cut back on resume to what the
    checkpoint knows."""

    def __init__(self, path: Path | None, step: int):
        self._file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if line["step"] <= step] if step else []
        beside = path.with_suffix(".part")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        beside.replace(path)
        self._file = path.open("a")

    def write(self, **values: Any) -> None:
        """Append one line; arrays become lists."""
        if self._file is not None:
            self._file.write(json.dumps(values, default=lambda array: np.asarray(array).tolist()) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a line cut short by a kill is dropped."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


@contextmanager
def trace(folder: Path | None) -> Iterator[None]:
    """A ``jax.profiler`` trace of the block, readable by Perfetto or TensorBoard, when there is a folder."""
    if folder is None:
        yield
        return
    os.makedirs(folder, exist_ok=True)
    with jax.profiler.trace(str(folder)):
        yield


def mean_of(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each series, over steps and seeds."""
    return {name: float(np.mean(values)) for name, values in metrics.items()}
