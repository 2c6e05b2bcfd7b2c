"""DER++: the loss against NumPy, and logits that stay with their exemplars."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_digits

from jaxkit.check import UsageError
from jaxkit.class_incremental import dark, make_stream
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.readout import AWAY
from jaxkit.networks import mlp
from jaxkit.training import fit, optimizer

CLASSES, MEMORY, BATCH = 6, 13, 16
NETWORK = mlp(CLASSES, hidden=(16,))


@functools.lru_cache
def digits():
    x, y = load_digits(return_X_y=True)
    kept = y[:500] < CLASSES
    return {"x": jnp.asarray(x[:500][kept] / 16.0, jnp.float32), "y": jnp.asarray(y[:500][kept], jnp.int32)}


STREAM = make_stream(digits()["y"], increment=2)


def plan(**settings):
    settings = {"stream": STREAM, "memory": MEMORY, "batch_size": BATCH, **settings}
    return dark.derpp(NETWORK, optimizer("momentum", 0.1), **settings)


PLAN = plan()


@functools.lru_cache
def after(tasks):
    return PLAN, fit(PLAN[:tasks], digits(), key=0, steps=30 * tasks, progress=False).state


def logits_of(state, x):
    return np.asarray(NETWORK.apply(state.params, state.variables, x)[0]["logits"], np.float64)


def stored(state):
    """For each class its exemplars, as (rows, logits)."""
    memory, own = state.extra.memory, state.extra.own
    label, taken = (np.asarray(part) for part in memories.labels(memory))
    x = np.asarray(memories.read(memory, jnp.arange(MEMORY)))
    return {c: (x[taken & (label == c)], np.asarray(own.logits)[taken & (label == c)]) for c in range(CLASSES)}


def test_only_classes_known_at_the_time_enter_the_error():
    rng = np.random.default_rng(0)
    z, kept = rng.normal(size=(2, 3, 5)).astype(np.float32)
    kept[0, 2:] = AWAY
    kept[1] = AWAY
    want = [np.square(z[0, :2] - kept[0, :2]).mean(), 0.0, np.square(z[2] - kept[2]).mean()]
    np.testing.assert_allclose(dark.logit_error(jnp.asarray(z), jnp.asarray(kept)), want, rtol=1e-5)
    grads = np.asarray(jax.grad(lambda z: dark.logit_error(z, jnp.asarray(kept)).sum())(jnp.asarray(z)))
    np.testing.assert_allclose(grads[0], [*(z[0, :2] - kept[0, :2]), 0, 0, 0], rtol=1e-5)  # 2 / 2 classes
    assert (grads[1] == 0).all()


def test_an_exemplar_is_stored_with_the_logits_of_the_end_of_its_task():
    state = after(1)[1]
    found = stored(state)
    assert [len(found[c][0]) for c in range(CLASSES)] == [6, 6, 0, 0, 0, 0]
    for c in (0, 1):
        rows, logits = found[c]
        np.testing.assert_allclose(logits[:, :2], logits_of(state, rows)[:, :2], atol=1e-4)
        assert (logits[:, 2:] == np.float32(AWAY)).all()
    assert (np.asarray(state.extra.own.logits)[12:] == np.float32(AWAY)).all()


def test_logits_stay_with_their_exemplars_when_slots_change():
    one, two, three = (stored(after(tasks)[1]) for tasks in (1, 2, 3))
    for before, now, classes, each in ((one, two, (0, 1), 3), (two, three, (0, 1, 2, 3), 2)):
        for c in classes:
            assert len(now[c][0]) == each
            np.testing.assert_array_equal(now[c][0], before[c][0][:each])
            np.testing.assert_array_equal(now[c][1], before[c][1][:each])
    state = after(2)[1]
    for c in (2, 3):
        np.testing.assert_allclose(two[c][1][:, :4], logits_of(state, two[c][0])[:, :4], atol=1e-4)
        assert (two[c][1][:, 4:] == np.float32(AWAY)).all()


@jax.jit
def batch_at(state):
    source, key = PLAN[1].source, jax.random.key(5)
    return source.next(digits(), source.init(digits(), key), state, jnp.int32(0), key)[1]


def test_the_loss_of_a_step():
    stages, state = after(1)
    state = jax.jit(stages[1].begin)(state, digits(), jax.random.key(1))
    batch = {name: np.asarray(leaf) for name, leaf in batch_at(state).items()}
    y, z = batch["y"], logits_of(state, batch["x"])[:, :4]
    assert set(y[:BATCH].tolist()) == {2, 3}
    assert set(y[BATCH:].tolist()) == {0, 1}
    assert batch["dark"].tolist() == [False] * BATCH + [True] * BATCH + [False] * BATCH
    slots = batch["index"][BATCH:] - len(digits()["y"])
    np.testing.assert_array_equal(batch["x"][BATCH:], memories.read(state.extra.memory, jnp.asarray(slots)))
    np.testing.assert_array_equal(batch["logits"][BATCH:], state.extra.own.logits[slots])
    ce = -np.take_along_axis(log_softmax(z, axis=1), y[:, None], 1)[:, 0]
    middle = slice(BATCH, 2 * BATCH)
    error = np.square(z[middle, :2] - batch["logits"][middle, :2]).mean(1)
    want = ce[:BATCH].mean() + 0.2 * error.mean() + 0.5 * ce[2 * BATCH :].mean()
    metrics = jax.jit(stages[1].learner.update)(state, batch, jax.random.key(0))[1]
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-4)
    np.testing.assert_allclose(metrics["dark"], error.mean(), rtol=1e-4)


def test_in_the_first_task_there_is_nothing_to_remember():
    state = jax.jit(functools.partial(PLAN[0].begin, None))(digits(), jax.random.key(1))
    batch = batch_at(state)
    assert np.asarray(batch["valid"]).tolist() == [True] * BATCH + [False] * 2 * BATCH
    metrics = jax.jit(PLAN[0].learner.update)(state, batch, jax.random.key(0))[1]
    assert metrics["dark"] == metrics["replay"] == 0
    assert jnp.isfinite(metrics["loss"])


def test_what_the_caller_can_mend():
    with pytest.raises(UsageError, match="derpp needs exemplars"):
        plan(memory=None)
    with pytest.raises(UsageError, match="alpha must lie in"):
        plan(alpha=-1.0)
