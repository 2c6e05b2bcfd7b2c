"""What a method may not touch: entries of other tasks, rows of the first task, backbones that are not there yet."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit.check import UsageError
from jaxkit.class_incremental import METHODS, Keep, make_stream
from jaxkit.class_incremental.expanding import align, expanding
from jaxkit.networks import convnet, mlp
from jaxkit.training import optimizer

CLASSES, ROWS = 6, 20


@functools.lru_cache
def rows():
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(CLASSES), ROWS).astype(np.int32)
    x = random.uniform(0.2, 0.8, size=(CLASSES, 7))[y] + random.uniform(-0.2, 0.2, size=(len(y), 7))
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y)}


def walked(name, steps, **settings):
    """The state after each stage, and the rows that each stage saw."""
    data = rows()
    descent = optax.chain(optax.add_decayed_weights(1e-2), optimizer("momentum", 0.05))  # decay reaches what it may
    stream = make_stream(np.asarray(data["y"]), increment=2)
    network = mlp(CLASSES, hidden=(8,))
    settings = {"memory": 18, "batch_size": 10, **settings}
    plan = METHODS[name].make(network, descent, stream=stream, **settings)
    state, states, seen, updates = None, {}, {}, {}
    for number, stage in enumerate(plan):
        key = jax.random.fold_in(jax.random.key(3), number)
        state = jax.jit(stage.begin)(state, data, key)
        groups = stage.source.init(data, key)
        update = updates.setdefault(id(stage.learner), jax.jit(stage.learner.update))
        draw = jax.jit(functools.partial(stage.source.next, data, groups))
        seen[stage.name] = set()
        for step in range(steps):
            batch = draw(state, jnp.asarray(step, jnp.int32), key)[1]
            seen[stage.name] |= set(np.asarray(batch["index"]).tolist())
            state, _ = update(state, batch, jax.random.fold_in(key, step))
        state = state if stage.end is None else jax.jit(stage.end)(state, data, key)
        states[stage.name] = state
    return states, seen


def test_bic_learns_the_correction_of_the_task_at_hand_alone():
    states, seen = walked("bic", 8)
    table = {name: np.asarray([state.variables["alpha"], state.variables["beta"]]) for name, state in states.items()}
    unlearnt = np.array([[1.0] * 3, [0.0] * 3])
    for name in ("task 1: train", "task 2: train"):
        np.testing.assert_array_equal(table[name], unlearnt)
    after = table["task 2: correct"]
    np.testing.assert_array_equal(after[:, [0, 2]], unlearnt[:, [0, 2]])  # weight decay does not reach them
    assert (after[:, 1] != unlearnt[:, 1]).all()
    np.testing.assert_array_equal(table["task 3: train"], after)
    np.testing.assert_array_equal(table["task 3: correct"][:, :2], after[:, :2])
    assert (table["task 3: correct"][:, 2] != unlearnt[:, 2]).all()
    # Rows are held back from the second task on: the first has no correction.
    assert len(seen["task 1: train"]) == 2 * ROWS
    held = seen["task 2: correct"]
    assert held and not held & seen["task 2: train"]
    # Only the two numbers move in a correction.
    weights = lambda name: {k: v for k, v in states[name].params.items() if k != "rectify"}
    same = jax.tree.map(np.array_equal, weights("task 3: train"), weights("task 3: correct"))
    assert all(jax.tree.leaves(same))


def test_proxies_of_podnet_differ_in_every_task():
    states, _ = walked("podnet", 6, proxies=3)
    kernel = np.asarray(states["task 3: finetune"].params["head"]["kernel"])  # [proxies, features, classes]
    unit = kernel / np.linalg.norm(kernel, axis=1, keepdims=True)
    alike = np.einsum("pfc,qfc->cpq", unit, unit)[:, *np.triu_indices(3, 1)]
    assert (alike < 0.999).all()


def test_rmm_trains_on_the_same_rows_in_every_phase_of_a_task():
    _, seen = walked("rmm", 8, m_rates=(0.0, 0.4, 0.5))
    for task, rate in ((2, 0.4), (3, 0.5)):
        phases = [
            {row for row in seen[f"task {task}: {name}"] if row < CLASSES * ROWS} for name in ("boost", "compress")
        ]
        assert phases[0] == phases[1] and len(phases[0]) == round(2 * (1 - rate) * ROWS)


@pytest.mark.parametrize("name", ["podnet", "derpp", "gem", "agem"])
def test_a_method_that_needs_exemplars_says_so(name):
    with pytest.raises(UsageError, match=f"{name} needs exemplars"):
        walked(name, 1, memory=Keep(None, 0))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_alignment_reads_the_backbones_that_there_are(count):
    random = np.random.default_rng(count)
    kernel = random.normal(size=(3 * 4, CLASSES)).astype(np.float32)
    states, _ = aligned_state(kernel, count)
    here = 4 * (count + 1)
    norms = np.linalg.norm(kernel[:here].astype(np.float64), axis=0)
    gamma = norms[:2].mean() / norms[2:4].mean()
    want = kernel.copy()
    want[:here, 2:4] *= gamma
    np.testing.assert_allclose(states.params["head"]["kernel"], want, rtol=1e-5)


def aligned_state(kernel, count):
    """A state of DER's with this head, two old and two new classes, before and after ``align``."""
    data = rows()
    stream = make_stream(np.asarray(data["y"]), increment=2)
    plan = METHODS["der"].make(mlp(CLASSES, hidden=(4,)), optimizer("sgd", 0.1), stream=stream, memory=18)
    state = plan[0].begin(None, data, jax.random.key(0))
    task = state.extra._replace(old=jnp.asarray(2, jnp.int32), seen=jnp.asarray(4, jnp.int32))
    head = {**state.params["head"], "kernel": jnp.asarray(kernel)}
    variables = {**state.variables, "count": jnp.asarray(count, jnp.int32)}
    state = state._replace(params={**state.params, "head": head}, variables=variables, extra=task)
    return align(state, data, jax.random.key(1)), state


@pytest.mark.parametrize("count", [0, 1])
def test_what_memo_shares_and_does_not_train_computes_as_in_prediction(count):
    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1)) + 3.0  # far from the statistics at the start
    network = convnet(4, 2, norm="batch")
    for train_shared in (True, False):
        grown = expanding(network, 4, 3, 2, train_shared)
        params, variables = grown.init(jax.random.key(1), x)
        variables = {**variables, "count": jnp.asarray(count, jnp.int32)}
        _, after = jax.jit(lambda *args, g=grown: g.apply(*args, train=True))(params, variables, x)
        moved = not all(jax.tree.leaves(jax.tree.map(np.array_equal, variables["shared"], after["shared"])))
        assert moved == (train_shared or count == 0)
