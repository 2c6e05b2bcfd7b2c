"""A run of five tasks whose process is killed on the way ends with the bits of one that was left alone."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.class_incremental import interrupted

ROOT = Path(__file__).parents[2]
PATIENCE = 400  # seconds; an idle machine of two cores takes 60
PACE = 5  # steps of a dispatch where the run is killed


def run(*words: object) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # the next process has the same programs
    command = [sys.executable, str(Path(interrupted.__file__)), *map(str, words)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)


def finished(*words: object) -> subprocess.CompletedProcess:
    """A process that ends by itself."""
    process = run(*words)
    assert process.returncode == 0, process.stderr
    return process


def killed(*words: object) -> subprocess.CompletedProcess:
    """A process that is killed."""
    process = run(*words)
    assert process.returncode == -9, (words, process.returncode, process.stderr)
    return process


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def newest(folder: Path) -> int:
    """The steps done at the newest complete checkpoint."""
    return max(int(path.name) for path in folder.glob("**/checkpoints/*") if path.name.isdigit())


def stops(method: str) -> list[int]:
    """The steps of the checkpoints after which the process dies: in the middle of each phase of the third task, and
    between the third and the fourth."""
    third = [(start, end) for name, start, end in interrupted.borders(method) if name.startswith("task 3")]
    assert all(start + 3 * PACE < end for start, end in third)
    return [*(start + 2 * PACE for start, _ in third), third[-1][1]]


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("method", ["icarl", "der", "foster"])
def test_killed_on_the_way_it_ends_with_the_same_bits(method, tmp_path):
    """Parameters, statistics, exemplars, class means, teachers, and both read-outs' accuracies after every task."""
    finished(method, tmp_path / "whole.npz", tmp_path / "whole", 1000)
    on_the_way = (method, tmp_path / "resumed.npz", tmp_path / "resumed", PACE)
    for step in stops(method):
        killed(*on_the_way, step)
        assert newest(tmp_path / "resumed") == step
    assert not (tmp_path / "resumed.npz").exists()
    finished(*on_the_way)
    whole, resumed = load(tmp_path / "whole.npz"), load(tmp_path / "resumed.npz")

    ends = [end for _, _, end in interrupted.borders(method)]
    assert whole.pop("dispatches").tolist() == ends
    assert resumed.pop("dispatches")[0] == stops(method)[-1] + PACE  # it went on, and did not begin again
    assert set(whole) == set(resumed)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)

    assert whole["evals/classifier"].shape == (len(ends),) and whole["metrics/loss"].shape == (ends[-1],)
    assert whole["extra/memory/counts"].tolist() == [interrupted.MEMORY // 10] * 10
    assert (whole["evals/nearest_mean"] > 1 / 10).all()  # better than chance: something was learnt that could be lost


def own_digits(path: Path) -> Path:
    """Six digits as images, in a user's file."""
    train, _ = interrupted.digits()
    kept = train["y"] < 6
    np.savez(path, x=train["x"][kept].reshape(-1, 8, 8, 1), y=train["y"][kept])
    return path


def results(folder: Path) -> dict[str, dict]:
    """What each cell computed, without how long it took."""
    cells = [json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")]
    assert all(cell["status"] == "done" for cell in cells), cells
    return {
        cell["cell"]["method"]: {name: value for name, value in cell["result"].items() if name != "seconds"}
        for cell in cells
    }


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_a_study_killed_within_a_cell_has_the_same_table(tmp_path):
    """Two cells of three tasks; the process dies in the second cell, while it saves its second task."""
    data = own_digits(tmp_path / "mine.npz")
    words = ["--data", data, "--methods", "finetune,replay", "--seeds", 2, "--epochs", 1, "--memory", 12]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    finished("study", 0, *words, "--out", whole)
    first = killed("study", 5, *words, "--out", resumed)
    assert "[1/2]" in first.stdout and "[2/2]" not in first.stdout
    assert newest(resumed / "cells") > 0  # the second cell's, at the end of its first or second task
    again = finished("study", 0, *words, "--out", resumed, "--resume")
    assert "1 cell to run, 1 done before" in again.stdout
    assert results(resumed) == results(whole)
    tables = [list(csv.DictReader((folder / "table.csv").open(newline=""))) for folder in (whole, resumed)]
    assert tables[0] == tables[1] and len(tables[0]) > 2
