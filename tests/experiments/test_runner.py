"""The runner: presets, cells that add up, missing cells, the folder, the page, and the exit codes."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import run_folder, runner
from jaxkit import check

TINY = Path(__file__).with_name("tiny_study.py")
spec = importlib.util.spec_from_file_location("tiny_study", TINY)
tiny = importlib.util.module_from_spec(spec)
sys.modules["tiny_study"] = tiny
spec.loader.exec_module(tiny)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINY", raising=False)
    monkeypatch.delenv("TINY_METHOD", raising=False)


def go(*words):
    return runner.run(tiny.STUDY, list(words))


def calls():
    lines = Path("calls.txt").read_text().splitlines()
    Path("calls.txt").unlink()
    return lines


def table_rows(folder):
    with open(Path(folder) / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_explicit_options_win_over_the_preset():
    assert runner.configure(tiny.STUDY, []).scale == 2.0
    config = runner.configure(tiny.STUDY, ["--seeds", "3", "--preset", "Tour"])
    assert (config.preset, config.seeds, config.scale) == ("tour", 3, 1.0)
    assert runner.configure(tiny.STUDY, ["--preset=quick", "--scale", "5"]).scale == 5.0


def test_a_run_leaves_the_whole_folder(capsys):
    assert go("--out", "here") == 0
    out = capsys.readouterr().out
    assert "4 cells to run" in out and re.search(r"tiny_study \(quick\) on .*jax \d", out)
    here = Path("here")
    for name in (
        "run.json",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "table.md",
        "table.csv",
        "figures/values.png",
        "report.html",
    ):
        assert (here / name).stat().st_size > 0, name
    assert json.loads((here / "run.json").read_text())["state"] == "finished"
    assert {"python", "jax", "device", "commit", "platform"} <= set(json.loads((here / "environment.json").read_text()))
    assert [json.loads(line)["setting"] for line in (here / "metrics.jsonl").read_text().splitlines()] == ["plain"] * 4
    rows = table_rows(here)
    assert [(row["setting"], row["method"], row["verdict"]) for row in rows if row["setting"] == "absent"] == [
        ("absent", "alpha", "missing"),
        ("absent", "beta", "missing"),
    ]
    alpha = rows[0]  # 2 x (5, 5.1, 5.2, 5.3): mean 10.3, published 5.1 far below
    assert (float(alpha["value"]), alpha["n"], alpha["verdict"]) == (pytest.approx(10.3), "4", "above")


def test_the_page_stands_alone():
    assert go("--out", "here", "--scale", "2") == 0
    page = Path("here/report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "10.3" in page and "Table 1" in page
    assert "absent · alpha, absent · beta: the file absent.csv is not there; get it with" in page
    assert "Values &lt;by&gt; seed" in page and "everything but the sum" in page
    assert "python -m experiments.tiny_study --scale 2</pre>" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "http" not in page


def test_several_runs_add_up():
    assert go("--methods", "alpha", "--out", "here") == 0
    assert calls() == ["plain alpha False", "absent alpha False"]
    assert {row["method"] for row in table_rows("here")} == {"alpha"}
    assert go("--methods", "beta", "--out", "here") == 0
    assert calls() == ["plain beta False", "absent beta False"]
    assert {row["method"] for row in table_rows("here")} == {"alpha", "beta"}
    assert go("--seeds", "3", "--out", "here") == 0  # other seeds are other cells, and take the place of the old rows
    assert [row["n"] for row in table_rows("here") if row["setting"] == "plain"] == ["3", "3"]


def test_resume_finds_the_newest_unfinished_run_and_keeps_what_is_done(monkeypatch, capsys):
    monkeypatch.setenv("TINY", "nan")
    assert go("--scale", "3") == 3
    errors = capsys.readouterr().err
    assert "not finite at step 7" in errors
    command = re.search(r"go on with: python -m experiments.tiny_study (.*)", errors)[1].split()
    folder = Path(command[command.index("--out") + 1])
    assert run_folder.read_json(folder / "run.json")["state"] == "diverged" and command[-1] == "--resume"
    assert calls() == ["plain alpha False", "plain beta False", "absent alpha False", "absent beta False"]
    monkeypatch.delenv("TINY")
    assert go("--scale", "4", "--resume") == 2  # another configuration
    assert go("--scale", "3", "--resume") == 0
    assert calls() == ["plain beta True", "absent alpha True", "absent beta True"]
    assert run_folder.read_json(folder / "run.json")["state"] == "finished"
    assert go("--scale", "3", "--resume") == 2  # nothing is unfinished any more


def test_a_cell_that_diverges_is_a_missing_row_and_the_others_are_computed(monkeypatch, capsys):
    monkeypatch.setenv("TINY", "nan")
    monkeypatch.setenv("TINY_METHOD", "alpha")
    assert go("--out", "here") == 3
    out, errors = capsys.readouterr()
    assert "[1/4] plain · alpha: missing, diverged: the loss is not finite at step 7" in out
    assert "Traceback" not in errors and "1 of 4 cells diverged" in errors
    assert "go on with: python -m experiments.tiny_study --out here --resume" in errors
    assert [(row["method"], row["verdict"]) for row in table_rows("here") if row["setting"] == "plain"] == [
        ("alpha", "missing"),
        ("beta", "above"),
    ]
    assert "plain · alpha: diverged: the loss is not finite at step 7" in Path("here/report.html").read_text()
    (kept,) = (path for path in Path("here/cells").iterdir() if path.is_dir())  # the diverged cell's checkpoints
    assert (kept / "checkpoint").exists()
    calls()
    monkeypatch.delenv("TINY")
    assert go("--out", "here", "--resume") == 0
    assert calls()[0] == "plain alpha True" and not kept.exists()
    assert [row["verdict"] for row in table_rows("here") if row["setting"] == "plain"] == ["above", "above"]


def test_a_run_whose_cells_all_diverge_still_leaves_its_page(monkeypatch):
    monkeypatch.setenv("TINY", "nan")
    assert go("--methods", "beta", "--out", "here") == 3
    assert {row["verdict"] for row in table_rows("here")} == {"missing"}
    assert "diverged: the loss is not finite at step 7" in Path("here/report.html").read_text()


def test_a_reason_is_printed_once(capsys):
    assert go("--out", "here") == 0
    out = capsys.readouterr().out
    assert out.count("the file absent.csv is not there") == 1
    assert "[4/4] absent · beta: missing, as above for absent · alpha" in out


def test_a_cell_is_known_by_what_its_result_depends_on():
    cell = runner.Cell("plain", "alpha", {"seeds": 4, "scale": 1.0})
    swapped = runner.Cell("plain", "alpha", {"scale": 1.0, "seeds": 4})
    assert run_folder.cell_id("tiny", cell) == run_folder.cell_id("tiny", swapped)
    others = [
        cell._replace(method="beta"),
        cell._replace(setting="x"),
        cell._replace(options={"seeds": 5, "scale": 1.0}),
    ]
    assert len({run_folder.cell_id("tiny", one) for one in [cell, *others]}) == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "quik"], "did you mean 'quick'"),
        (["--preset", "paper"], "it has tour, quick"),
        (["--methods", "alpa"], "did you mean 'alpha'"),
        (["--seeds", "0"], "at least 1"),
        (["--scale", "-1"], "above 0"),
        (["--sedes", "3"], "unknown option '--sedes'; did you mean '--seeds'"),
        (["--seeds", "many"], "parsing --seeds: invalid literal for int() with base 10: 'many'; see python -m"),
        (["--seeds"], "Missing value for argument '--seeds'"),
        (["tour"], "Unrecognized options: tour; see python -m experiments.tiny"),
        (["--resume"], "no unfinished run"),
        (["--resume", "--out", "nowhere"], "holds no run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, says, capsys):
    assert go(*words) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ") and "\n" not in errors and says in errors


def test_foreign_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert go("--out", "mine") == 2
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.tex"]
    run_folder.write_json(tmp_path / "other" / "run.json", {"study": "another", "state": "finished"})
    assert go("--out", "other") == 2
    assert "holds a run of another" in capsys.readouterr().err


def test_a_grid_that_cannot_run_at_all_is_an_error(monkeypatch, capsys):
    only_absent = tiny.STUDY._replace(
        cells=lambda config: [cell for cell in tiny.cells(config) if cell.setting == "absent"]
    )
    assert runner.run(only_absent, []) == 2
    assert "no cell could run: the file absent.csv is not there; get it with" in capsys.readouterr().err


def test_an_error_in_the_program_is_exit_code_1_with_its_traceback(monkeypatch, capsys):
    monkeypatch.setenv("TINY", "crash")
    assert go() == 1
    assert "RuntimeError: a mistake in the program" in capsys.readouterr().err


@pytest.mark.parametrize(("trouble", "code"), [("interrupt", 130), ("terminate", 143)])
def test_signals_leave_a_run_that_can_be_resumed(trouble, code, tmp_path):
    root = str(TINY.parents[2])
    environment = os.environ | {"TINY": trouble, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    ask = lambda *words: subprocess.run(
        [sys.executable, str(TINY), "--out", "here", *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    stopped = ask()
    assert stopped.returncode == code, stopped.stderr
    assert (
        "go on with: python -m experiments.tiny_study --out here --resume" in stopped.stderr
        and "Traceback" not in stopped.stderr
    )
    assert run_folder.read_json(tmp_path / "here" / "run.json")["state"] == "stopped"
    done = sum('"status": "done"' in path.read_text() for path in (tmp_path / "here" / "cells").glob("*.json"))
    assert done == 1


def test_a_device_that_is_not_here_is_named_and_leaves_no_folder(monkeypatch, capsys, tmp_path):
    def absent():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr("jax.devices", absent)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert go("--out", "here") == 2
    assert "JAX_PLATFORMS=cuda asks for a device that is not here" in capsys.readouterr().err
    assert not Path("here").exists()


def test_unreadable_run_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(check.UsageError, match="run.json is not readable as JSON"):
        run_folder.read_json(tmp_path / "run.json")


def test_the_line_about_a_gpu_that_jax_does_not_see(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(runner.Path, "exists", lambda self: str(self) == "/proc/driver/nvidia/version")
    assert "NVIDIA GPU but JAX sees only the CPU" in runner.gpu_warning()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert runner.gpu_warning() is None
