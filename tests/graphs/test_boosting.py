"""SAMME.R against scikit-learn's old coded-vector form, and what each weighting does to the weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit.graphs import boosting as bo


def case(seed, rows=40, classes=4):
    random = np.random.default_rng(seed)
    weights = random.random(rows)
    logits = 3 * random.normal(size=(rows, classes))
    return weights / weights.sum(), logits, random.integers(0, classes, rows)


def coded(weights, logits, labels):
    """SAMME.R's weight update as scikit-learn had it until 1.6: y coded 1 and -1/(K-1), learning rate 1; float64."""
    classes = logits.shape[1]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = np.maximum(p / p.sum(1, keepdims=True), np.finfo(np.float64).eps)
    y = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0 / (classes - 1))
    raised = weights * np.exp(-(classes - 1) / classes * (y * np.log(p)).sum(1))
    return raised / raised.sum()


class TestScores(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_they_are_their_formula_and_sum_to_zero(self):
        _, logits, _ = case(0)
        log_p = self.variant(bo.log_probabilities)(jnp.asarray(logits))
        scores = self.variant(bo.samme_r_scores)(log_p)
        expected = 3 * (np.asarray(log_p) - np.asarray(log_p).mean(1, keepdims=True))
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        np.testing.assert_allclose(scores.sum(1), 0, atol=1e-5 * 3 * np.abs(log_p).max())

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_probability_of_zero_leaves_them_finite(self):
        log_p = self.variant(bo.log_probabilities)(jnp.array([[500.0, 0.0, -500.0]]))
        np.testing.assert_allclose(log_p, [[0.0, np.log(np.finfo(np.float64).eps), np.log(np.finfo(np.float64).eps)]])
        chex.assert_tree_all_finite(bo.samme_r_scores(log_p))


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_the_update_equals_the_coded_form(seed, classes):
    weights, logits, labels = case(seed, classes=classes)
    log_p = bo.log_probabilities(jnp.asarray(logits, jnp.float32))
    found = bo.samme_r_weights(jnp.asarray(weights, jnp.float32), log_p, jnp.asarray(labels))
    np.testing.assert_allclose(found, coded(weights, logits, labels), rtol=1e-4)


def test_the_update_equals_the_coded_form_in_float64():
    weights, logits, labels = case(3)
    with jax.enable_x64(True):
        log_p = bo.log_probabilities(jnp.asarray(logits))
        found = bo.samme_r_weights(jnp.asarray(weights), log_p, jnp.asarray(labels))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, coded(weights, logits, labels), rtol=1e-6)


def test_extreme_logits_give_finite_weights():
    logits = jnp.array([[900.0, -900.0, 0.0], [-900.0, 900.0, 0.0]])
    for weighting in bo.WEIGHTINGS:
        log_p = bo.log_probabilities(logits)
        found = bo.next_weights(weighting, jnp.array([0.5, 0.5]), log_p, jnp.array([0, 0]))
        chex.assert_tree_all_finite(found)
        np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-6)


def test_boosting_raises_the_badly_classified_and_the_released_code_lowers_them():
    _, logits, labels = case(1)
    log_p = bo.log_probabilities(jnp.asarray(logits, jnp.float32))
    nll = -np.asarray(log_p)[np.arange(len(labels)), labels]
    uniform = jnp.full(len(labels), 1 / len(labels))
    after = {name: bo.next_weights(name, uniform, log_p, jnp.asarray(labels)) for name in bo.WEIGHTINGS}
    worst, best = nll.argmax(), nll.argmin()
    for name in ("samme_r", "shuffled"):
        assert after[name][worst] > after[name][best]
    for name in ("official", "inverted"):
        assert after[name][worst] < after[name][best]
        expected = np.exp(-(4 - 2) / (4 - 1) * nll)
        np.testing.assert_allclose(after[name], expected / expected.sum(), rtol=1e-4)
    np.testing.assert_array_equal(after["uniform"], uniform)


@pytest.mark.parametrize("weighting", ["official", "inverted"])
def test_for_two_classes_the_released_update_changes_nothing(weighting):
    weights, logits, labels = case(2, classes=2)
    weights = jnp.asarray(weights, jnp.float32)
    log_p = bo.log_probabilities(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(bo.next_weights(weighting, weights, log_p, jnp.asarray(labels)), weights, rtol=1e-6)


def test_the_effective_sample_size():
    assert float(bo.effective_sample_size(jnp.full(25, 0.04))) == pytest.approx(25)
    assert float(bo.effective_sample_size(jnp.array([0.0, 3.0, 0.0]))) == pytest.approx(1)
