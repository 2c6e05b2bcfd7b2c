"""SSP and MiSLAS: what each stage hands to the next, and what each computes, against NumPy."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_digits

from jaxkit import fit
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.data import transforms
from jaxkit.data.shifts import long_tail
from jaxkit.long_tailed import augmentation as a
from jaxkit.long_tailed.augmentation import calibration, pretraining
from jaxkit.networks import convnet, mlp

KEY = jax.random.key(5)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
COUNTS = np.array([500, 120, 40, 9])
RNG = np.random.default_rng(1)
LOGITS, LABELS = RNG.normal(size=(12, 4)), np.arange(12) % 4


@functools.lru_cache
def digits():
    """Scikit-learn's digits cut to an imbalance of 20: 60 to 3 rows."""
    x, y = load_digits(return_X_y=True)
    pool = {"x": (x / 16).astype(np.float32), "y": y.astype(np.int32)}
    return jax.tree.map(jnp.asarray, long_tail(pool, KEY, num_classes=10, imbalance=20, largest=60))


def counts():
    return np.bincount(digits()["y"], minlength=10)


def network():
    return mlp(10, hidden=(8,), norm="batch")


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# SSP ---------------------------------------------------------------------------------------------------------------


def test_quarter_turns_are_numpys():
    x = RNG.normal(size=(8, 5, 5, 2)).astype(np.float32)
    turns = np.arange(8, dtype=np.int32) % 4
    expected = np.stack([np.rot90(one, number) for one, number in zip(x, turns, strict=True)])
    np.testing.assert_array_equal(pretraining.quarter_turns(jnp.asarray(x), jnp.asarray(turns)), expected)


@pytest.mark.parametrize("pretext", ["rotation", "contrastive"])
def test_the_second_stage_starts_with_the_backbone_of_the_first_bit_for_bit(pretext):
    given = convnet(10, width=2, norm="batch") if pretext == "rotation" else network()
    shape = (-1, 8, 8, 1) if pretext == "rotation" else (-1, 64)
    data = {"x": digits()["x"].reshape(shape), "y": digits()["y"]}
    first, second = a.ssp(given, OPTIMIZER, class_counts=counts(), pretext=pretext, projection=4, batch_size=32)
    assert (first.share, second.share) == (0.5, 0.5)
    start = jax.jit(first.learner.init)(KEY, data)
    before = fit((first._replace(steps=6),), data, key=KEY, steps=6, progress=False).state
    assert not np.allclose(*(jax.tree.leaves(state.params["backbone"])[0] for state in (start, before)))
    assert not np.allclose(*(jax.tree.leaves(state.params["pretext"])[0] for state in (start, before)))
    assert int(before.step) == 6
    began = jax.jit(second.begin)(before, data, jax.random.key(1))
    assert began.params.keys() == {"backbone", "head"}
    assert bits(began.params["backbone"]) == bits(before.params["backbone"])
    assert bits(began.variables) == bits(before.variables)  # with its running statistics
    assert int(began.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(began.opt_state))
    heads = [state.params["head"]["kernel"] for state in (before, began, second.begin(before, data, KEY))]
    assert not any(np.allclose(heads[i], heads[j]) for i in range(3) for j in range(i))


def test_pre_training_sees_no_label_and_trains_no_head():
    first = a.ssp(network(), OPTIMIZER, class_counts=counts(), projection=4)[0].learner
    x = digits()["x"][:32]
    batch = {"x": x, "second": {"x": x + 0.1}}
    state = first.init(KEY, batch)
    update = jax.jit(first.update)
    after, _ = update(state, batch, KEY)
    assert bits(after.params["head"]) == bits(state.params["head"])
    labelled = {**batch, "y": digits()["y"][:32], "second": {**batch["second"], "y": digits()["y"][:32]}}
    assert bits(update(state, labelled, KEY)[0].params) == bits(after.params)
    z = np.asarray(first.predict(state, {"x": x})["logits_pretext"])
    assert z.shape == (32, 4) and first.predict(state, {"x": x})["logits"].shape == (32, 10)


def test_the_contrastive_task_is_nt_xent_of_two_views():
    given = mlp(10, hidden=(8,))
    first = pretraining.contrastive(given, optax.sgd(0.1), temperature=0.3, projection=16)
    x = RNG.normal(size=(6, 64)).astype(np.float32)
    views = {"x": jnp.asarray(x), "second": {"x": jnp.asarray(x[::-1] + 0.5)}}
    state = first.init(KEY, views)
    z = np.concatenate([np.asarray(first.predict(state, part)["logits_pretext"]) for part in (views, views["second"])])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    s = z @ z.T / 0.3
    np.fill_diagonal(s, -np.inf)
    expected = -np.mean([log_softmax(s[i])[(i + 6) % 12] for i in range(12)])
    np.testing.assert_allclose(first.update(state, views, KEY)[1]["loss"], expected, rtol=1e-5)


def test_rotation_is_cross_entropy_over_four_turns_drawn_alike():
    given = convnet(10, width=2)
    learner = pretraining.rotation(given, optax.sgd(0.0))
    x = digits()["x"][:200].reshape(-1, 8, 8, 1)
    state = learner.init(KEY, {"x": x})
    # A head that knows nothing: ln 4; one that always says "no turn" by a margin of 5 tells how often there is none.
    pretext = jax.tree.map(jnp.zeros_like, state.params["pretext"])
    blind = state._replace(params={**state.params, "pretext": pretext})
    update = jax.jit(learner.update)
    np.testing.assert_allclose(update(blind, {"x": x}, KEY)[1]["loss"], np.log(4), rtol=1e-5)
    bias = pretext["head"]["bias"].at[0].set(5.0)
    pretext = {**pretext, "head": {**pretext["head"], "bias": bias}}
    sure = state._replace(params={**state.params, "pretext": pretext})
    rest = -log_softmax([5.0, 0, 0, 0])
    loss = np.mean([update(sure, {"x": x}, jax.random.key(k))[1]["loss"] for k in range(10)])
    still = (rest[1] - loss) / 5.0
    assert abs(still - 0.25) < 4.9 * np.sqrt(0.25 * 0.75 / 2000)


def test_views_may_be_given():
    keep = lambda x, key: x
    first = a.ssp(network(), OPTIMIZER, class_counts=counts(), view=keep, projection=4, batch_size=16)[0]
    batch = first.source.next(digits(), first.source.init(digits(), KEY), None, 0, KEY)[1]
    np.testing.assert_array_equal(batch["x"], batch["second"]["x"])
    assert transforms.gaussian_noise(0.0)(batch["x"], KEY).shape == batch["x"].shape


# MiSLAS ------------------------------------------------------------------------------------------------------------


def shape_in_numpy(shape, counts, head, tail, power=2.0):
    n = np.asarray(counts, float)
    r = (n - n.min()) / (n.max() - n.min())
    return {
        "concave": tail + (head - tail) * np.sin(np.pi * r / 2),
        "linear": tail + (head - tail) * r,
        "convex": head + (head - tail) * np.sin(1.5 * np.pi + np.pi * r / 2),
        "exp": tail + (head - tail) * r**power,
    }[shape]


@pytest.mark.parametrize("shape", calibration.SHAPES)
def test_smoothing_is_the_released_formula(shape):
    made = a.smoothing_of(COUNTS, 0.4, 0.1, shape, 3.0)
    np.testing.assert_allclose(made, shape_in_numpy(shape, COUNTS, 0.4, 0.1, 3.0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(made)[[0, -1]], [0.4, 0.1], rtol=1e-6)
    assert (np.diff(made) < 0).all()
    np.testing.assert_allclose(a.smoothing_of(np.full(3, 7), shape=shape), 0.0, atol=1e-7)  # no class is larger


def test_label_aware_smoothing_is_the_released_formula():
    eps = shape_in_numpy("concave", COUNTS, 0.3, 0.0)[LABELS]
    log_p = log_softmax(LOGITS, axis=1)
    expected = -(1 - eps) * log_p[np.arange(12), LABELS] - eps * log_p.mean(1)
    logits, labels = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    np.testing.assert_allclose(a.label_aware_smoothing(logits, labels, COUNTS), expected, rtol=1e-5)
    plain = a.label_aware_smoothing(logits, labels, COUNTS, 0.0, 0.0)
    np.testing.assert_array_equal(plain, lt.softmax(logits, labels))
    equal = a.label_aware_smoothing(logits, labels, COUNTS, 0.2, 0.2)
    np.testing.assert_allclose(equal, lt.cross_entropy(logits, labels, smoothing=0.2), rtol=1e-5)


@functools.lru_cache
def mislas_states(shift):
    """(plan, the state after stage 1, as stage 2 begins, after one step of it)."""
    plan = a.mislas(network(), optax.sgd(0.5), class_counts=counts(), batch_size=32, shift=shift, head_rate=0.1)
    before = fit((plan[0]._replace(steps=5),), digits(), key=KEY, steps=5, progress=False).state
    began = jax.jit(plan[1].begin)(before, digits(), KEY)
    batch = {name: leaf[:40] for name, leaf in digits().items()}
    after, metrics = jax.jit(plan[1].learner.update)(began, batch, KEY)
    return plan, before, began, batch, after, float(metrics["loss"])


def test_mislas_begins_as_it_ended_and_balances_its_batches():
    plan, before, began, _, _, _ = mislas_states(True)
    assert [stage.name for stage in plan] == ["mixup", "classifier"]
    assert [stage.share for stage in plan] == [0.95, 0.05]
    assert bits({**before.params, "class_scale": jnp.ones(10)}) == bits(began.params)
    assert bits(before.variables) == bits(began.variables) and int(began.step) == 0
    source = plan[1].source
    one = lambda step: source.next(digits(), source.init(digits(), KEY), None, step, KEY)[1]["y"]
    labels = np.asarray(jax.vmap(one)(jnp.arange(50))).ravel()
    assert np.abs(np.bincount(labels, minlength=10) - 160).max() < 4.9 * np.sqrt(1600 * 0.1 * 0.9)


@pytest.mark.parametrize("shift", [True, False])
def test_a_step_of_its_second_stage_is_the_gradient_in_scale_and_head_at_two_rates(shift):
    plan, before, began, batch, after, loss = mislas_states(shift)
    x, y = np.asarray(batch["x"], np.float64), np.asarray(batch["y"])
    layer, norm = before.params["backbone"]["dense_0"], before.params["backbone"]["norm_0"]
    statistics = before.variables["batch_stats"]["backbone"]["norm_0"]
    h = x @ np.asarray(layer["kernel"], np.float64)
    mean, var = (h.mean(0), h.var(0)) if shift else (np.asarray(statistics["mean"]), np.asarray(statistics["var"]))
    f = np.maximum((h - mean) / np.sqrt(var + 1e-5) * np.asarray(norm["scale"]) + np.asarray(norm["bias"]), 0)
    z = f @ np.asarray(before.params["head"]["kernel"]) + np.asarray(before.params["head"]["bias"])
    eps = shape_in_numpy("concave", counts(), 0.3, 0.0)[y]
    target = (1 - eps)[:, None] * np.eye(10)[y] + eps[:, None] / 10
    log_p = log_softmax(z, axis=1)
    np.testing.assert_allclose(loss, -(target * log_p).sum(1).mean(), rtol=1e-4)
    slope = (np.exp(log_p) - target) / len(y)
    moved = jax.tree.map(lambda one, two: np.asarray(one) - np.asarray(two), began.params, after.params)
    np.testing.assert_allclose(moved["class_scale"], 0.5 * (slope * z).sum(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(moved["head"]["kernel"], 0.05 * f.T @ slope, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(moved["head"]["bias"], 0.05 * slope.sum(0), rtol=1e-3, atol=1e-6)
    assert bits(began.params["backbone"]) == bits(after.params["backbone"])  # affine parameters too
    if shift:
        now = after.variables["batch_stats"]["backbone"]["norm_0"]
        np.testing.assert_allclose(now["mean"], 0.9 * np.asarray(statistics["mean"]) + 0.1 * mean, rtol=1e-4, atol=1e-6)
    else:
        assert bits(began.variables) == bits(after.variables)
    scaled = np.asarray(plan[1].learner.predict(after, batch)["logits"])
    assert scaled.shape == z.shape and not np.allclose(scaled, z)


def test_scaled_updates_are_a_smaller_rate():
    params = {"head": jnp.ones(3), "class_scale": jnp.ones(3)}
    slow = calibration.scaled(optax.adam(0.1), 0.2)
    alone = optax.adam(0.02)
    grads, one, two = jax.tree.map(lambda leaf: leaf * 0.3, params), slow.init(params), alone.init(params)
    for _ in range(3):
        (made, one), (expected, two) = slow.update(grads, one, params), alone.update(grads, two, params)
        chex.assert_trees_all_close(made["head"], expected["head"], rtol=1e-5)
        chex.assert_trees_all_close(made["class_scale"], 5 * expected["class_scale"], rtol=1e-5)


def test_ssp_samples_its_second_stage_progressively():
    settings = {"class_counts": counts(), "projection": 4, "batch_size": 600}
    stage = a.ssp(network(), OPTIMIZER, sampler="progressive", total_steps=50, **settings)[1]
    drawn = jax.jit(lambda step: stage.source.next(digits(), stage.source.init(digits(), KEY), None, step, KEY)[1]["y"])
    for step, p in ((0, counts() / counts().sum()), (50, np.full(10, 0.1))):
        seen = np.bincount(drawn(step), minlength=10)
        assert (np.abs(seen - 600 * p) < 4.9 * np.sqrt(600 * p * (1 - p))).all()  # passed once in 10^6


def first_step(plan, batch):
    learner = plan[0].learner
    return jax.eval_shape(learner.update, jax.eval_shape(learner.init, KEY, digits()), batch, KEY)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: first_step(a.ssp(network(), OPTIMIZER, class_counts=counts()), digits()),
            r"batch\['second'\]: jaxkit.data.views",
        ),
        (lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), sampler="progressive"), "needs total_steps"),
        (lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), pretext="rotations"), "did you mean 'rotation'"),
        (lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), pretrain_share=1.0), "between 0 and 1"),
        (lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), temperature=0.0), "temperature must be"),
        (lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), noise=-0.1), "std must lie"),
        (lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), projection=0), "projection must be at least 1"),
        (lambda: a.ssp(network(), OPTIMIZER, class_counts=np.array([2, 0])), "class 1 has no rows"),
        (
            lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), pretext="rotation", view=lambda x, key: x),
            "view is for pretext='contrastive'",
        ),
        (
            lambda: a.ssp(network(), OPTIMIZER, class_counts=counts(), pretext="rotation")[0].learner.init(
                KEY, digits()
            ),
            "needs square pictures",
        ),
        (
            lambda: a.ssp(network(), OPTIMIZER, class_counts=np.ones(4))[0].learner.init(KEY, digits()),
            "has 4 entries and the network 10 classes",
        ),
        (lambda: a.smoothing_of(COUNTS, shape="concav"), "did you mean 'concave'"),
        (lambda: a.smoothing_of(COUNTS, head=1.5), "head smoothing must lie"),
        (lambda: a.smoothing_of(COUNTS, power=0.0), "power must be"),
        (lambda: a.label_aware_smoothing(jnp.zeros((2, 4)), jnp.array([0, 4]), COUNTS), "labels must lie in 0..3"),
        (lambda: a.mislas(network(), OPTIMIZER, class_counts=COUNTS, smooth_tail=-0.1), "tail smoothing must lie"),
        (lambda: a.mislas(network(), OPTIMIZER, class_counts=COUNTS, head_rate=-1.0), "head_rate must lie"),
        (lambda: a.mislas(network(), OPTIMIZER, class_counts=COUNTS, classifier_share=1.0), "between 0 and 1"),
        (lambda: a.mislas(network(), OPTIMIZER, class_counts=COUNTS, shape="round"), "unknown shape"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
