"""The folder of one run: what it holds, and how nothing in it is ever half written.

``runs/<study>/<time>/`` holds::

    run.json            study, state (running, finished, stopped, diverged, failed), command, times
    config.json         the configuration, as typed
    environment.json    python, jax, device, commit, platform
    cells/<id>.json     one cell of the grid: what it is, its status and, when done, its result
    cells/<id>/         checkpoints of a cell in progress
    metrics.jsonl       one line per evaluation and per finished cell
    table.md table.csv figures/*.png report.json report.html

Every JSON file is written beside its place and then renamed, so that a reader sees the old file or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxkit import check
from jaxkit.evaluation.files import write_atomic

ROOT = Path("runs")
PER_CALL = ("out", "resume", "debug", "profile")
"""Options that say how a run is done, not what it computes: two runs that differ in these alone are the same."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that no reader ever sees half of it."""
    write_atomic(path, json.dumps(value, indent=1, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; a file that is not JSON raises UsageError with its path."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise check.UsageError(
            f"{path} is not readable as JSON ({error}); delete it, or name another folder by --out"
        ) from None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, default=_plain) + "\n")


def read_lines(path: Path) -> list[Any]:
    """The JSON lines of a file; none where there is no file, without a line that was cut short."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _plain(value: Any) -> Any:
    """JSON for what configurations and results hold: paths, NumPy and JAX scalars and arrays."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        f"a result holds {type(value).__name__}, which JSON does not know; return numbers, text, lists and dicts"
    )


def config_record(config: Any) -> dict[str, Any]:
    """What identifies a configuration, as JSON values."""
    record = {name: value for name, value in dataclasses.asdict(config).items() if name not in PER_CALL}
    return json.loads(json.dumps(record, default=_plain))


def cell_id(study: str, cell: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of everything that the cell's result depends on."""
    text = json.dumps([study, cell.setting, cell.method, cell.options], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def start(study: str, config: Any, command: str) -> Path:
    """The folder this run writes to: the one named by --out, the one to resume, or a new one."""
    folder = config.out
    if folder is None and config.resume:
        folder = newest_unfinished(study, config)
        if folder is None:
            raise check.UsageError(
                f"--resume: no unfinished run of {study} with this configuration under {ROOT / study}; "
                "leave --resume away, or name a folder by --out"
            )
    elif folder is None:
        folder = new(study)
    elif folder.exists() and not folder.is_dir():
        raise check.UsageError(f"--out {folder} is a file; name a folder")
    known = folder / "run.json"
    if known.exists():
        other = read_json(known).get("study")
        if other != study:
            raise check.UsageError(f"--out {folder} holds a run of {other}, not of {study}; name another folder")
    elif config.resume:
        raise check.UsageError(f"--resume: {folder} holds no run (no run.json); leave --resume away to start one there")
    elif folder.exists() and any(folder.iterdir()):
        raise check.UsageError(f"--out {folder} holds other files; name an empty or a new folder")
    about = environment()
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config_record(config))
    except OSError as error:
        raise check.UsageError(f"cannot write to {folder}: {error.strerror}; name another folder by --out") from None
    write_json(folder / "environment.json", about)
    write_json(
        known, {"study": study, "state": "running", "command": command, "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    )
    return folder


def new(study: str) -> Path:
    """Make the folder runs/<study>/<time>, with a number where one of this second is there already."""
    base = ROOT / study / time.strftime("%Y%m%d-%H%M%S")
    for number in range(100):
        folder = base if number == 0 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise check.UsageError(f"cannot make {folder}: {error.strerror}; name a folder by --out") from None
    raise check.UsageError(f"a hundred runs began in this second under {base.parent}; name a folder by --out")


def newest_unfinished(study: str, config: Any) -> Path | None:
    """The newest run of a study that did not finish and has the same configuration."""
    wanted = config_record(config)
    for known in sorted((ROOT / study).glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        config_file = known.with_name("config.json")
        if read_json(known)["state"] != "finished" and config_file.exists() and read_json(config_file) == wanted:
            return known.parent
    return None


def finish(folder: Path, state: str, **more: Any) -> None:
    """Write how the run ended into run.json."""
    write_json(folder / "run.json", read_json(folder / "run.json") | {"state": state, **more})


def environment() -> dict[str, Any]:
    """What a reader needs to know to repeat the run elsewhere."""
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names what is not here
        asked = os.environ.get("JAX_PLATFORMS")
        why = f"JAX_PLATFORMS={asked} asks for a device that is not here" if asked else str(error).split("\n")[0]
        raise check.UsageError(f"JAX finds no device: {why}; unset JAX_PLATFORMS, or set it to cpu") from None
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "device": f"{len(devices)} x {devices[0].device_kind}" if len(devices) > 1 else devices[0].device_kind,
        "backend": jax.default_backend(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "commit": commit(),
        "packages": versions,
    }


def commit() -> str | None:
    """The checkout's commit, with + where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        ask = lambda *words: subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
        return ask("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
