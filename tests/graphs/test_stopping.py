"""What ``keep_best`` predicts with before there is a best state, and the bits of its first one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit.graphs import Nodes, adagcn, keep_best
from jaxkit.graphs.objective import node_learner
from jaxkit.networks import mlp
from tests.graphs import toy

KEY = jax.random.key(0)


@functools.lru_cache
def rows():
    """Labelled and stopping nodes as rows of features."""
    train, stopping, _ = toy.split()
    x, y = toy.arrays()["x"]["nodes"], toy.arrays()["y"]
    part = lambda nodes: {"x": jnp.asarray(x[nodes]), "y": jnp.asarray(y[nodes])}
    return {**part(train), "stopping": part(stopping)}


def test_before_the_first_step_it_predicts_as_the_learner_it_wraps():
    learner = node_learner(mlp(toy.CLASSES, hidden=(4,)), optax.adam(0.1))
    kept = keep_best(learner, lambda batch: batch["stopping"])
    state = kept.init(KEY, rows())
    expected = learner.predict(learner.init(KEY, rows()), rows())["logits"]
    np.testing.assert_array_equal(kept.predict(state, rows())["logits"], expected)
    after, _ = kept.update(state, rows(), KEY)  # the first step's parameters are the best, for they are the only ones
    chex.assert_trees_all_equal(after.params, after.inner.params)


def test_seeds_together_start_with_the_bits_of_each_alone():
    learner = keep_best(node_learner(mlp(10, hidden=()), optax.adam(0.1)), lambda batch: batch)
    batch = {"x": jnp.zeros((4, 64)), "y": jnp.zeros(4, jnp.int32)}
    start = lambda key: learner.init(key, batch)
    together = jax.jit(lambda keys: jax.lax.map(start, keys))(jax.random.split(KEY, 3))
    for number, key in enumerate(jax.random.split(KEY, 3)):
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[number], together), jax.jit(start)(key))


@pytest.mark.parametrize("warm_start", [True, False])
def test_between_two_hops_the_finished_one_keeps_its_vote(warm_start):
    """The plan's prediction after ``begin`` of hop 1 and before its first step: h^(0) of the finished network, and
    h^(1) of the network from which the hop starts."""
    network = mlp(toy.CLASSES, hidden=(8,), bias=False)
    first, second = adagcn(network, optax.adam(0.05), layers=2, warm_start=warm_start)
    data, nodes = toy.data(), Nodes(jnp.arange(toy.NODES), toy.graph())
    state = first.begin(None, data, KEY)
    batch = {**data, "index": jnp.arange(len(data["y"]))}
    for step in range(3):
        state, _ = first.learner.update(state, batch, jax.random.fold_in(KEY, step))
    alone = first.learner.predict(state, {"x": nodes})["logits"]
    state = second.begin(first.end(state, data, KEY), data, KEY)
    params = state.base.inner.params
    logits, _ = network.apply(params, {}, jnp.asarray(toy.adjacency() @ toy.arrays()["x"]["nodes"], jnp.float32))
    log_p = np.asarray(jax.nn.log_softmax(logits["logits"]), np.float64)
    added = (toy.CLASSES - 1) * (log_p - log_p.mean(1, keepdims=True))
    together = second.learner.predict(state, {"x": nodes})["logits"]
    np.testing.assert_allclose(together, alone + added, rtol=1e-4, atol=1e-4)
