"""PaCo: its loss against a double loop in NumPy, its queue, its momentum encoder, and where it is balanced softmax."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import fit
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.data.transforms import gaussian_noise
from jaxkit.long_tailed import representation as r
from jaxkit.long_tailed.representation.paco import Queue, default_view, enqueue
from jaxkit.networks import convnet, mlp

RNG = np.random.default_rng(6)
CLASSES, DIM = 4, 3
COUNTS = np.array([24, 8, 4, 2])
Y = np.repeat(np.arange(CLASSES), COUNTS).astype(np.int32)
X = (np.eye(CLASSES, 6)[Y] + 0.3 * RNG.normal(size=(len(Y), 6))).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
KEY = jax.random.key(3)
NETWORK = mlp(CLASSES, hidden=(5,))
SGD = optax.sgd(0.1)
Z, Q, K = RNG.normal(size=(7, CLASSES)), RNG.normal(size=(7, DIM)), RNG.normal(size=(6, DIM))
LABELS, KEY_LABELS = np.array([0, 0, 1, 2, 2, 2, 3]), np.array([0, 2, -1, 1, 1, -1])
f32 = lambda *arrays: [jnp.asarray(array, jnp.float32) for array in arrays]
paco_loss = jax.jit(r.paco_loss)


def loss_in_numpy(logits, labels, features, keys, key_labels, *, alpha, beta, gamma, temperature):
    unit = lambda v: v / np.linalg.norm(v)
    values = []
    for i, z in enumerate(logits):
        scores, weights, shares = [], [], []
        for c in range(CLASSES):
            scores.append(z[c] + np.log(COUNTS[c] / COUNTS.sum()))
            weights.append(beta if c == labels[i] else 0.0)
            shares.append(1.0)
        other = [(features[j], labels[j]) for j in range(len(features)) if j != i]
        other += [(k, y) for k, y in zip(keys, key_labels) if y >= 0]
        for vector, label in other:
            scores.append(unit(features[i]) @ unit(vector) / temperature)
            weights.append(alpha if label == labels[i] else 0.0)
            shares.append(gamma)
        below = np.log(sum(share * np.exp(score) for share, score in zip(shares, scores)))
        values.append(-sum(w * (s - below) for w, s in zip(weights, scores)) / sum(weights))
    return np.array(values)


SETTINGS = {"alpha": 0.05, "beta": 1.0, "gamma": 1.0, "temperature": 0.07}


@pytest.mark.parametrize("changed", [{}, {"alpha": 0.4, "beta": 0.7}, {"gamma": 0.3, "temperature": 0.5}])
def test_the_loss_is_that_of_a_double_loop(changed):
    settings = {**SETTINGS, **changed}
    given = paco_loss(*f32(Z), LABELS, COUNTS, *f32(Q, K), KEY_LABELS, **changed)  # the others by default
    np.testing.assert_allclose(given, loss_in_numpy(Z, LABELS, Q, K, KEY_LABELS, **settings), rtol=1e-4, atol=1e-4)


def test_without_its_contrast_it_is_balanced_softmax_over_the_centres():
    expected = lt.balanced_softmax(*f32(Z), LABELS, COUNTS)
    settings = {"alpha": 0.0, "gamma": 0.0}
    value = lambda z, q: paco_loss(z, LABELS, COUNTS, q, *f32(K), KEY_LABELS, **settings)
    np.testing.assert_allclose(value(*f32(Z, Q)), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda z, q: value(z, q).sum(), argnums=(0, 1))(*f32(Z, Q))
    plain = jax.grad(lambda z: lt.balanced_softmax(z, LABELS, COUNTS).sum())(*f32(Z))
    np.testing.assert_allclose(gradient[0], plain, rtol=1e-4, atol=1e-6)
    assert not gradient[1].any()
    # A row by itself before an empty queue is compared with the centres alone, whatever alpha and gamma are.
    empty = (jnp.zeros((6, DIM)), np.full(6, -1))
    for i in range(len(Z)):
        alone = paco_loss(*f32(Z[i : i + 1]), LABELS[i : i + 1], COUNTS, *f32(Q[i : i + 1]), *empty, alpha=0.0)
        np.testing.assert_allclose(alone[0], expected[i], rtol=1e-5, atol=1e-6)


def test_padding_counts_in_nothing():
    valid = np.arange(7) % 3 > 0
    expected = loss_in_numpy(Z[valid], LABELS[valid], Q[valid], K, KEY_LABELS, **SETTINGS)

    def value(z, q):
        labels = jnp.where(valid, LABELS, -1)
        return r.paco_loss(z, labels, COUNTS, q, *f32(K), KEY_LABELS, valid=jnp.asarray(valid))

    z, q = f32(np.where(valid[:, None], Z, 0.0), np.where(valid[:, None], Q, np.nan))
    given, grads = jax.jit(lambda z, q: (value(z, q), jax.grad(lambda *a: value(*a).sum(), argnums=(0, 1))(z, q)))(z, q)
    np.testing.assert_allclose(given[valid], expected, rtol=1e-4, atol=1e-4)
    assert not given[~valid].any() and not grads[0][~valid].any() and not grads[1][~valid].any()
    chex.assert_tree_all_finite(grads)


def test_the_queue_keeps_the_newest_valid_keys():
    queue = Queue(jnp.zeros((5, 1)), jnp.full((5,), -1, jnp.int32), jnp.zeros((), jnp.int32))
    kept = []
    random = np.random.default_rng(1)
    for step in range(6):
        valid = random.random(4) < 0.7
        keys = 10.0 * step + np.arange(4)
        queue = jax.jit(enqueue)(queue, jnp.asarray(keys[:, None], jnp.float32), jnp.arange(4), jnp.asarray(valid))
        kept = [*kept, *keys[valid]][-5:]
        held = np.asarray(queue.labels) >= 0
        assert sorted(np.asarray(queue.keys)[held, 0].tolist()) == sorted(kept)
        np.testing.assert_array_equal(np.asarray(queue.keys)[held, 0] % 10, np.asarray(queue.labels)[held])
    same = enqueue(queue, jnp.ones((4, 1)), jnp.arange(4), jnp.zeros(4, bool))
    chex.assert_trees_all_equal(queue, same)


@functools.lru_cache
def plan_of(**settings):
    settings = {"batch_size": 8, "dim": DIM, "queue_size": 12, "key_momentum": 0.6, **settings}
    return r.paco(NETWORK, SGD, class_counts=COUNTS, **settings)


def step_in_numpy(params, key_params, x, second, labels, queue):
    """(loss, keys) of one step from parameters in NumPy."""

    def forward(p, x):
        p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
        f = np.maximum(x @ p["backbone"]["dense_0"]["kernel"] + p["backbone"]["dense_0"]["bias"], 0)
        hidden = np.maximum(f @ p["projector"]["kernel_0"] + p["projector"]["bias_0"], 0)
        projected = hidden @ p["projector"]["kernel_1"] + p["projector"]["bias_1"]
        return f @ p["head"]["kernel"] + p["head"]["bias"], projected

    logits, features = forward(params, x)
    keys = forward(key_params, second)[1]
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    everything = np.concatenate([keys, np.asarray(queue.keys)])
    everything_labels = np.concatenate([labels, np.asarray(queue.labels)])
    value = loss_in_numpy(logits, labels, features, everything, everything_labels, **SETTINGS).mean()
    return value, keys


def test_a_step_is_the_loss_of_two_views_before_a_momentum_encoder():
    (stage,) = plan_of()
    learner, source = stage.learner, stage.source
    source_state = source.init(DATA, KEY)
    state = learner.init(KEY, source.next(DATA, source_state, None, 0, KEY)[1])
    chex.assert_trees_all_equal(state.extra.key_params, state.params)
    update = jax.jit(learner.update)
    for step in range(3):
        batch = source.next(DATA, source_state, None, step, KEY)[1]
        labels = np.asarray(batch["y"])
        np.testing.assert_array_equal(labels, batch["second"]["y"])
        assert not np.allclose(batch["x"], batch["second"]["x"])
        average = lambda old, new: 0.6 * np.asarray(old, np.float64) + 0.4 * np.asarray(new, np.float64)
        expected_params = jax.tree.map(average, state.extra.key_params, state.params)
        expected, keys = step_in_numpy(
            state.params, expected_params, np.asarray(batch["x"]), np.asarray(batch["second"]["x"]), labels,
            state.extra.queue,
        )  # fmt: skip
        state, metrics = update(state, batch, KEY)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
        chex.assert_trees_all_close(state.extra.key_params, expected_params, rtol=1e-5, atol=1e-6)
        place = (8 * step + np.arange(8)) % 12
        np.testing.assert_allclose(np.asarray(state.extra.queue.keys)[place], keys, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(state.extra.queue.labels)[place], labels)


def test_the_gradient_goes_to_both_sides_of_the_batch_and_to_no_key():
    of_q = jax.grad(lambda q: paco_loss(*f32(Z), LABELS, COUNTS, q, *f32(K), KEY_LABELS)[0])(*f32(Q))
    assert of_q[1:].any()  # row 0 is compared with the others, and moves them
    # A step is the gradient with the keys, which come to lie in the queue, held fixed.
    (stage,) = plan_of()
    batch = stage.source.next(DATA, stage.source.init(DATA, KEY), None, 0, KEY)[1]
    state = stage.learner.init(KEY, batch)
    after, _ = jax.jit(stage.learner.update)(state, batch, KEY)
    keys, labels = after.extra.queue.keys[:8], after.extra.queue.labels[:8]

    def value(params):
        outputs = stage.learner.predict(state._replace(params=params), {"x": batch["x"]})
        features = outputs["features_projected"]
        return r.paco_loss(outputs["logits"], batch["y"], COUNTS, features, keys, labels).mean()

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.jit(jax.grad(value))(state.params))
    chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-5)


def test_it_predicts_with_its_centres_and_learns():
    (stage,) = plan_of()
    fitted = fit((stage,), DATA, key=KEY, steps=150, progress=False)
    outputs = stage.learner.predict(fitted.state, {"x": DATA["x"]})
    head = fitted.state.params["head"]
    expected = np.asarray(outputs["features"]) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
    # The largest class alone would be 24 of 38 rows right.
    assert (np.asarray(outputs["logits"]).argmax(1) == Y).mean() > 24 / 38


def test_views_are_what_is_asked_for():
    x = jnp.asarray(RNG.normal(size=(2, 16, 16, 1)), jnp.float32)
    moved = np.asarray(default_view(x, KEY))
    assert moved.shape == x.shape and not np.allclose(moved, x)
    inside = set(np.asarray(x).ravel().tolist()) | {0.0}
    assert set(moved.ravel().tolist()) <= inside  # cut out of the padded image
    rows = jnp.zeros((4000, 3))
    assert np.std(default_view(rows, KEY)) == pytest.approx(0.1, rel=0.05)  # 12000 draws: 0.65 % is one deviation
    batches = []
    for view in (None, gaussian_noise(0.0)):
        (stage,) = (
            plan_of(view=view)
            if view is None
            else r.paco(NETWORK, SGD, class_counts=COUNTS, batch_size=8, queue_size=8, view=view)
        )
        batches.append(stage.source.next(DATA, stage.source.init(DATA, KEY), None, 0, KEY)[1])
    np.testing.assert_array_equal(batches[1]["x"], X[np.asarray(batches[1]["index"])])
    assert not np.allclose(batches[0]["x"], X[np.asarray(batches[0]["index"])])


def test_it_stands_on_a_convolutional_network_with_batch_normalisation():
    images = {"x": jnp.asarray(RNG.normal(size=(len(Y), 8, 8, 1)), jnp.float32), "y": DATA["y"]}
    network = convnet(CLASSES, width=2, norm="batch")
    plan = r.paco(network, SGD, class_counts=COUNTS, batch_size=16, dim=4, queue_size=32)
    fitted = fit(plan, images, key=KEY, steps=4, progress=False)
    assert np.isfinite(fitted.history.metrics["loss"]).all()
    started = network.init(KEY, images["x"])[1]
    moved = jax.tree.map(lambda a, b: not np.allclose(a, b), fitted.state.variables, started)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_of(queue_size=4), "queue_size=4 must be at least batch_size=8"),
        (lambda: plan_of(alpha=-0.1), "alpha must lie in"),
        (lambda: plan_of(beta=0.0), "beta must be a finite number above 0"),
        (lambda: plan_of(temperature=0.0), "temperature must be a finite number above 0"),
        (lambda: plan_of(key_momentum=1.5), "key_momentum must lie in"),
        (lambda: plan_of(dim=0), "dim must be at least 1"),
        (lambda: r.paco(NETWORK, SGD, class_counts=np.array([3, 0, 1, 1])), "class 1 has no rows"),
        (
            lambda: r.paco(NETWORK, SGD, class_counts=np.ones(3))[0].learner.init(KEY, DATA),
            "class_counts has 3 entries and the network 4 classes",
        ),
        (
            lambda: plan_of()[0].learner.update(plan_of()[0].learner.init(KEY, DATA), DATA, KEY),
            "paco needs a second row",
        ),
        (
            lambda: r.paco_loss(*f32(Z), LABELS, COUNTS, *f32(Q[:3], K), KEY_LABELS),
            r"features \[3, 3\] must have the same rows",
        ),
        (lambda: r.paco_loss(*f32(Z), LABELS + 2, COUNTS, *f32(Q, K), KEY_LABELS), r"labels must lie in 0\.\.3"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
