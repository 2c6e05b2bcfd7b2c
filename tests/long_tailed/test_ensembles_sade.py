"""SADE: three losses against NumPy, and weights of experts from two views of unlabelled rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.learner import Network
from jaxkit.long_tailed import ensembles as e
from tests.long_tailed.ensembles_toy import (
    CLASSES,
    COUNTS,
    DATA,
    KEY,
    NETWORK,
    ONE_HOT,
    RNG,
    X,
    bias_gradients,
    cross_entropy,
    kernel_gradients,
    logits_of,
    make,
    softmax,
    start,
    step,
)

LOG_PI = np.log(COUNTS / COUNTS.sum())


def test_the_reversed_prior_follows_the_counts_and_not_the_labels():
    np.testing.assert_allclose(e.reversed_prior(np.array([10, 60, 30])), [0.6, 0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(e.reversed_prior(np.array([5, 5, 5, 5])), 0.25, rtol=1e-6)
    order = RNG.permutation(20)
    counts = 1.0 + np.arange(20) ** 2
    np.testing.assert_allclose(e.reversed_prior(counts[order]), counts[19 - order] / counts.sum(), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.0])
def test_a_step_is_three_cross_entropies(tau):
    learner = make("sade", tau=tau)
    state = start(learner)
    metrics, gradient = step(learner, state)
    shifts = np.stack([np.zeros(CLASSES), LOG_PI, LOG_PI - tau * LOG_PI[::-1]])  # COUNTS fall, so this is the reverse
    z = logits_of(state.params) + shifts
    np.testing.assert_allclose(e.expert_adjustments(COUNTS, tau=tau), shifts, rtol=1e-5, atol=1e-6)
    loss = sum(cross_entropy(z[:, expert]).mean() for expert in range(3))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    of_rows = (softmax(z) - ONE_HOT[:, None]) / len(X)
    np.testing.assert_allclose(bias_gradients(gradient), of_rows.sum(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(kernel_gradients(gradient), np.einsum("bf,bec->efc", X, of_rows), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("number, name", [(0, "softmax"), (1, "balanced_softmax")])
def test_the_first_two_experts_are_methods_of_their_own(number, name):
    learner = make("sade")
    state = start(learner)
    _, gradient = step(learner, state)
    own = state.params[f"expert_{number}"], {}
    alone = lt.METHODS[name].make(Network(lambda key, x: own, NETWORK.apply), optax.sgd(1.0), class_counts=COUNTS)
    _, expected = step(alone, start(alone))
    head = gradient[f"expert_{number}"]["head"]
    np.testing.assert_allclose(head["kernel"], expected["head"]["kernel"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head["bias"], expected["head"]["bias"], rtol=1e-4, atol=1e-6)


def test_prediction_is_the_mean_and_another_mean_with_weights():
    learner = make("sade")
    state = start(learner)
    z = logits_of(state.params)
    np.testing.assert_allclose(learner.predict(state, {"x": DATA["x"]})["logits"], z.mean(1), rtol=1e-4, atol=1e-5)
    weights = np.array([0.5, 0.2, 0.3], np.float32)
    weighted = e.with_aggregation(learner, weights)
    expected = np.einsum("bec,e->bc", z, weights)
    np.testing.assert_allclose(weighted.predict(state, {"x": DATA["x"]})["logits"], expected, rtol=1e-4, atol=1e-5)
    assert weighted.update is learner.update


# The step at test time ---------------------------------------------------------------------------------------------


def similarity(first, second, v):
    """mean cos(p, p') in float64."""
    p, q = (softmax(np.einsum("bec,e->bc", view, softmax(v))) for view in (first, second))
    lengths = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
    return ((p * q).sum(1) / lengths).mean()


def views(rows=30, noise=(0.1, 1.0, 3.0), seed=0):
    """Two views of the logits of three experts, each noisier than the one before."""
    random = np.random.default_rng(seed)
    truth = 3 * random.normal(size=(rows, 1, CLASSES))
    return [
        (truth + np.asarray(noise)[:, None] * random.normal(size=(rows, 3, CLASSES))).astype(np.float32)
        for _ in range(2)
    ]


WEIGHTS = jax.jit(e.aggregation_weights, static_argnames=("steps", "momentum"))


def test_the_ascent_against_central_differences():
    first, second = views()
    np.testing.assert_allclose(
        e.view_similarity(first, second, np.array([0.2, 0.5, 0.3], np.float32)),
        similarity(first, second, np.log([0.2, 0.5, 0.3])),
        rtol=1e-5,
    )
    v, speed = np.full(3, 1 / 3), np.zeros(3)
    for _ in range(8):
        slope = np.array(
            [similarity(first, second, v + d) - similarity(first, second, v - d) for d in 1e-5 * np.eye(3)]
        )
        slope /= 2e-5
        speed = 0.9 * speed + slope
        v = v + 0.3 * (slope + 0.9 * speed)
    assert softmax(v).min() > 0.05  # no early stop so far
    np.testing.assert_allclose(WEIGHTS(first, second, steps=8, rate=0.3), softmax(v), rtol=1e-3)


def test_the_stable_expert_gets_the_largest_weight():
    first, second = views()
    weights = np.asarray(WEIGHTS(first, second, steps=100))
    assert weights[0] > 0.5 and weights.argmin() == 2
    assert similarity(first, second, np.log(weights)) > similarity(first, second, np.zeros(3))


def test_once_a_weight_is_small_the_weights_stay():
    first, second = views()
    runs = {steps: np.asarray(WEIGHTS(first, second, steps=steps, rate=1.0)) for steps in (1, 200, 400)}
    assert runs[1].min() > 0.05 > runs[200].min()
    np.testing.assert_array_equal(runs[200], runs[400])
    on = np.asarray(WEIGHTS(first, second, steps=200, rate=1.0, least=0.0))
    assert on.min() < runs[200].min()


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1), st.floats(0.01, 5.0))
def test_weights_stay_on_the_simplex_and_equal_views_change_nothing(seed, rate):
    first, second = views(rows=6, seed=seed)
    weights = np.asarray(WEIGHTS(first, second, steps=20, rate=rate))
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1, abs=1e-5)
    # cos(p, p) is 1 whatever the weights are, so that its slope is rounding.
    np.testing.assert_allclose(WEIGHTS(first, first, steps=20, rate=rate), 1 / 3, atol=1e-4)


def test_rows_of_padding_do_not_count():
    first, second = views()
    valid = np.arange(30) < 20
    spoilt = [np.where(valid[:, None, None], view, np.float32(np.nan)) for view in (first, second)]
    alone = WEIGHTS(first[:20], second[:20], steps=50)
    np.testing.assert_allclose(WEIGHTS(*spoilt, steps=50, valid=valid), alone, rtol=1e-4)


def test_weights_from_a_trained_learner_and_augmentation():
    learner = make("sade")
    state = start(learner)
    noise = lambda x, key: x + jax.random.normal(key, x.shape)
    weights = e.adapted_weights(learner, state, DATA["x"], noise, KEY, steps=20)
    x = [noise(DATA["x"], key) for key in jax.random.split(KEY)]
    first, second = (logits_of(state.params, view).astype(np.float32) for view in x)
    np.testing.assert_allclose(weights, WEIGHTS(first, second, steps=20), rtol=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make("sade", tau=-1.0), "tau must lie in"),
        (lambda: make("sade", experts=2), "this method has 3 experts, one for each of its losses, got 2"),
        (lambda: make("sade", class_counts=np.array([3, 0, 1, 1])), "class 1 has no rows"),
        (lambda: start(make("sade", experts=None)), "experts=None needs a network that gives logits_experts"),
        (lambda: e.aggregate(jnp.zeros((2, 3, 4)), np.ones(2, np.float32) / 2), "there are 3 experts"),
        (lambda: e.aggregate(jnp.zeros((2, 3, 4)), np.ones(3, np.float32)), "sum to 1"),
        (lambda: e.aggregation_weights(np.zeros((4, 3, 2), np.float32), np.zeros((5, 3, 2), np.float32)), "two views"),
        (lambda: e.aggregation_weights(*views(), rate=0.0), "rate must be"),
        (lambda: e.aggregation_weights(*views(), least=2.0), "least must lie in"),
        (lambda: e.aggregation_weights(*views(), steps=-1), "steps must be at least 0"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_learner_without_experts_cannot_be_adapted():
    learner = make("softmax")
    with pytest.raises(UsageError, match="its logits_experts are needed"):
        e.adapted_weights(learner, start(learner), DATA["x"], lambda x, key: x, KEY)
