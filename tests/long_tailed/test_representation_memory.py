"""OLTR: its logits, its loss and both gradients against NumPy, and what its second stage starts from."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import fit
from jaxkit.check import UsageError
from jaxkit.long_tailed import representation as r
from jaxkit.long_tailed.representation.oltr import Memory
from jaxkit.networks import convnet, mlp

RNG = np.random.default_rng(8)
CLASSES, FEATURES = 4, 5
COUNTS = np.array([24, 8, 4, 1])
Y = np.repeat(np.arange(CLASSES), COUNTS).astype(np.int32)
X = (np.eye(CLASSES, 6)[Y] + 0.5 * RNG.normal(size=(len(Y), 6))).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
KEY = jax.random.key(3)
NETWORK = mlp(CLASSES, hidden=(FEATURES,), norm="layer")
SGD = optax.sgd(0.1)
F = RNG.normal(size=(9, FEATURES))
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 3, 3])
H = RNG.normal(size=(9, CLASSES))
MEMORY = Memory(*(RNG.normal(size=s) for s in ((CLASSES, FEATURES), (FEATURES,) * 2, (FEATURES,), (FEATURES, CLASSES))))
memory_logits = jax.jit(r.memory_logits)
as_f32 = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def logits_in_numpy(features, hallucinator, memory):
    rows = []
    for x, h in zip(features, hallucinator):
        nearest = min(np.linalg.norm(x - m) for m in memory.centroids)
        share = np.exp(h) / np.exp(h).sum()
        infused = x + np.tanh(memory.selector.T @ x + memory.selector_bias) * (share @ memory.centroids)
        v = 10.0 / nearest * infused
        squashed = np.linalg.norm(v) / (1 + np.linalg.norm(v)) * v / np.linalg.norm(v)
        rows.append([16.0 * squashed @ w / np.linalg.norm(w) for w in memory.kernel.T])
    return np.array(rows)


def loss_in_numpy(features, labels, centroids):
    """(value, gradient to the features, gradient to the centroids) with the released update of the attracting part."""
    rows, classes = len(features), len(centroids)
    apart = sum(((x - m) ** 2).sum() for x, y in zip(features, labels) for c, m in enumerate(centroids) if c != y) / (
        rows * classes
    )
    attract = sum(((x - centroids[y]) ** 2).sum() for x, y in zip(features, labels)) / 2 / rows
    of_features, of_centroids = np.zeros_like(features), np.zeros_like(centroids)
    for i, (x, y) in enumerate(zip(features, labels)):
        of_features[i] += (x - centroids[y]) / rows
        of_centroids[y] += (centroids[y] - x) / rows / (1 + (labels == y).sum())
        for c, m in enumerate(centroids):
            if c != y and apart < 10:
                of_features[i] -= 0.01 * 2 * (x - m) / (rows * classes)
                of_centroids[c] += 0.01 * 2 * (x - m) / (rows * classes)
    return attract + 0.01 * max(0.0, 10.0 - apart), of_features, of_centroids


def test_the_logits_are_those_of_numpy():
    given = memory_logits(*as_f32((F, H, MEMORY)))
    np.testing.assert_allclose(given, logits_in_numpy(F, H, MEMORY), rtol=1e-4, atol=1e-4)


def test_a_row_on_its_centroid_has_the_limit_and_a_gradient():
    on = np.concatenate([MEMORY.centroids[:2], F])
    hallucinator = np.concatenate([H[:2], H])
    near = on + 1e-7
    given = memory_logits(*as_f32((on, hallucinator, MEMORY)))
    np.testing.assert_allclose(given, logits_in_numpy(near, hallucinator, MEMORY), rtol=1e-4, atol=1e-4)
    value = lambda f, h, memory: memory_logits(f, h, memory).sum()
    grads = jax.grad(value, argnums=(0, 1, 2))(*as_f32((on, hallucinator, MEMORY)))
    chex.assert_tree_all_finite(grads)
    assert not grads[2].centroids.any() and grads[2].kernel.any()  # the logits do not move the centroids
    zero = jax.tree.map(jnp.zeros_like, as_f32((F, H, MEMORY)))
    chex.assert_tree_all_finite((value(*zero), jax.grad(value, argnums=(0, 1, 2))(*zero)))


@pytest.mark.parametrize("spread", [0.5, 3.0])  # the mean distance within the margin and beyond it
def test_the_centroid_loss_and_its_gradients_are_those_of_numpy(spread):
    features, centroids = spread * F, spread * MEMORY.centroids
    expected = loss_in_numpy(features, LABELS, centroids)
    value = jax.jit(jax.value_and_grad(lambda f, m: r.centroid_loss(f, jnp.asarray(LABELS), m), argnums=(0, 1)))
    loss, grads = value(*as_f32((features, centroids)))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(grads[0], expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], expected[2], rtol=1e-4, atol=1e-6)


def test_padding_counts_in_nothing():
    valid = jnp.asarray(np.arange(9) % 3 > 0)
    features, centroids = as_f32((F, MEMORY.centroids))
    loss = jax.jit(jax.value_and_grad(r.centroid_loss, argnums=(0, 2)))
    spoilt = jnp.where(valid[:, None], features, jnp.nan)
    value, (of_features, of_centroids) = loss(spoilt, jnp.asarray(LABELS), centroids, valid)
    expected = loss_in_numpy(F[np.asarray(valid)], LABELS[np.asarray(valid)], MEMORY.centroids)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(of_features[valid], expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_centroids, expected[2], rtol=1e-4, atol=1e-6)


@functools.lru_cache
def trained(steps, **settings):
    plan = r.oltr(NETWORK, SGD, class_counts=COUNTS, batch_size=16, memory_share=0.5)
    return plan, fit(plan, DATA, key=KEY, steps=steps, progress=False)


def test_the_second_stage_goes_on_from_the_first():
    plan, _ = trained(24)
    assert [stage.share for stage in plan] == [0.5, 0.5]
    assert [stage.share for stage in r.oltr(NETWORK, SGD, class_counts=COUNTS)] == pytest.approx([1 / 3, 2 / 3])
    first = fit((plan[0]._replace(steps=12),), DATA, key=KEY, steps=12, progress=False).state
    began = jax.jit(plan[1].begin)(first, DATA, KEY)
    chex.assert_trees_all_equal(began.params["backbone"], first.params["backbone"])
    chex.assert_trees_all_equal(began.params["head"], first.params["head"])
    before = plan[0].learner.predict(first, {"x": DATA["x"]})
    features = np.asarray(before["features"], np.float64)
    memory = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), began.params["memory"])
    means = np.stack([features[Y == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(memory.centroids, means, rtol=1e-5, atol=1e-6)
    limit = FEATURES**-0.5
    for leaf in memory[1:]:
        assert np.abs(leaf).max() <= limit and np.abs(leaf).max() > limit / 4
    # The hallucinator is the head of stage 1. The last class has one row, which is its centroid: not in NumPy.
    others = Y < 3
    expected = logits_in_numpy(features[others], np.asarray(before["logits"], np.float64)[others], memory)
    after = plan[1].learner.predict(began, {"x": DATA["x"]})
    np.testing.assert_allclose(np.asarray(after["logits"])[others], expected, rtol=1e-3, atol=1e-3)
    assert np.isfinite(after["logits"]).all()


def test_its_loss_is_the_cross_entropy_and_the_centroid_loss():
    plan, run = trained(24)
    learner, state = plan[1].learner, run.state
    outputs = jax.tree.map(np.asarray, learner.predict(state, {"x": DATA["x"]}))
    own = outputs["logits"][np.arange(len(Y)), Y].astype(np.float64)
    entropy = np.mean(np.log(np.exp(outputs["logits"] - own[:, None]).sum(1)))
    spread, _, _ = loss_in_numpy(
        outputs["features"].astype(np.float64), Y, np.asarray(state.params["memory"].centroids)
    )
    _, metrics = jax.jit(learner.update)(state, DATA, KEY)
    np.testing.assert_allclose(metrics["loss"], entropy + 0.01 * spread, rtol=1e-4)
    np.testing.assert_allclose(metrics["centroids"], spread, rtol=1e-4)
    assert run.history.metrics["loss"][-3:].mean() < run.history.metrics["loss"][12:15].mean()


def test_it_stands_on_a_convolutional_network():
    images = {"x": jnp.asarray(RNG.normal(size=(len(Y), 8, 8, 1)), jnp.float32), "y": DATA["y"]}
    plan = r.oltr(convnet(CLASSES, width=2, norm="batch"), SGD, class_counts=COUNTS, batch_size=16)
    state = fit(plan, images, key=KEY, steps=6, progress=False).state
    assert np.isfinite(plan[1].learner.predict(state, {"x": images["x"]})["logits"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_share": 1.0}, "memory_share must lie between 0 and 1"),
        ({"memory_weight": -1.0}, "memory_weight must lie in"),
        ({"class_counts": np.array([3, 0, 1, 1])}, "class 1 has no rows"),
    ],
)
def test_bad_input_is_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        r.oltr(NETWORK, SGD, **{"class_counts": COUNTS, **settings})
    assert "\n" not in str(caught.value)


def test_a_network_of_other_classes_is_refused():
    plan = r.oltr(NETWORK, SGD, class_counts=np.ones(3))
    with pytest.raises(UsageError, match="class_counts has 3 entries and the network 4 classes"):
        plan[0].learner.init(KEY, DATA)
