"""Copies of a network and heads on one backbone: outputs, statistics, randomness, and mistakes."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit.check import UsageError
from jaxkit.learner import Learner, Network
from jaxkit.long_tailed import decoupled
from jaxkit.long_tailed import ensembles as e
from jaxkit.long_tailed.ensembles.experts import ensemble_of, shot_groups
from jaxkit.long_tailed.loss_methods import weighted_mean
from jaxkit.networks import heads, mlp
from tests.long_tailed.ensembles_toy import CLASSES, COUNTS, DATA, KEY, make, start


def test_copies_are_networks_of_their_own():
    network = mlp(CLASSES, hidden=(5,), norm="batch")
    ensemble = e.replicated(network, 2)
    params, variables = ensemble.init(KEY, DATA["x"])
    assert list(params) == list(variables) == ["expert_0", "expert_1"]
    kernels = [params[name]["head"]["kernel"] for name in params]
    assert not np.allclose(*kernels)
    outputs, after = jax.jit(lambda p, v, x: ensemble.apply(p, v, x, train=True))(params, variables, DATA["x"])
    single = jax.jit(lambda p, v, x: network.apply(p, v, x, train=True))
    alone = [single(params[name], variables[name], DATA["x"]) for name in params]
    for number, (one, own) in enumerate(alone):
        np.testing.assert_allclose(outputs["logits_experts"][:, number], one["logits"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs["features_experts"][:, number], one["features"], rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(after[f"expert_{number}"], own, rtol=1e-5, atol=1e-6)
    mean = (alone[0][0]["logits"] + alone[1][0]["logits"]) / 2
    np.testing.assert_allclose(outputs["logits"], mean, rtol=1e-5, atol=1e-6)
    side_by_side = np.concatenate([alone[0][0]["features"], alone[1][0]["features"]], 1)
    np.testing.assert_allclose(outputs["features"], side_by_side, rtol=1e-5, atol=1e-6)


def test_each_copy_draws_its_own_dropout():
    network = mlp(CLASSES, hidden=(50,), dropout=0.5)
    one = network.init(KEY, DATA["x"])
    params, variables = ({f"expert_{i}": part for i in range(2)} for part in one)
    outputs = e.replicated(network, 2).apply(params, variables, DATA["x"], train=True, key=KEY)[0]
    assert not np.allclose(outputs["features_experts"][:, 0], outputs["features_experts"][:, 1])
    still = e.replicated(network, 2).apply(params, variables, DATA["x"])[0]
    np.testing.assert_array_equal(still["features_experts"][:, 0], still["features_experts"][:, 1])


@pytest.mark.parametrize("head", ["linear", "cosine", heads.cosine(scale=7.0, learn_scale=False)])
def test_heads_on_one_backbone_are_a_dense_layer_and_a_head_each(head):
    network = mlp(CLASSES, hidden=(5,), norm="batch")
    shared = e.with_experts(network, 2, head=head)
    params, variables = shared.init(KEY, DATA["x"])
    assert list(params) == ["backbone", "expert_0", "expert_1"]
    outputs, after = jax.jit(lambda p, v, x: shared.apply(p, v, x, train=True))(params, variables, DATA["x"])
    own = network.init(KEY, DATA["x"])[0]
    chex.assert_trees_all_equal(params["backbone"], own["backbone"])
    trunk, own_after = jax.jit(lambda p, v, x: network.apply(p, v, x, train=True))(own, variables, DATA["x"])
    chex.assert_trees_all_close(after, own_after, rtol=1e-5)
    features = np.asarray(trunk["features"], np.float64)
    for number in range(2):
        dense, read_out = params[f"expert_{number}"]["backbone"]["dense_0"], params[f"expert_{number}"]["head"]
        assert dense["kernel"].shape == (5, 5)
        hidden = np.maximum(features @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]), 0)
        kernel = np.asarray(read_out["kernel"], np.float64)
        if head == "linear":
            expected = hidden @ kernel + np.asarray(read_out["bias"])
        else:
            lengths = np.maximum(np.linalg.norm(hidden, axis=1), 1e-6)[:, None] * np.linalg.norm(kernel, axis=0)
            expected = float(read_out.get("scale", 7.0)) * (hidden @ kernel) / lengths
        np.testing.assert_allclose(outputs["features_experts"][:, number], hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outputs["logits_experts"][:, number], expected, rtol=1e-4, atol=1e-5)


def test_a_shared_backbone_gets_the_gradient_of_all_experts():
    shared = e.with_experts(mlp(CLASSES, hidden=(5,)), 3)
    learner = e.sade(shared, optax.sgd(0.1), class_counts=COUNTS, experts=None)
    state, update = start(learner), jax.jit(learner.update)
    before, losses = state.params, []
    for _ in range(60):
        state, metrics = update(state, DATA, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    after = state.params
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)))


def test_a_shared_backbone_is_frozen_as_any_other():
    """cRT needs one head, and says so; the pattern for a backbone fits."""
    shared = e.with_experts(mlp(CLASSES, hidden=(5,)), 3)
    with pytest.raises(UsageError, match="expected params with head/kernel"):
        decoupled.crt(shared, optax.sgd(0.1), class_counts=COUNTS)[0].learner.init(KEY, DATA)


def test_weighted_mean_is_of_the_valid_rows():
    values, weights = jnp.asarray([1.0, 2.0, 3.0, jnp.nan]), jnp.asarray([1.0, 3.0, 1.0, 5.0])
    batch = {"valid": jnp.asarray([True, True, True, False])}
    assert float(weighted_mean(values, weights, batch)) == pytest.approx((1 + 6 + 3) / 5)
    doubled = {**batch, "weight": jnp.full(4, 2.0)}
    assert float(weighted_mean(values, weights, doubled)) == pytest.approx(2 * (1 + 6 + 3) / 5)
    assert float(weighted_mean(values, weights, {"valid": jnp.zeros(4, bool)})) == 0


@pytest.mark.parametrize("name", sorted(e.METHODS))
def test_every_record_is_complete(name):
    record = e.METHODS[name]
    assert record.title and record.paper and record.year and record.evidence and record.not_reproduced
    assert record.categories == ("module improvement", "ensemble")
    counts = np.array([200, 150, 50, 3])
    total = {"total_steps": 10} if name in ("bbn", "lfme") else {}
    made = make(name, class_counts=counts, **total)
    assert isinstance(made if isinstance(made, Learner) else made[0].learner, Learner)


def test_groups_of_experts_come_from_counts():
    np.testing.assert_array_equal(shot_groups(np.array([3, 200, 50]), "shots"), [2, 0, 1])
    np.testing.assert_array_equal(shot_groups(np.array([3, 5, 4]), "rank"), [2, 0, 1])


HEADLESS = Network(lambda key, x: ({"w": jnp.ones((3, 4))}, {}), lambda p, v, x, **_: ({"logits": x @ p["w"]}, v))


def outputs_of(network):
    return network.apply(*network.init(KEY, DATA["x"]), DATA["x"])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: e.replicated(HEADLESS, 0), "experts must be at least 1"),
        (lambda: e.with_experts(HEADLESS, 2, head="cosinus"), "did you mean 'cosine'"),
        (lambda: e.with_experts(HEADLESS, 2).init(KEY, DATA["x"]), "with parameters under 'head'"),
        (lambda: outputs_of(e.replicated(HEADLESS, 2)), "logits and features, this one gives logits"),
        (lambda: ensemble_of(HEADLESS, None).init(KEY, DATA["x"]), "experts=None needs a network that gives logits_"),
        (lambda: ensemble_of(HEADLESS, 2, needed=3), "this method has 3 experts"),
        (
            lambda: ensemble_of(e.with_experts(mlp(4, hidden=()), 2), None, needed=3).init(KEY, DATA["x"]),
            "3 experts, one for each of its losses, got 2",
        ),
        (lambda: shot_groups(np.array([200, 50, 40]), "shots"), "no class is few-shot by shots.*by='rank'"),
        (lambda: shot_groups(np.array([200, 50]), "rank"), "there must be 3 classes"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
