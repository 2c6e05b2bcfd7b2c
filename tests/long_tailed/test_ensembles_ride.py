"""RIDE: its loss and gradient against NumPy, its three stages, and the router."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import fit
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.data import full_batch
from jaxkit.learner import Network
from jaxkit.long_tailed import ensembles as e
from jaxkit.long_tailed.ensembles.router import running_means
from jaxkit.networks import mlp
from tests.long_tailed.ensembles_toy import (
    CLASSES,
    COUNTS,
    DATA,
    KEY,
    NETWORK,
    ONE_HOT,
    RNG,
    X,
    Y,
    bias_gradients,
    cross_entropy,
    kernel_gradients,
    log_softmax,
    logits_of,
    make,
    softmax,
    start,
    step,
)  # fmt: skip

PI = COUNTS / COUNTS.sum()
DIVERSITY = jax.jit(e.expert_diversity)
MARGINS = 0.5 * (COUNTS.min() / COUNTS) ** 0.25


def temperatures(factor):
    weights = CLASSES * PI * factor + 1 - factor
    return weights / weights.max()


def class_weights(beta=0.9999):
    weights = (1 - beta) / (1 - beta**COUNTS)
    return weights / weights.sum() * CLASSES


def test_temperatures_are_lowest_for_the_rarest_class():
    for factor in (0.0, 0.02, 0.5):
        np.testing.assert_allclose(e.class_temperatures(COUNTS, factor=factor), temperatures(factor), rtol=1e-6)
    assert e.class_temperatures(COUNTS, factor=0.5)[0] == 1  # of the most frequent class


def diversity_of(z, t):
    """The released formula, row by row: mean(T)^2 sum_e sum_c p (log p - log p_e)."""
    t = np.broadcast_to(t, CLASSES)
    log_p = log_softmax(z.mean(1) / t)
    apart = sum((np.exp(log_p) * (log_p - log_softmax(z[:, expert] / t))).sum(-1) for expert in range(z.shape[1]))
    return t.mean() ** 2 * apart


@pytest.mark.parametrize("t", [1.0, 0.7, temperatures(0.3)])
def test_diversity_against_numpy(t):
    z = RNG.normal(size=(6, 3, CLASSES)).astype(np.float32)
    np.testing.assert_allclose(e.expert_diversity(z, jnp.asarray(t, jnp.float32)), diversity_of(z, t), rtol=1e-4)
    # No gradient through p: with respect to z_e it is mean(T)^2 (p_e - p) / T.
    gradient = jax.grad(lambda z: e.expert_diversity(z, jnp.asarray(t, jnp.float32)).sum())(jnp.asarray(z))
    whole = np.broadcast_to(t, CLASSES)
    p = softmax(z.mean(1) / whole)[:, None]
    np.testing.assert_allclose(gradient, whole.mean() ** 2 * (softmax(z / whole) - p) / whole, rtol=1e-3, atol=1e-6)


@given(st.integers(0, 2**31 - 1), st.integers(1, 4))
def test_diversity_is_not_negative_and_zero_for_experts_that_agree(seed, experts):
    random = np.random.default_rng(seed)
    same = np.repeat(random.normal(size=(3, 1, 5)), experts, 1).astype(np.float32)
    np.testing.assert_allclose(DIVERSITY(same), 0, atol=1e-5)
    other = random.normal(size=(3, experts, 5)).astype(np.float32)
    assert (np.asarray(DIVERSITY(other)) >= -1e-5).all()


@pytest.mark.parametrize("stage", [0, 1])
def test_a_step_is_the_released_formula(stage):
    plan = make("ride", diversity=0.2, temperature_factor=0.3)
    learner = plan[stage].learner
    state = start(learner)
    metrics, gradient = step(learner, state)
    z = logits_of(state.params)
    t = temperatures(0.3) if stage else np.ones(CLASSES)
    w = class_weights() if stage else np.ones(CLASSES)
    shifted = z - 30.0 * (MARGINS * ONE_HOT)[:, None]
    rows = sum(cross_entropy(shifted[:, expert]) for expert in range(3))
    apart = diversity_of(z, t).mean()
    np.testing.assert_allclose(metrics["loss"], (w[Y] * rows).sum() / w[Y].sum() - 0.2 * apart, rtol=1e-5)
    np.testing.assert_allclose(metrics["diversity"], apart, rtol=1e-4)
    of_rows = (w[Y] / w[Y].sum())[:, None, None] * (softmax(shifted) - ONE_HOT[:, None])
    of_rows -= 0.2 * t.mean() ** 2 * (softmax(z / t) - softmax(z.mean(1) / t)[:, None]) / t / len(Y)
    np.testing.assert_allclose(bias_gradients(gradient), of_rows.sum(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(kernel_gradients(gradient), np.einsum("bf,bec->efc", X, of_rows), rtol=1e-3, atol=1e-6)


def test_one_expert_without_diversity_is_ldam_and_then_ldam_drw():
    own = NETWORK.init(KEY, DATA["x"])
    network = Network(lambda key, x: own, NETWORK.apply)
    ride = e.ride(network, optax.sgd(0.1), class_counts=COUNTS, experts=1, diversity=0.0, source=full_batch())
    ldam = lt.METHODS["ldam_drw"].make(network, optax.sgd(0.1), class_counts=COUNTS, source=full_batch())
    assert [stage.share for stage in ride] == [stage.share for stage in ldam]
    ours, theirs = (fit(plan, DATA, key=KEY, steps=10, progress=False) for plan in (ride, ldam))
    chex.assert_trees_all_close(ours.state.params["expert_0"], theirs.state.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.history.metrics["loss"], theirs.history.metrics["loss"], rtol=1e-4)


def test_diversity_drives_experts_apart():
    spread = {}
    for diversity in (0.0, 1.0):
        learner = e.ride(NETWORK, optax.sgd(0.1), class_counts=COUNTS, scale=1.0, diversity=diversity)[0].learner
        state, update = start(learner), jax.jit(learner.update)
        for _ in range(40):
            state, metrics = update(state, DATA, KEY)
        spread[diversity] = metrics["diversity"]
    assert spread[1.0] > spread[0.0]


# The router --------------------------------------------------------------------------------------------------------


def test_what_a_router_shall_say_and_how_many_experts_are_asked():
    """Row by row in Python, over all patterns of right and wrong."""
    z = RNG.normal(size=(400, 4, CLASSES)).astype(np.float32)
    y = RNG.integers(0, CLASSES, 400)
    q = RNG.normal(size=(400, 3)).astype(np.float32)
    needed, used = np.asarray(e.expert_needed(z, y)), np.asarray(e.experts_used(q, threshold=0.4))
    patterns = set()
    for row in range(400):
        right = [z[row, : k + 1].mean(0).argmax() == y[row] for k in range(4)]
        patterns.add(tuple(right))
        assert needed[row].tolist() == [not right[k] and any(right[k + 1 :]) for k in range(3)]
        asked = 1
        while asked < 4 and 1 / (1 + np.exp(-q[row, asked - 1])) > 0.4:
            asked += 1
        assert used[row] == asked
    assert len(patterns) >= 8
    np.testing.assert_allclose(running_means(z)[:, 2], z[:, :3].mean(1), rtol=1e-5, atol=1e-6)


def test_the_routing_loss_is_weighted_binary_cross_entropy():
    q = RNG.normal(size=(20, 2)).astype(np.float32)
    t = RNG.random((20, 2)) < 0.3
    p = 1 / (1 + np.exp(-q.astype(np.float64)))
    expected = -(7.0 * t * np.log(p) + (1 - t) * np.log(1 - p)).mean(1)
    np.testing.assert_allclose(e.routing_loss(q, t, positive_weight=7.0), expected, rtol=1e-4)


@functools.lru_cache
def routed():
    """(plan, a state of its first stage, two at the begin of the last, the first of these after six steps, the
    metrics of the first of the six)."""
    network = mlp(CLASSES, hidden=(5,), norm="batch")
    settings = {"class_counts": COUNTS, "router_share": 0.5, "threshold": 0.45}
    plan = e.ride(network, optax.sgd(0.1), router=True, **settings)
    before = jax.jit(plan[0].learner.update)(start(plan[0].learner), DATA, KEY)[0]
    begin, update = jax.jit(plan[2].begin), jax.jit(plan[2].learner.update)
    began, other = (begin(before, DATA, jax.random.key(seed)) for seed in (1, 2))
    after, metrics = update(began, DATA, KEY)
    for _ in range(5):
        after, _ = update(after, DATA, KEY)
    return plan, before, began, other, after, metrics


def test_the_routing_stage_trains_the_router_alone():
    plan, before, began, other, after, _ = routed()
    assert [stage.name for stage in plan] == ["ldam", "re-weighted", "routing"]
    assert [stage.share for stage in plan] == pytest.approx([0.4, 0.1, 0.5])
    chex.assert_trees_all_equal(before.params, began.params["experts"], after.params["experts"])
    chex.assert_trees_all_equal(before.variables, began.variables, after.variables)
    assert int(began.step) == 0 and jax.tree.structure(began) == jax.tree.structure(after)
    for one, two in ((began, other), (began, after)):
        assert not np.allclose(one.params["router"]["hidden"], two.params["router"]["hidden"])


def test_a_step_of_the_router_lowers_its_loss_on_the_experts_mistakes():
    plan, _, began, _, after, metrics = routed()
    losses = []
    for state in (began, after):
        outputs = jax.tree.map(np.asarray, jax.jit(plan[2].learner.predict)(state, {"x": DATA["x"]}))
        right = np.cumsum(outputs["logits_experts"], 1).argmax(-1) == Y[:, None]
        needed = np.stack([~right[:, 0] & right[:, 1:].any(1), ~right[:, 1] & right[:, 2]], 1)
        p = 1 / (1 + np.exp(-outputs["logits_router"].astype(np.float64)))
        losses.append(-(100.0 * needed * np.log(p) + ~needed * np.log(1 - p)).mean())
    np.testing.assert_allclose(metrics["loss"], losses[0], rtol=1e-4)
    assert losses[1] < losses[0]


def test_the_router_against_numpy():
    plan, *_, state, _ = routed()
    outputs = jax.tree.map(np.asarray, jax.jit(plan[2].learner.predict)(state, {"x": DATA["x"]}))
    router = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["router"])
    z, f = outputs["logits_experts"].astype(np.float64), outputs["features_experts"].astype(np.float64)
    for row in range(len(X)):
        used = None
        for k in range(2):
            unit = f[row, k] / max(np.linalg.norm(f[row, k]), 1e-12)
            hidden = np.maximum(unit @ router["hidden"][k] + router["hidden_bias"][k], 0)
            largest = np.sort(z[row, : k + 1].mean(0))[::-1]
            q = np.concatenate([largest, hidden]) @ router["kernel"] + router["bias"]
            np.testing.assert_allclose(outputs["logits_router"][row, k], q, rtol=1e-3, atol=1e-4)
            if used is None and not outputs["logits_router"][row, k] > np.log(0.45 / 0.55):
                used = k + 1
        used = used or 3
        assert outputs["value_experts_used"][row] == used
        np.testing.assert_allclose(outputs["logits"][row], z[row, :used].mean(0), rtol=1e-4, atol=1e-5)


def test_a_threshold_of_one_asks_one_expert_and_of_zero_all():
    for threshold, number in ((1.0, 1), (0.0, 3)):
        ensemble = e.replicated(NETWORK, 3)
        routed = e.with_router(ensemble, threshold=threshold)
        outputs = jax.jit(lambda x, routed=routed: routed.apply(*routed.init(KEY, x), x)[0])(DATA["x"])
        assert (np.asarray(outputs["value_experts_used"]) == number).all()
        np.testing.assert_allclose(
            outputs["logits"], outputs["logits_experts"][:, :number].mean(1), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"class_counts": np.array([3, 0, 1, 1])}, "class 1 has no rows"),
        ({"diversity": -0.1}, "diversity must lie in"),
        ({"temperature_factor": 1.5}, "factor must lie in"),
        ({"scale": 0.0}, "scale must be a finite number above 0"),
        ({"beta": 1.0}, "beta must be below 1"),
        ({"deferred": 1.0}, "deferred must lie between 0 and 1"),
        ({"router_share": 0.0}, "router_share must lie between 0 and 1"),
        ({"router": True, "experts": 1}, "needs at least 2 experts, got 1"),
        ({"router": True, "positive_weight": 0.0}, "positive_weight must be"),
        ({"router": True, "threshold": 1.5}, "threshold must lie in"),
        ({"experts": 0}, "experts must be at least 1"),
    ],
)
def test_bad_input_is_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        make("ride", **settings)
    assert "\n" not in str(caught.value)


def test_a_router_needs_the_features_of_the_experts():
    def apply(params, variables, x, **_):
        return {"logits": x @ params["w"], "logits_experts": (x @ params["w"])[:, None].repeat(3, 1)}, variables

    bare = Network(lambda key, x: ({"w": jnp.ones((3, CLASSES))}, {}), apply)
    with pytest.raises(UsageError, match="features_experts"):
        e.with_router(bare).init(KEY, DATA["x"])
