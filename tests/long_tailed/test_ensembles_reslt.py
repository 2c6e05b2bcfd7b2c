"""ResLT: groups from counts, the loss and its gradient against NumPy, and what it is without residual heads."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.long_tailed import ensembles as e
from jaxkit.long_tailed.groups import class_groups
from tests.long_tailed.ensembles_toy import (
    CLASSES,
    DATA,
    ONE_HOT,
    RNG,
    X,
    Y,
    bias_gradients,
    cross_entropy,
    kernel_gradients,
    logits_of,
    make,
    softmax,
    start,
    step,
)

GROUPS = np.array([0, 0, 1, 2])  # thirds of COUNTS by rank
MEMBERS = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], bool)


def test_groups_are_nested_and_follow_the_counts():
    np.testing.assert_array_equal(e.nested(GROUPS), MEMBERS)
    shuffled = class_groups(np.array([2, 24, 4, 8]), by="rank")
    np.testing.assert_array_equal(e.nested(shuffled), MEMBERS[:, [3, 0, 2, 1]])
    by_shots = class_groups(np.array([3, 500, 60]))
    np.testing.assert_array_equal(e.nested(by_shots), [[1, 1, 1], [1, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("beta", [0.0, 0.6, 0.99])
def test_a_step_is_the_released_formula(beta):
    learner = make("reslt", by="rank", beta=beta)
    state = start(learner)
    metrics, gradient = step(learner, state)
    z, m = logits_of(state.params), MEMBERS[:, Y].T.astype(float)
    fusion = cross_entropy(z.sum(1)).mean()
    individual = sum((m[:, expert] * cross_entropy(z[:, expert])).sum() for expert in range(3)) / m.sum()
    np.testing.assert_allclose(metrics["fusion"], fusion, rtol=1e-5)
    np.testing.assert_allclose(metrics["individual"], individual, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (1 - beta) * fusion + beta * individual, rtol=1e-5)
    of_rows = (1 - beta) * (softmax(z.sum(1)) - ONE_HOT)[:, None] / len(X)
    of_rows = of_rows + beta * m[..., None] * (softmax(z) - ONE_HOT[:, None]) / m.sum()
    np.testing.assert_allclose(bias_gradients(gradient), of_rows.sum(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(kernel_gradients(gradient), np.einsum("bf,bec->efc", X, of_rows), rtol=1e-3, atol=1e-6)


def test_with_one_group_and_one_expert_it_is_the_cross_entropy():
    z = RNG.normal(size=(len(Y), 1, CLASSES)).astype(np.float32)
    together, own, pairs = e.residual_losses(z, Y, e.nested(np.zeros(CLASSES, int), 1))
    np.testing.assert_allclose(together, cross_entropy(z[:, 0]), rtol=1e-5)
    np.testing.assert_array_equal(together, own)
    np.testing.assert_array_equal(pairs, 1)


def test_padding_and_weights():
    learner = make("reslt", by="rank", beta=0.6)
    state = start(learner)
    valid = jnp.asarray(np.arange(len(Y)) % 3 > 0)
    alone, _ = step(learner, state, {name: values[valid] for name, values in DATA.items()})
    padded, _ = step(learner, state, {**DATA, "valid": valid})
    doubled, _ = step(learner, state, {**DATA, "weight": jnp.full(len(Y), 2.0)})
    nothing, _ = step(learner, state, {**DATA, "valid": jnp.zeros(len(Y), bool)})
    np.testing.assert_allclose(padded["loss"], alone["loss"], rtol=1e-5)
    np.testing.assert_allclose(doubled["loss"], 2 * step(learner, state)[0]["loss"], rtol=1e-5)
    assert nothing["loss"] == 0


def test_prediction_is_the_sum():
    learner = make("reslt", by="rank")
    state = start(learner)
    expected = logits_of(state.params).sum(1)
    np.testing.assert_allclose(learner.predict(state, {"x": DATA["x"]})["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "no class is many-shot by shots, and an expert is for those; take by='rank'"),
        ({"by": "size"}, "unknown groups rule 'size'"),
        ({"by": "rank", "beta": 1.5}, "beta must lie in"),
        ({"by": "rank", "experts": 2}, "this method has 3 experts"),
        ({"by": "rank", "class_counts": np.array([3, 0, 1, 1])}, "class 1 has no rows"),
    ],
)
def test_bad_input_is_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        make("reslt", **settings)
    assert "\n" not in str(caught.value)
