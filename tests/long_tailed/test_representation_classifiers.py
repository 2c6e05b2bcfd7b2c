"""Normalised classifiers and the re-calibrated posterior, against their formulas in NumPy."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import fit
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.data import full_batch
from jaxkit.learner import Network
from jaxkit.long_tailed import decoupled
from jaxkit.long_tailed import representation as r
from jaxkit.long_tailed.representation.de_confound import moving_average
from jaxkit.networks import convnet, heads, mlp

RNG = np.random.default_rng(4)
CLASSES, FEATURES = 4, 6
COUNTS = np.array([24, 8, 4, 2])
Y = np.repeat(np.arange(CLASSES), COUNTS).astype(np.int32)
X = (np.eye(CLASSES, 5)[Y] + 0.5 * RNG.normal(size=(len(Y), 5))).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
IMAGES = {"x": jnp.asarray(RNG.normal(size=(len(Y), 8, 8, 1)), jnp.float32), "y": DATA["y"]}
KEY = jax.random.key(3)
NETWORK = mlp(CLASSES, hidden=(FEATURES,))
SGD = optax.sgd(0.5)
F = RNG.normal(size=(7, FEATURES))
W = RNG.normal(size=(FEATURES, CLASSES))
D = RNG.normal(size=FEATURES)
f32 = lambda *arrays: [jnp.asarray(array, jnp.float32) for array in arrays]


def unit(vector):
    return vector / np.linalg.norm(vector)


def mean_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    own = logits[np.arange(len(labels)), labels]
    return np.mean(np.log(np.exp(logits - own[:, None]).sum(1)))


def tde_in_numpy(features, kernel, drift, alpha, num_heads, tau, gamma):
    logits = np.zeros((len(features), kernel.shape[1]))
    width = kernel.shape[0] // num_heads
    for i, x in enumerate(features):
        for c, w in enumerate(kernel.T):
            for k in range(num_heads):
                part = slice(k * width, (k + 1) * width)
                direct = unit(x[part]) - alpha * (unit(x[part]) @ unit(drift[part])) * unit(drift[part])
                logits[i, c] += tau / num_heads * (direct @ w[part]) / (np.linalg.norm(w[part]) + gamma)
    return logits


def test_cosine_logits_are_those_of_numpy():
    expected = [[5.0 * unit(f) @ unit(w) for w in W.T] for f in F]
    np.testing.assert_allclose(r.cosine_logits(*f32(F, W), scale=5.0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_the_logits_of_de_confound_are_those_of_numpy(num_heads):
    settings = {"num_heads": num_heads, "tau": 12.0, "gamma": 0.1}
    for alpha in (0.0, 1.7):
        expected = tde_in_numpy(F, W, D, alpha, **settings)
        np.testing.assert_allclose(r.tde_logits(*f32(F, W, D), alpha=alpha, **settings), expected, rtol=1e-4, atol=1e-4)
    # Nothing is taken out by alpha = 0, or of a drift of 0; a drift's length does not count.
    biased = tde_in_numpy(F, W, D, 0.0, **settings)
    np.testing.assert_allclose(r.multi_head_logits(*f32(F, W), **settings), biased, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(r.tde_logits(*f32(F, W, 0 * D), **settings), biased, rtol=1e-4, atol=1e-4)
    one, two = (r.tde_logits(*f32(F, W, length * D), **settings) for length in (0.1, 10.0))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_alpha_one_leaves_nothing_of_the_drift():
    """With one head and alpha = 1 the features' part along d is gone: d added to them changes directions alone."""
    d = unit(D)
    inside = F - np.outer(F @ d, d)  # at right angles to d
    settings = {"num_heads": 1, "alpha": 1.0}
    moved = inside + 2.0 * d
    shrunk = np.linalg.norm(inside, axis=1) / np.linalg.norm(moved, axis=1)
    one, two = (np.asarray(r.tde_logits(*f32(f, W, d), **settings)) for f in (inside, moved))
    np.testing.assert_allclose(two, one * shrunk[:, None], rtol=1e-4, atol=1e-4)


def test_logits_of_zero_vectors_have_a_gradient():
    value = lambda f, w, d: r.tde_logits(f, w, d).sum() + r.cosine_logits(f, w).sum()
    grads = jax.grad(value, argnums=(0, 1, 2))(*(jnp.zeros_like(array) for array in f32(F, W, D)))
    chex.assert_tree_all_finite(grads)


def test_the_moving_average_counts_valid_rows_alone():
    features, drift = f32(F, D)
    valid = jnp.asarray([True, False, True, True, False, True, False])
    expected = 0.8 * D + 0.2 * F[np.asarray(valid)].mean(0)
    spoilt = jnp.where(valid[:, None], features, jnp.nan)
    np.testing.assert_allclose(moving_average(drift, spoilt, 0.8, valid), expected, rtol=1e-5)
    np.testing.assert_array_equal(moving_average(drift, spoilt, 0.8, jnp.zeros(7, bool)), drift)
    np.testing.assert_allclose(moving_average(drift, features, 0.0), F.mean(0), rtol=1e-5)


def test_de_confound_trains_biased_and_predicts_the_direct_effect():
    learner = r.de_confound(NETWORK, SGD, class_counts=COUNTS, alpha=2.0, momentum=0.6)
    state = learner.init(KEY, DATA)
    drift = np.zeros(FEATURES)
    for _ in range(3):
        outputs = learner.predict(state, {"x": DATA["x"]})
        biased = r.multi_head_logits(outputs["features"], state.params["head"]["kernel"])
        drift = 0.6 * drift + 0.4 * np.asarray(outputs["features"], np.float64).mean(0)
        state, metrics = jax.jit(learner.update)(state, DATA, KEY)
        np.testing.assert_allclose(metrics["loss"], mean_entropy(biased, Y), rtol=1e-4)
        np.testing.assert_allclose(state.extra.drift, drift, rtol=1e-4, atol=1e-6)
    outputs = learner.predict(state, {"x": DATA["x"]})
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    features = np.asarray(outputs["features"], np.float64)
    # Two heads of three features; a slice that ReLU made 0 has no direction, which NumPy does not know.
    some = (np.linalg.norm(features.reshape(-1, 2, 3), axis=-1) > 0).all(1)
    assert some.sum() > 5 and (np.linalg.norm(drift.reshape(2, 3), axis=1) > 0).all()
    for name, alpha in (("logits", 2.0), ("logits_biased", 0.0)):
        expected = tde_in_numpy(features[some], kernel, drift, alpha, 2, 16.0, 1 / 32)
        np.testing.assert_allclose(np.asarray(outputs[name])[some], expected, rtol=1e-3, atol=1e-3)


def test_alpha_lies_in_the_state_and_may_be_swept():
    learner = r.de_confound(NETWORK, SGD, class_counts=COUNTS)
    state = fit(learner, DATA, key=KEY, steps=5, source=full_batch(), progress=False).state
    x = {"x": DATA["x"]}

    def read_out(alpha):
        return learner.predict(state._replace(extra=state.extra._replace(alpha=alpha)), x)

    swept = jax.jit(jax.vmap(read_out))(jnp.asarray([0.0, 1.0, 3.0]))
    chex.assert_trees_all_close(swept["logits"][0], swept["logits_biased"][0], rtol=1e-6)
    chex.assert_trees_all_close(swept["logits"][2], learner.predict(state, x)["logits"], rtol=1e-5, atol=1e-5)
    assert not np.allclose(swept["logits"][1], swept["logits"][2])


def test_the_cosine_classifier_is_a_cosine_head_of_fixed_scale():
    """Wrapped, or the head of the network: the same start gives the same training."""
    settings = {"class_counts": COUNTS}
    wrapped = r.cosine_classifier(NETWORK, SGD, scale=8.0, **settings)
    own = mlp(CLASSES, hidden=(FEATURES,), head=heads.cosine(scale=8.0, learn_scale=False))
    direct = lt.METHODS["softmax"].make(own, SGD, **settings)
    start = wrapped.init(KEY, DATA)
    without_bias = {**start.params, "head": {"kernel": start.params["head"]["kernel"]}}
    state, other = start, direct.init(KEY, DATA)._replace(params=without_bias)
    update, other_update = jax.jit(wrapped.update), jax.jit(direct.update)
    for _ in range(3):
        state, _ = update(state, DATA, KEY)
        other, _ = other_update(other, DATA, KEY)
    chex.assert_trees_all_close(state.params["backbone"], other.params["backbone"], rtol=1e-5, atol=1e-6)
    one, two = (learner.predict(s, {"x": DATA["x"]})["logits"] for learner, s in ((wrapped, state), (direct, other)))
    chex.assert_trees_all_close(one, two, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_equal(state.params["head"]["bias"], start.params["head"]["bias"])  # it is not trained


@pytest.mark.parametrize("name", ["cosine_classifier", "de_confound"])
def test_they_stand_on_any_network(name):
    for network in (convnet(CLASSES, width=2, norm="batch"), mlp(CLASSES, hidden=(FEATURES,), head="cosine")):
        learner = lt.METHODS[name].make(network, SGD, class_counts=COUNTS)
        fitted = fit(learner, IMAGES, key=KEY, steps=6, source=full_batch(), progress=False)
        losses = fitted.history.metrics["loss"]
        assert losses[-1] < losses[0]
        assert learner.predict(fitted.state, {"x": IMAGES["x"][:3]})["logits"].shape == (3, CLASSES)


def test_uno_ic_is_softmax_with_its_logits_shifted():
    plan = r.uno_ic(NETWORK, SGD, class_counts=COUNTS, beta=0.4, batch_size=16)
    plain = fit((plan[0]._replace(end=None),), DATA, key=KEY, steps=10, progress=False).state
    softmax = lt.METHODS["softmax"].make(NETWORK, SGD, class_counts=COUNTS)
    chex.assert_trees_all_equal(
        fit(softmax, DATA, key=KEY, steps=10, source=plan[0].source, progress=False).state.params, plain.params
    )
    state = fit(plan, DATA, key=KEY, steps=10, progress=False).state
    chex.assert_trees_all_equal(state.params, plain.params)
    before = plan[0].learner.predict(plain, {"x": DATA["x"]})
    after = plan[0].learner.predict(state, {"x": DATA["x"]})
    assert "logits_head" not in before
    np.testing.assert_array_equal(after["logits_head"], before["logits"])
    p = np.exp(np.asarray(before["logits"], np.float64))
    p /= p.sum(1, keepdims=True)
    shifted = p / (COUNTS / COUNTS.sum()) / CLASSES
    expected = p**0.6 * (shifted / shifted.sum(1, keepdims=True)) ** 0.4
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(after["logits"]), expected, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"beta": 0.7, "target_prior": COUNTS / COUNTS.sum()}])
def test_without_a_shift_uno_ic_is_softmax(settings):
    plan = r.uno_ic(NETWORK, SGD, class_counts=COUNTS, batch_size=16, **settings)
    outputs = plan[0].learner.predict(fit(plan, DATA, key=KEY, steps=3, progress=False).state, {"x": DATA["x"]})
    np.testing.assert_allclose(outputs["logits"], outputs["logits_head"], rtol=1e-6, atol=1e-6)


def test_choose_beta_is_the_best_macro_accuracy_of_numpy():
    random = np.random.default_rng(0)
    labels = random.choice(CLASSES, 200, p=[0.3, 0.3, 0.4, 0.0])  # no row of the last class
    logits = np.eye(CLASSES)[labels] + random.normal(size=(200, CLASSES)) + np.log(COUNTS / COUNTS.sum())
    betas = [0.0, 0.3, 0.6, 1.0]
    expected = []
    for beta in betas:
        guess = (logits - beta * np.log(COUNTS / COUNTS.sum())).argmax(1)
        expected.append(np.mean([(guess[labels == c] == c).mean() for c in range(3)]))
    chosen, scores = r.choose_beta(jnp.asarray(logits, jnp.float32), labels, COUNTS, betas)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert float(chosen) == pytest.approx(betas[int(np.argmax(expected))])
    tie, _ = r.choose_beta(jnp.eye(CLASSES) * 100.0, np.arange(CLASSES), COUNTS, betas)
    assert float(tie) == 0.0  # all right for every beta: the first


@pytest.mark.parametrize("make", [decoupled.crt, decoupled.lws, decoupled.ncm])
def test_a_classifier_is_trained_on_top_of_another_loss(make):
    """The combinations of the survey's table 10: a representation learnt with the focal loss."""
    plan = make(NETWORK, SGD, class_counts=COUNTS, loss=lt.focal, batch_size=16)
    plain = make(NETWORK, SGD, class_counts=COUNTS, batch_size=16)
    one, two = (fit(p, DATA, key=KEY, steps=20, progress=False) for p in (plan, plain))
    assert one.history.metrics["loss"][0] < two.history.metrics["loss"][0]  # (1 - p)^2 CE is below CE
    backbone = lambda run: jax.tree.leaves(run.state.params["backbone"])[0]
    assert not np.allclose(backbone(one), backbone(two))
    assert plan[-1].learner.predict(one.state, {"x": DATA["x"]})["logits"].shape == (len(Y), CLASSES)


HEADLESS = Network(lambda key, x: ({"w": jnp.ones((5, 4))}, {}), lambda p, v, x, **_: ({"logits": x @ p["w"]}, v))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: r.cosine_classifier(NETWORK, SGD, class_counts=COUNTS, scale=0.0), "scale must be a finite number"),
        (lambda: r.cosine_classifier(HEADLESS, SGD, class_counts=COUNTS).init(KEY, DATA), "expected params with head"),
        (
            lambda: r.cosine_classifier(NETWORK, SGD, class_counts=np.ones(3)).init(KEY, DATA),
            "class_counts has 3 entries and the network 4 classes",
        ),
        (lambda: r.de_confound(NETWORK, SGD, class_counts=COUNTS, tau=-1.0), "tau must be a finite number above 0"),
        (lambda: r.de_confound(NETWORK, SGD, class_counts=COUNTS, gamma=0.0), "gamma must be a finite number above 0"),
        (lambda: r.de_confound(NETWORK, SGD, class_counts=COUNTS, momentum=1.5), "momentum must lie in"),
        (lambda: r.de_confound(NETWORK, SGD, class_counts=COUNTS, num_heads=0), "num_heads must be at least 1"),
        (
            lambda: r.de_confound(NETWORK, SGD, class_counts=COUNTS, num_heads=4).init(KEY, DATA),
            "num_heads=4 does not divide the 6 features",
        ),
        (lambda: r.uno_ic(NETWORK, SGD, class_counts=COUNTS, beta=1.2), "beta must lie in"),
        (lambda: r.uno_ic(NETWORK, SGD, class_counts=np.array([1, 0, 2, 3])), "class 1 has no rows"),
        (
            lambda: r.uno_ic(NETWORK, SGD, class_counts=COUNTS, target_prior=np.ones(4)),
            "target_prior must sum to 1, it sums to 4",
        ),
        (lambda: r.choose_beta(jnp.eye(4), np.arange(4), COUNTS, []), "betas must be a list of numbers"),
        (lambda: r.choose_beta(jnp.eye(4), np.arange(4), COUNTS, [0.5, 2.0]), "beta must lie in"),
        (lambda: r.choose_beta(jnp.eye(4), np.arange(3), COUNTS), "must have the same rows"),
        (
            lambda: r.choose_beta(jnp.eye(4).at[2, 1].set(jnp.nan), np.arange(4), COUNTS),
            "logits of row 2 are not finite",
        ),
        (
            lambda: r.choose_beta(jnp.zeros((0, 4)), np.zeros(0, np.int32), COUNTS),
            r"shape \[rows, classes\], got \[0, 4\]",
        ),
        (lambda: r.choose_beta(jnp.eye(4), np.arange(4) + 1, COUNTS), r"labels must lie in 0\.\.3"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
