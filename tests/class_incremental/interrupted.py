"""Digits in five tasks, trained by a process that kills itself (SIGKILL) on the way; and the study, likewise.

``python interrupted.py METHOD OUT.npz WORKDIR STEPS_PER_DISPATCH [KILL_AT]`` trains a method, resuming what is in
WORKDIR, and writes the leaves of its state and all that was measured. It kills itself in the dispatch that follows the
checkpoint of step KILL_AT, once this is whole.

``python interrupted.py study KILL_AT WORDS...`` is ``python -m experiments.class_incremental WORDS...`` that kills
itself while it begins to write its checkpoint number KILL_AT, counted over all cells; 0: never.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from sklearn.datasets import load_digits

from jaxkit import training
from jaxkit.class_incremental import METHODS, Stream, make_stream, measure, steps_of
from jaxkit.learner import Data, Plan, path_name
from jaxkit.networks import mlp
from jaxkit.training import checkpoints
from jaxkit.training.schedule import stage_steps

MEMORY, TRAIN_ROWS, EPOCHS, BATCH = 40, 1000, 4, 32


@functools.lru_cache
def digits() -> tuple[Data, Data]:
    """(rows to train on, rows to test on) of all ten classes."""
    x, y = load_digits(return_X_y=True)
    rows = {"x": (x / 16.0).astype(np.float32), "y": y.astype(np.int32)}
    part = lambda low, high: {name: values[low:high] for name, values in rows.items()}
    return part(0, TRAIN_ROWS), part(TRAIN_ROWS, len(y))


@functools.lru_cache
def stream() -> Stream:
    """Two digits a task."""
    return make_stream(digits()[0]["y"], increment=2)


def plan(method: str) -> Plan:
    """Five tasks of two digits on a network with batch normalisation, whose statistics are state too."""
    network = mlp(10, hidden=(32,), norm="batch")
    optimizer = training.optimizer("momentum", 0.05)
    return METHODS[method].make(network, optimizer, stream=stream(), memory=MEMORY, batch_size=BATCH)


def steps(method: str) -> int:
    """Of the whole plan."""
    return steps_of(plan(method), EPOCHS, BATCH)


def borders(method: str) -> list[tuple[str, int, int]]:
    """(name, steps done before it, steps done with it) of every stage."""
    ends = np.cumsum(stage_steps(plan(method), steps(method))).tolist()
    return list(zip((stage.name for stage in plan(method)), [0, *ends], ends))


def die() -> None:
    """As if the machine had gone."""
    os.kill(os.getpid(), signal.SIGKILL)


def train(method: str, out: str, workdir: str, steps_per_dispatch: int, kill_at: int | None) -> None:
    dispatches, saved = [], Path(workdir) / "checkpoints" / str(kill_at)

    def callback(event):
        dispatches.append(event.step)
        if kill_at is not None and event.step > kill_at:
            while not saved.exists():  # written behind the run's back
                time.sleep(0.01)
            die()

    train_rows, test_rows = digits()
    fitted = training.fit(
        plan(method), train_rows, key=3, steps=steps(method), eval=training.Evaluation(test_rows, measure(stream())),
        workdir=workdir, resume=True, checkpoint_every_s=0.0, steps_per_dispatch=steps_per_dispatch,
        callbacks=[callback], progress=False, tag=method,
    )  # fmt: skip
    state = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(fitted.state)}
    measured = {"evals": fitted.history.evals, "metrics": fitted.history.metrics}
    found = {f"{kind}/{name}": values for kind, series in measured.items() for name, values in series.items()}
    np.savez(out, dispatches=dispatches, **state, **found)


def study(kill_at: int, words: list[str]) -> int:
    from experiments import class_incremental
    from experiments.runner import run

    save, saved = checkpoints.Checkpoints.save, []

    def save_or_die(self, step, checkpoint):
        save(self, step, checkpoint)
        saved.append(step)
        if len(saved) == kill_at:
            die()

    checkpoints.Checkpoints.save = save_or_die
    return run(class_incremental.STUDY, words)


if __name__ == "__main__":
    if sys.argv[1] == "study":
        raise SystemExit(study(int(sys.argv[2]), sys.argv[3:]))
    train(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]) if sys.argv[5:] else None)
