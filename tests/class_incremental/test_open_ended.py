"""Which methods take any number of tasks, and which share their programs between tasks, read off the methods
themselves."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.class_incremental import METHODS, Keep
from jaxkit.class_incremental.open_ended import CLOSED, GROWING, SHARING, make_program, stages_of, with_epochs
from jaxkit.class_incremental.stream import open_stream
from jaxkit.networks import mlp, vit
from jaxkit.training import optimizer

OPEN = [name for name in METHODS if name not in CLOSED]
CLASSES, COUNTS = 12, (9, 7)
OWN = {
    "ranpac": {"width": 16},
    "acil": {"width": 16},
    "l2p": {"pool": 4, "length": 2, "top_k": 2},
    "dytox": {"heads": 2},
}
FEW_EQUATIONS = ("finetune", "gem", "agem", "simplecil", "ranpac", "acil", "fetril", "derpp", "der")
"""Methods that are traced in less than a second, of each kind one at least."""


@functools.lru_cache
def stages(name, known, tasks):
    """(the stages of the task after ``known``, of two classes; the shape of a row)."""
    image = name in ("l2p", "dytox")
    network = vit(CLASSES, patch=4, width=8, depth=1, heads=2) if image else mlp(CLASSES, hidden=(8, 8))
    plan = METHODS[name].make(
        network,
        optimizer("adam", 1e-2),
        stream=open_stream(known, COUNTS, CLASSES, tasks),
        memory=Keep(None, 3),
        batch_size=8,
        **OWN.get(name, {}),
    )
    return stages_of(plan, len(known)), (8, 8, 1) if image else (64,)


def shapes(name, tasks):
    """Of a state with room for so many tasks, without what every phase starts anew."""
    found, shape = stages(name, (1,), tasks)
    batch = {"x": jnp.zeros((1, *shape)), "y": jnp.zeros((1,), jnp.int32)}
    return jax.eval_shape(found[0].learner.init, jax.random.key(0), batch)._replace(opt_state=(), grad_state=())


def values(jaxpr):
    """Arrays that a program has as constants; numbers stand in its text."""
    found = list(getattr(jaxpr, "consts", []))
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        found += [atom.val for atom in equation.invars if hasattr(atom, "val") and np.ndim(atom.val)]
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda part: hasattr(part, "eqns")):
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                found += values(part)
    return [np.asarray(value) for value in found if not hasattr(value, "eqns")]


def program(name, known, tasks):
    """The whole task after ``known`` with one step for each stage: its text and its constants."""
    found, shape = stages(name, known, tasks)
    data = {
        "x": jax.ShapeDtypeStruct((sum(COUNTS), *shape), jnp.float32),
        "y": jax.ShapeDtypeStruct((sum(COUNTS),), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = {"x": jnp.zeros((1, *shape)), "y": jnp.zeros((1,), jnp.int32)}
    state = jax.eval_shape(found[0].learner.init, key, batch)

    def task(state, data, key):
        for stage in found:
            state = state if stage.begin is None else stage.begin(state, data, key)
            drawn = stage.source.next(data, stage.source.init(data, key), state, jnp.zeros((), jnp.int32), key)[1]
            state, _ = stage.learner.update(state, drawn, key)
            state = state if stage.end is None else stage.end(state, data, key)
        return state

    jaxpr = jax.make_jaxpr(task)(state, data, key)
    return str(jaxpr), values(jaxpr)


@pytest.mark.parametrize("name", OPEN)
def test_what_grows_has_no_axis_of_tasks(name):
    assert (shapes(name, 2) == shapes(name, 5)) == (name in GROWING)


@pytest.mark.parametrize(
    "name", [name if name in FEW_EQUATIONS else pytest.param(name, marks=pytest.mark.slow) for name in OPEN]
)
def test_what_shares_has_the_same_program_whichever_classes_came_together(name):
    tasks = 0 if name in GROWING else 4
    (text, constants), (other, others) = program(name, (1,), tasks), program(name, (4, 6), tasks)
    equal = text == other and len(constants) == len(others)
    equal = equal and all(map(np.array_equal, constants, others))
    assert equal == (name in SHARING)


def test_every_method_is_open_or_says_what_to_do_instead():
    assert set(CLOSED) == set(METHODS) - set(OPEN) and set(GROWING) | set(SHARING) <= set(OPEN)
    assert len(set(GROWING)) == len(GROWING) and len(set(SHARING)) == len(SHARING)


def test_a_method_that_reads_the_epochs_of_a_task_is_given_them():
    given = {
        "network": "mlp",
        "options": {},
        "capacity": 4,
        "tasks": 3,
        "keep": Keep(None, 3),
        "batch_size": 8,
        "optimizer": "adam",
        "learning_rate": 1e-2,
        "settings": {},
    }
    coil, replay = make_program(method="coil", **given), make_program(method="replay", **given)
    assert with_epochs(coil, 7.0) == coil._replace(settings=(("epochs", 7.0),))
    assert with_epochs(replay, 7.0) is replay
