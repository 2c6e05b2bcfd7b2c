"""Real processes: killed at random steps, two that train one model, and one that hangs."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.training.watchdog import watchdog
from tests.training import toy

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(script: str, *arguments: object, timeout: float = 100, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def load(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_ten_random_steps_and_between_stages(tmp_path):
    """The same run, killed again and again: after a dispatch, while a checkpoint is written, and at the border of the
    stages."""
    undisturbed = run("toy.py", tmp_path / "a.npz", tmp_path / "a", 60, 0, "never")
    assert undisturbed.returncode == 0, undisturbed.stderr
    draw = random.Random(20)
    steps = sorted(draw.sample(range(1, toy.STEPS), 10))
    kills = [(step, draw.choice(["callback", "save"]), draw.randint(1, 4)) for step in steps]
    kills += [(toy.STEPS // 2, "callback", 5), (toy.STEPS // 2, "save", 5)]
    for step, where, pace in sorted(kills):
        killed = run("toy.py", tmp_path / "b.npz", tmp_path / "b", pace, step, where)
        assert killed.returncode == -9, (step, where, killed.stderr)
    finished = run("toy.py", tmp_path / "b.npz", tmp_path / "b", 3, 0, "never")
    assert finished.returncode == 0, finished.stderr
    assert toy.same(load(tmp_path / "b.npz"), load(tmp_path / "a.npz"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    variables |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, str(HERE / "pair.py"), str(tmp_path)]
    both = [
        subprocess.Popen(
            command, env=variables | {"JAX_PROCESS_ID": str(n)}, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for n in range(2)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors
    alone = run("pair.py", tmp_path)
    assert alone.returncode == 0, alone.stderr
    one, first, second = (load(tmp_path / f"{name}.npz") for name in ("alone", "0", "1"))
    assert toy.same(first, second)
    for a, b in zip(first, one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("limit", ["0", "soon", "-1"])
def test_a_limit_of_the_watchdog_that_is_none(limit, monkeypatch):
    monkeypatch.setenv("JAXKIT_HANG_PATIENCE_S", limit)
    with pytest.raises(UsageError, match="JAXKIT_HANG_PATIENCE_S must be"), watchdog():
        pass


def test_a_hang_is_told_and_can_be_ended():
    hung = run("hung.py", JAXKIT_HANG_PATIENCE_S="1", JAXKIT_HANG_ABORT_S="3", timeout=60)
    assert hung.returncode == 124
    assert "no sign of life" in hung.stderr and "of stage 'train'" in hung.stderr and "hung.py" in hung.stderr
