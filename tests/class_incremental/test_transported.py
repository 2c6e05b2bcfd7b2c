"""Coil: Sinkhorn's plan, the columns carried over, and the loss of a step, against NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, softmax

from jaxkit.check import UsageError
from jaxkit.class_incremental import make_stream
from jaxkit.class_incremental.cosine import with_cosine_head
from jaxkit.class_incremental.transported import (
    class_transport,
    coil,
    distances,
    prospective,
    retrospective,
    sinkhorn,
)
from jaxkit.networks import mlp
from jaxkit.training import optimizer

RNG = np.random.default_rng(0)
OLD, SEEN, CLASSES = 3, 5, 6
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
MEANS = RNG.normal(size=(CLASSES, 4)).astype(np.float32)
MEANS /= np.linalg.norm(MEANS, axis=1, keepdims=True)


def knopp(cost, a, b, regulariser, turns=2000):
    """Sinkhorn and Knopp's scaling in float64, not in logarithms."""
    kernel = np.exp(-np.asarray(cost, np.float64) / regulariser)
    v = np.ones(len(b))
    for _ in range(turns):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    return u[:, None] * kernel * v


@pytest.mark.parametrize("regulariser", [0.1, 0.464, 3.0])
def test_sinkhorn(regulariser):
    cost, a, b = RNG.random((4, 3)), np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.25, 0.25])
    plan = sinkhorn(*(jnp.asarray(v, jnp.float32) for v in (cost, a, b)), regulariser)
    np.testing.assert_allclose(plan, knopp(cost, a, b, regulariser), **CLOSE)
    np.testing.assert_allclose(plan.sum(1), a, **CLOSE)
    np.testing.assert_allclose(plan.sum(0), b, **CLOSE)


def test_sinkhorn_with_a_wide_regulariser_is_independence_and_with_none_of_mass_nothing():
    a, b = jnp.array([0.3, 0.7]), jnp.array([0.6, 0.4])
    np.testing.assert_allclose(sinkhorn(jnp.eye(2), a, b, 1e4), jnp.outer(a, b), atol=1e-4)
    assert not np.asarray(sinkhorn(jnp.eye(2), jnp.zeros(2), jnp.zeros(2))).any()


def test_sinkhorn_leaves_absent_classes_out():
    cost, a, b = RNG.random((3, 4)), np.array([0.5, 0.0, 0.5]), np.array([0.0, 0.2, 0.8, 0.0])
    plan = np.asarray(sinkhorn(*(jnp.asarray(v, jnp.float32) for v in (cost, a, b))))
    np.testing.assert_allclose(plan[::2, 1:3], knopp(cost[::2, 1:3], a[::2], b[1:3], 0.464), **CLOSE)
    assert not plan[1].any()
    assert not plan[:, [0, 3]].any()


def test_the_plan_is_between_old_and_new_classes():
    want = np.zeros((CLASSES, CLASSES))
    cost = cdist(MEANS[:OLD], MEANS[OLD:SEEN], "minkowski", p=3)
    want[:OLD, OLD:SEEN] = knopp(cost, np.full(3, 1 / 3), np.full(2, 1 / 2), 0.464)
    np.testing.assert_allclose(class_transport(jnp.asarray(MEANS), OLD, SEEN), want, **CLOSE)
    np.testing.assert_allclose(distances(jnp.asarray(MEANS), jnp.asarray(MEANS))[:OLD, OLD:SEEN], cost, **CLOSE)
    assert not np.asarray(class_transport(jnp.asarray(MEANS), 0, 2)).any()


def test_columns_are_carried_over_and_back():
    kernel, plan = RNG.normal(size=(4, CLASSES)), np.zeros((CLASSES, CLASSES))
    plan[:OLD, OLD:SEEN] = RNG.random((OLD, SEEN - OLD))
    unit = kernel / np.linalg.norm(kernel, axis=0)
    ahead = OLD * unit[:, :OLD] @ plan[:OLD, OLD:SEEN]
    ahead *= np.linalg.norm(kernel[:, :OLD], axis=0).mean() / np.linalg.norm(ahead, axis=0).mean()
    got = prospective(jnp.asarray(kernel, jnp.float32), jnp.asarray(plan, jnp.float32), OLD)
    np.testing.assert_allclose(got[:, OLD:SEEN], ahead, **CLOSE)
    assert not np.asarray(got)[:, [0, 1, 2, 5]].any()
    back = retrospective(jnp.asarray(kernel, jnp.float32), jnp.asarray(plan, jnp.float32))
    np.testing.assert_allclose(back[:, :OLD], unit[:, OLD:SEEN] @ plan[:OLD, OLD:SEEN].T, **CLOSE)


@functools.lru_cache
def second_task():
    """A plan over made data of four classes, its rows, and the state at the start of the second task."""
    y = jnp.asarray(np.repeat(np.arange(4), 8), jnp.int32)
    x = jnp.asarray(RNG.random((32, 5)), jnp.float32)
    plan = coil(
        mlp(4, hidden=(6,)), optimizer("sgd", 0.1), stream=make_stream(y, 2), memory=8, batch_size=8, epochs=4.0
    )
    data, keys = {"x": x, "y": y}, jax.random.split(jax.random.key(0), 3)
    first = jax.jit(lambda data: plan[0].end(plan[0].begin(None, data, keys[0]), data, keys[1]))(data)
    return plan, data, first, jax.jit(plan[1].begin)(first, data, keys[2])


def test_a_task_begins_with_columns_carried_over():
    _, data, before, begun = second_task()
    features = np.asarray(network().apply(before.params, before.variables, data["x"])[0]["features"])
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    means = np.stack([unit[np.asarray(data["y"]) == c].mean(0) for c in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    means[:2] = before.extra.means[:2]
    cost = cdist(means[:2], means[2:], "minkowski", p=3)
    plan = np.asarray(begun.extra.own.plan)
    np.testing.assert_allclose(plan[:2, 2:], knopp(cost, np.full(2, 0.5), np.full(2, 0.5), 0.464), **CLOSE)
    kernel = np.asarray(begun.params["head"]["kernel"][0])
    np.testing.assert_array_equal(kernel[:, :2], before.params["head"]["kernel"][0][:, :2])
    np.testing.assert_array_equal(kernel[:, 2:], begun.extra.own.heads[:, 2:])
    assert np.linalg.norm(kernel[:, 2:], axis=0).mean() == pytest.approx(np.linalg.norm(kernel[:, :2], axis=0).mean())


@functools.lru_cache
def network():
    return with_cosine_head(mlp(4, hidden=(6,)), 4, 1, 1.0)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_the_loss_of_a_step(epoch):
    plan, data, _, begun = second_task()
    rng = np.random.default_rng(epoch)
    kernel = begun.params["head"]["kernel"]
    moved = kernel + jnp.asarray(rng.normal(size=kernel.shape), jnp.float32)
    params = {**begun.params, "head": {"kernel": moved, "scale": jnp.float32(3.0)}}
    rows = rng.permutation(32)[:8]
    batch = {"x": data["x"][rows], "y": data["y"][rows]}
    # Sixteen new rows and eight exemplars are three steps of eight to an epoch.
    state = begun._replace(params=params, step=jnp.int32(3 * epoch + 2))
    _, metrics = jax.jit(plan[1].learner.update)(state, batch, jax.random.key(3))

    outputs = network().apply(params, begun.variables, batch["x"])[0]
    logits, features = np.asarray(outputs["logits"]), np.asarray(outputs["features"])
    taught = np.asarray(network().apply(*begun.extra.teacher, batch["x"])[0]["logits"])[:, :2]
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    columns = lambda kernel: kernel / np.linalg.norm(kernel, axis=0)
    clf = -log_softmax(logits, axis=1)[np.arange(8), batch["y"]].mean()
    kept = -(softmax(taught / 2, axis=1) * log_softmax(logits[:, :2] / 2, axis=1)).sum(1).mean()
    if epoch == 0:
        target = softmax(unit @ columns(np.asarray(begun.extra.own.heads)[:, 2:]) / 2, axis=1)
        transport = 1e-3 * -(target * log_softmax(logits[:, 2:] / 2, axis=1)).sum(1).mean()
    else:
        new = columns(np.asarray(moved[0])[:, 2:])
        carried = columns(new @ np.asarray(begun.extra.own.plan)[:2, 2:].T)
        student = log_softmax(unit @ carried / 2, axis=1)
        transport = 1e-3 * (epoch / 4) ** 2 * -(softmax(taught / 2, axis=1) * student).sum(1).mean()
    np.testing.assert_allclose(metrics["transport"], transport, **CLOSE)
    np.testing.assert_allclose(metrics["distillation"], kept, **CLOSE)
    np.testing.assert_allclose(metrics["loss"], 0.5 * clf + 0.5 * kept + transport, **CLOSE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn(jnp.eye(2), jnp.ones(2), jnp.ones(2), 0.0), "regulariser must be a finite number above 0"),
        (lambda: sinkhorn(jnp.eye(2), jnp.ones(2), jnp.ones(2), iterations=0), "iterations must be at least 1"),
        (lambda: coil(mlp(4), optimizer("sgd", 0.1), epochs=0, stream=make_stream([0, 1], 1)), "epochs must be"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()
