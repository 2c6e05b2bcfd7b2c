"""Memory does not grow with the tasks: after task 10 no more than after task 2, the method's own bytes, and 5 per cent.

The arrays of a run have room for all tasks from the start, so that DER's further backbones, which the budget counts as
its own, are there at the second task already. Both bounds are asserted: the one that allows for them, and the one that
does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.class_incremental import ten_tasks
from tests.class_incremental.ten_tasks import Look

ROOT = Path(__file__).parents[2]
PATIENCE = 400  # seconds; an idle machine of two cores takes 30 at most
SLACK = 1.05
GROWS = "memory grows"


def after(looks: list[Look], task: int) -> Look:
    return looks[task - 1]


def check(looks: list[Look], kind: str, own: int) -> None:
    """The bounds, of ``arrays`` or of ``resident``."""
    second, tenth = (getattr(after(looks, task), kind) for task in (2, 10))
    assert tenth <= SLACK * second + own, f"{GROWS}: {second} bytes after task 2, {tenth} after task 10, own {own}"
    assert tenth <= SLACK * second, f"{GROWS}: {second} bytes after task 2, {tenth} after task 10"


def check_counted(looks: list[Look], method: str, width: int) -> None:
    """What is measured has the state in it, and what is known of the state has the network in it."""
    parameters = width * (ten_tasks.FEATURES + 1) + width * (width + 1)
    backbones = 10 if method == "der" else 1
    for one in looks[1:]:
        assert 4 * backbones * parameters < one.state <= one.arrays
    assert ten_tasks.own_bytes(method, width) == (8 * 4 * parameters if method == "der" else 0)


WIDTH = 128  # of both layers: 0.2 MB


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize(
    ("method", "how"),
    [("finetune", "fit"), ("replay", "fit"), ("ewc", "fit"), ("wa", "fit"), ("foster", "fit"), ("ewc", "learn")],
)
def test_live_arrays_do_not_grow(method, how):
    looks = ten_tasks.HOWS[how](method, WIDTH)
    check_counted(looks, method, WIDTH)
    check(looks, "arrays", ten_tasks.own_bytes(method, WIDTH))


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("how", ten_tasks.HOWS)
def test_a_copy_of_the_network_for_every_task_is_caught(how):
    looks = ten_tasks.HOWS[how]("finetune", WIDTH, leaky=True)
    with pytest.raises(AssertionError, match=GROWS):
        check(looks, "arrays", ten_tasks.own_bytes("finetune", WIDTH))


# By default glibc keeps freed memory for itself, in pieces that it cannot give back, and the resident set of a run
# wanders by a tenth. With one arena, and a mapping for every larger array, it is what is held.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def measured(folder: Path, method: str, how: str, *words: str) -> list[Look]:
    """The looks of a process of its own."""
    out = folder / "looks.json"
    variables = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | MALLOC
    command = [sys.executable, str(Path(ten_tasks.__file__)), method, how, str(out), *words]
    process = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return [Look(*look) for look in json.loads(out.read_text())]


needs_proc = pytest.mark.skipif(not ten_tasks.STATM.exists(), reason="the resident set is read from Linux's /proc")


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize(("method", "how"), [("icarl", "fit"), ("icarl", "learn"), ("der", "fit"), ("der", "learn")])
def test_the_resident_set_does_not_grow(method, how, tmp_path):
    looks = measured(tmp_path, method, how)
    check_counted(looks, method, ten_tasks.WIDE)
    for kind in ("arrays", "resident"):
        check(looks, kind, ten_tasks.own_bytes(method, ten_tasks.WIDE))
    assert all(one.arrays < one.resident for one in looks)  # a CPU's arrays are in the process


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("how", ten_tasks.HOWS)
def test_a_resident_set_with_a_copy_for_every_task_is_caught(how, tmp_path):
    looks = measured(tmp_path, "icarl", how, "leaky")
    with pytest.raises(AssertionError, match=GROWS):
        check(looks, "resident", ten_tasks.own_bytes("icarl", ten_tasks.WIDE))
