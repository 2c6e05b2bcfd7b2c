"""AANets: two branches and their weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit.check import UsageError
from jaxkit.class_incremental import make_stream
from jaxkit.class_incremental.branches import aanets, aggregating, balanced_mean, rescaled, scalings
from jaxkit.class_incremental.cosine import with_cosine_head
from jaxkit.networks import convnet, mlp
from jaxkit.training import optimizer

RNG = np.random.default_rng(0)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
RATE = 0.05


def test_a_kernel_has_a_factor_for_each_output_or_pair_of_channels():
    x = jnp.zeros((1, 8, 8, 2))
    params = convnet(4, 3, norm="batch").init(jax.random.key(0), x)[0]["backbone"]
    factors = scalings(params)
    kernels = {path: leaf for path, leaf in leaves(params).items() if path[-1] == "kernel"}
    assert set(leaves(factors)) == set(kernels)
    for path, factor in leaves(factors).items():
        kernel = kernels[path]
        assert factor.shape == (kernel.shape[2:] if kernel.ndim == 4 else kernel.shape[1:])
    same = rescaled(params, factors)
    for path, leaf in leaves(params).items():
        np.testing.assert_array_equal(leaf, leaves(same)[path])
    twice = rescaled(params, jax.tree.map(lambda leaf: 2 * leaf, factors))
    for path, leaf in leaves(params).items():
        np.testing.assert_array_equal(leaf * (2 if path[-1] == "kernel" else 1), leaves(twice)[path])


def leaves(tree):
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_each_stage_mixes_its_branches():
    network, x = aggregating(mlp(4, hidden=(6, 5)), 4, 7.0), RNG.normal(size=(3, 2)).astype(np.float32)
    params, variables = network.init(jax.random.key(0), jnp.asarray(x))
    other = network.init(jax.random.key(1), jnp.asarray(x))[0]["stable"]
    factors = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size), params["factors"])
    params = {**params, "plastic": other, "factors": factors, "alpha": jnp.array([0.3, 0.8])}
    h = x
    for name, alpha in (("dense_0", 0.3), ("dense_1", 0.8)):
        layer = lambda own, factor: np.maximum(h @ (np.asarray(own["kernel"]) * factor) + np.asarray(own["bias"]), 0)
        one = layer(params["stable"][name], np.asarray(factors[name]["kernel"]))
        h = alpha * one + (1 - alpha) * layer(other[name], 1.0)
    outputs, _ = network.apply(params, variables, jnp.asarray(x))
    np.testing.assert_allclose(outputs["features"], h, **CLOSE)
    kernel = np.asarray(params["head"]["kernel"][0])
    cosines = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (kernel / np.linalg.norm(kernel, axis=0))
    np.testing.assert_allclose(outputs["logits"], 7.0 * cosines, **CLOSE)


def test_at_first_there_is_one_branch():
    x = jax.random.normal(jax.random.key(2), (5, 3))
    plain = with_cosine_head(mlp(4, hidden=(6,), norm="batch"), 4, 1, 2.0)
    params, variables = plain.init(jax.random.key(0), x)
    both = aggregating(mlp(4, hidden=(6,), norm="batch"), 4, 2.0)
    own, statistics = both.init(jax.random.key(0), x)
    for train in (False, True):
        want, after = plain.apply(params, variables, x, train=train)
        got, found = both.apply(own, statistics, x, train=train)
        np.testing.assert_array_equal(got["logits"], want["logits"])
        jax.tree.map(np.testing.assert_array_equal, found["stable"], after)


@functools.lru_cache
def second_task():
    """A plan over made data of four classes, its rows, and the state at the start of the second task."""
    y = jnp.asarray(np.repeat(np.arange(4), [6, 6, 9, 3]), jnp.int32)
    x = jnp.asarray(RNG.random((24, 5)), jnp.float32)
    plan = aanets(
        mlp(4, hidden=(6,)),
        optimizer("sgd", 0.1),
        stream=make_stream(y, 2),
        memory=6,
        batch_size=8,
        alpha_optimizer=optax.sgd(RATE),
    )
    data, keys = {"x": x, "y": y}, jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def first(data):
        state, _ = plan[0].learner.update(plan[0].begin(None, data, keys[0]), {"x": x[:8], "y": y[:8]}, keys[0])
        return plan[0].end(state, data, keys[1])

    state = first(data)
    return plan, data, state, jax.jit(plan[1].begin)(state, data, keys[2])


def test_the_second_task_splits_the_branch():
    plan, data, before, begun = second_task()
    assert before.params["alpha"].tolist() == [1.0]
    assert begun.params["alpha"].tolist() == [0.5]
    jax.tree.map(np.testing.assert_array_equal, begun.params["plastic"], before.params["stable"])
    old = jax.jit(plan[0].learner.predict)(before, {"x": data["x"]})
    new = jax.jit(plan[1].learner.predict)(begun, {"x": data["x"]})
    np.testing.assert_allclose(new["logits"][:, :2], old["logits"][:, :2], **CLOSE)


def test_a_step_moves_alpha_by_balanced_rows_and_leaves_the_frozen_kernels():
    plan, data, _, begun = second_task()
    moved = jax.tree.map(lambda leaf: leaf + 0.3, begun.params["plastic"])
    begun = begun._replace(params={**begun.params, "plastic": moved, "alpha": jnp.array([0.4])})
    rows = np.array([0, 7, 12, 13, 14, 15, 21, 22])
    batch = {"x": data["x"][rows], "y": data["y"][rows]}
    after, metrics = jax.jit(plan[1].learner.update)(begun, batch, jax.random.key(3))
    both = aggregating(mlp(4, hidden=(6,)), 4, 10.0)

    def upper(alpha):
        logits = both.apply({**begun.params, "alpha": alpha}, begun.variables, batch["x"])[0]["logits"]
        losses = -jax.nn.log_softmax(logits)[jnp.arange(8), batch["y"]]
        # Three exemplars of each old class; new classes are taken to have the six rows of an average class.
        weights = jnp.where(batch["y"] < 2, 1 / 3, 1 / 6)
        return (weights * losses).sum() / weights.sum()

    value, slope = jax.jit(jax.value_and_grad(upper))(begun.params["alpha"])
    np.testing.assert_allclose(metrics["upper"], value, **CLOSE)
    np.testing.assert_allclose(after.params["alpha"], 0.4 - RATE * slope, **CLOSE)
    stable, trained = begun.params["stable"]["dense_0"], after.params["stable"]["dense_0"]
    np.testing.assert_array_equal(trained["kernel"], stable["kernel"])
    for path in (("stable", "dense_0", "bias"), ("factors", "dense_0", "kernel"), ("plastic", "dense_0", "kernel")):
        assert not np.allclose(leaves(after.params)[path], leaves(begun.params)[path])


def test_balanced_rows():
    labels, values = np.array([0, 0, 0, 1, 2, 2]), RNG.normal(size=6).astype(np.float32)
    counts = np.bincount(labels).astype(np.float32)
    got = balanced_mean(jnp.asarray(values), jnp.asarray(labels), jnp.asarray(counts), {})
    np.testing.assert_allclose(got, np.mean([values[labels == c].mean() for c in range(3)]), **CLOSE)
    valid = np.array([True, True, True, True, True, False])
    got = balanced_mean(jnp.asarray(values), jnp.asarray(labels), jnp.asarray(counts), {"valid": jnp.asarray(valid)})
    weights = 1 / counts[labels[:5]]
    np.testing.assert_allclose(got, (weights * values[:5]).sum() / weights.sum(), **CLOSE)


def test_bad_input():
    with pytest.raises(UsageError, match="scale must be a finite number above 0"):
        aanets(mlp(4), optimizer("sgd", 0.1), scale=0.0, stream=make_stream([0, 1], 1))
