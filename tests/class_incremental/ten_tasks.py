"""A stream of ten tasks, and what is in memory after each; run as a process of its own to measure its resident set.

``python ten_tasks.py METHOD HOW OUT.json [leaky]`` trains a method by ``fit`` or by ``learn`` and writes a list of
``Look``. ``leaky`` keeps a copy of the network, or the model, of every task.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit.class_incremental import METHODS, make_stream, start
from jaxkit.class_incremental.budget import full_bytes, kept_bytes
from jaxkit.class_incremental.parts import parameters_of
from jaxkit.learner import Data, Network, Plan, TrainState
from jaxkit.networks import mlp
from jaxkit.training import fit, optimizer
from jaxkit.training.schedule import stage_steps

CLASSES, TASKS, ROWS, FEATURES = 20, 10, 24, 256
MEMORY, BATCH = 40, 16
WIDE = 1280
"""Of both layers, a network of 8 MB: eight of them are far more than 5 per cent of a process."""
STATM = Path("/proc/self/statm")
WITHOUT_EXEMPLARS = ("finetune", "ewc", "si", "mas", "lwf")


class Look(NamedTuple):
    """What is in memory, in bytes.

    Attributes:
      arrays: of all live arrays of JAX.
      resident: of the process, 0 where that cannot be told.
      state: of the arrays that the state is known to have.
    """

    arrays: int
    resident: int
    state: int


@functools.lru_cache
def rows() -> Data:
    """Rows made at random: memory does not depend on what they mean."""
    random = np.random.default_rng(0)
    x = random.random((CLASSES * ROWS, FEATURES), np.float32)
    return {"x": x, "y": np.arange(CLASSES * ROWS, dtype=np.int32) % CLASSES}


def network(width: int) -> Network:
    return mlp(CLASSES, hidden=(width, width))


def own_bytes(method: str, width: int) -> int:
    """What the method has more after the tenth task than after the second, by the survey's rule: DER's backbones."""
    parts = parameters_of(network(width), rows()["x"], 0)
    exemplars = 0 if method in WITHOUT_EXEMPLARS else MEMORY
    after = lambda tasks: kept_bytes(method, tasks, parts, exemplars, FEATURES)
    return after(TASKS) - after(2)


def look(state: TrainState, before: list[jax.Array]) -> Look:
    """What is in memory now, the garbage collected; arrays without those that were there ``before``."""
    gc.collect()
    size = lambda arrays: sum(array.nbytes for array in arrays)
    resident = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0
    known = full_bytes(state)
    return Look(size(jax.live_arrays()) - size(before), resident, known.total + known.optimizer)


def plan(method: str, width: int) -> Plan:
    """Ten tasks of two classes."""
    memory = {} if method in WITHOUT_EXEMPLARS else {"memory": MEMORY}
    stream = make_stream(rows()["y"], increment=CLASSES // TASKS)
    return METHODS[method].make(network(width), optimizer("momentum", 0.01), stream=stream, batch_size=BATCH, **memory)


def by_fit(method: str, width: int, leaky: bool = False) -> list[Look]:
    """A look after the last step of every task, and one when all is over."""
    before, stages = jax.live_arrays(), plan(method, width)
    steps = 4 * len(stages)
    ends = dict(zip(np.cumsum(stage_steps(stages, steps)).tolist(), (stage.name.split(":")[0] for stage in stages)))
    last = {task: step for step, task in ends.items()}.values()  # of the stages of a task the last
    looks: list[Look] = []
    kept: list[Any] = []

    def callback(event):
        if event.step in last:
            kept.extend([jax.tree.map(jnp.copy, event.state.params)] if leaky else [])
            looks.append(look(event.state, before))

    state = fit(stages, rows(), key=0, steps=steps, steps_per_dispatch=2, callbacks=[callback], progress=False).state
    return [*looks, look(state, before)]


def by_learn(method: str, width: int, leaky: bool = False) -> list[Look]:
    """A look at every model, when the one before is gone."""
    before, x, y = jax.live_arrays(), rows()["x"], rows()["y"]
    of_task = lambda task: (x[y // 2 == task], y[y // 2 == task])
    memory = {} if method in WITHOUT_EXEMPLARS else {"memory": MEMORY}
    model = start(
        method, *of_task(0), network="mlp", network_options={"hidden": (width, width)}, capacity=CLASSES, tasks=TASKS,
        epochs=2, batch_size=BATCH, optimizer="momentum", learning_rate=0.01, **memory,
    )  # fmt: skip
    looks, kept = [look(model.state, before)], []
    for task in range(1, TASKS):
        kept.extend([model] if leaky else [])
        model = model.learn(*of_task(task))
        looks.append(look(model.state, before))
    return looks


HOWS = {"fit": by_fit, "learn": by_learn}


if __name__ == "__main__":
    found = HOWS[sys.argv[2]](sys.argv[1], WIDE, sys.argv[4:] == ["leaky"])
    Path(sys.argv[3]).write_text(json.dumps(found))
