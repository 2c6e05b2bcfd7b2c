"""BBN: the mixed logits and loss against NumPy, the weight of the branches, and the two samplers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import fit
from jaxkit.check import UsageError
from jaxkit.long_tailed import ensembles as e
from tests.long_tailed.ensembles_toy import (
    CLASSES,
    COUNTS,
    DATA,
    KEY,
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

BRANCHES = ("expert_0", "expert_1")
ORDER = np.random.default_rng(8).permutation(len(Y))
PAIR = {**DATA, "second": {"x": DATA["x"][ORDER], "y": DATA["y"][ORDER]}}


def test_the_weight_falls_as_a_parabola():
    np.testing.assert_allclose(
        [e.cumulative_weight(t, 10) for t in (0, 1, 5, 9, 10, 30)], [1, 0.99, 0.75, 0.19, 0, 0], atol=1e-6
    )


def test_the_mixed_logits_are_a_classifier_of_the_concatenated_features():
    """2 [alpha f_c; (1 - alpha) f_r] W with W stacked from both heads, and the sum of the branches at 1/2."""
    f_c, f_r = RNG.normal(size=(2, 5, 3))
    w_c, w_r = RNG.normal(size=(2, 3, CLASSES))
    features = 2 * np.concatenate([0.8 * f_c, 0.2 * f_r], axis=1)
    mixed = e.bilateral_logits(jnp.asarray(f_c @ w_c, jnp.float32), jnp.asarray(f_r @ w_r, jnp.float32), 0.8)
    np.testing.assert_allclose(mixed, features @ np.concatenate([w_c, w_r]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [0, 3, 8, 10])
def test_a_step_is_the_released_formula(at):
    learner = make("bbn", total_steps=10)[0].learner
    state = start(learner)._replace(step=jnp.int32(at))
    metrics, gradient = step(learner, state, PAIR)
    alpha = 1 - (at / 10) ** 2
    z_c = logits_of(state.params, X, BRANCHES)[:, 0]
    z_r = logits_of(state.params, X[ORDER], BRANCHES)[:, 1]
    z = 2 * (alpha * z_c + (1 - alpha) * z_r)
    loss = alpha * cross_entropy(z).mean() + (1 - alpha) * cross_entropy(z, Y[ORDER]).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["alpha"], alpha, atol=1e-6)
    of_z = (alpha * (softmax(z) - ONE_HOT) + (1 - alpha) * (softmax(z) - ONE_HOT[ORDER])) / len(Y)
    of_rows = np.stack([2 * alpha * of_z, 2 * (1 - alpha) * of_z], 1)
    np.testing.assert_allclose(bias_gradients(gradient, BRANCHES), of_rows.sum(0), rtol=1e-3, atol=1e-6)
    kernels = np.stack([X.T @ of_rows[:, 0], X[ORDER].T @ of_rows[:, 1]])
    np.testing.assert_allclose(kernel_gradients(gradient, BRANCHES), kernels, rtol=1e-3, atol=1e-6)


def test_at_the_first_step_the_reversed_rows_do_not_matter():
    learner = make("bbn", total_steps=10)[0].learner
    state = start(learner)
    other = {**PAIR, "second": {"x": 5.0 - PAIR["second"]["x"], "y": 3 - PAIR["second"]["y"]}}
    (one, moved), (two, also_moved) = step(learner, state, PAIR), step(learner, state, other)
    assert one["loss"] == two["loss"]
    np.testing.assert_array_equal(bias_gradients(moved, BRANCHES), bias_gradients(also_moved, BRANCHES))
    assert not bias_gradients(moved, BRANCHES)[1].any()


def test_a_row_counts_where_both_halves_of_it_do():
    learner = make("bbn", total_steps=10)[0].learner
    state = start(learner)._replace(step=jnp.int32(5))
    one, two = np.arange(len(Y)) % 5 > 0, np.arange(len(Y)) % 7 > 0
    padded = {**PAIR, "valid": jnp.asarray(one), "second": {**PAIR["second"], "valid": jnp.asarray(two)}}
    alone = jax.tree.map(lambda leaf: leaf[one & two], PAIR)
    np.testing.assert_allclose(
        step(learner, state, padded)[0]["loss"], step(learner, state, alone)[0]["loss"], rtol=1e-5
    )


def test_prediction_is_the_sum_of_the_branches():
    learner = make("bbn", total_steps=10)[0].learner
    state = start(learner)
    expected = logits_of(state.params, names=BRANCHES).sum(1)
    np.testing.assert_allclose(learner.predict(state, {"x": DATA["x"]})["logits"], expected, rtol=1e-4, atol=1e-5)


def test_the_second_batch_is_drawn_from_the_reversed_data():
    (stage,) = make("bbn", total_steps=10, batch_size=30)
    state = stage.source.init(DATA, KEY)
    draw = jax.jit(lambda step: stage.source.next(DATA, state, None, step, KEY)[1])
    batches = [draw(step) for step in range(20)]
    first, second = (
        np.bincount(np.concatenate([half["y"] for half in halves]), minlength=CLASSES)
        for halves in (batches, [batch["second"] for batch in batches])
    )
    p = (1 / COUNTS) / (1 / COUNTS).sum()
    # 4.9 standard deviations are passed once in 10^6.
    assert (np.abs(second - 600 * p) < 4.9 * np.sqrt(600 * p * (1 - p))).all()
    assert first.argmax() == 0 and first.argmin() == 3


def test_alpha_goes_from_one_to_zero_over_a_run():
    run = fit(make("bbn", total_steps=8, batch_size=16), DATA, key=KEY, steps=8, progress=False)
    np.testing.assert_allclose(run.history.metrics["alpha"], 1 - (np.arange(8) / 8) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"total_steps": 5, "class_counts": np.array([3, 0, 1, 1])}, "class 1 has no rows"),
        ({"total_steps": 5, "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_input_is_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        make("bbn", **settings)
    assert "\n" not in str(caught.value)


def test_a_batch_without_the_second_half_is_told():
    learner = make("bbn", total_steps=5)[0].learner
    state = jax.eval_shape(learner.init, KEY, DATA)
    with pytest.raises(UsageError, match=r"bbn needs a second row for each, batch\['second'\]: jaxkit.data.pair"):
        jax.eval_shape(learner.update, state, DATA, KEY)


def test_an_alpha_outside_is_told():
    with pytest.raises(UsageError, match="alpha must lie in"):
        e.bilateral_logits(jnp.zeros((2, 3)), jnp.zeros((2, 3)), 1.5)
