"""Baselines on the protocol: features that are propagated once, networks that propagate at every step, the best
state."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import fit
from jaxkit.check import UsageError
from jaxkit.data import full_batch
from jaxkit.graphs import (
    METHODS,
    Nodes,
    hop_regression,
    hops,
    keep_best,
    node_classification,
    node_data,
    node_mlp,
    sgc,
)
from jaxkit.graphs.objective import dealt, first_layer, node_learner, squared_norm
from jaxkit.learner import Learner
from jaxkit.methods import find
from jaxkit.networks import gcn, mlp
from tests.graphs import toy

ROWS = np.arange(toy.NODES)


@pytest.mark.parametrize(
    ("make", "features"),
    [
        (node_mlp, lambda: hops(toy.graph(), 1)[0]),
        (lambda *args: sgc(*args, hops=2), lambda: hops(toy.graph(), 3)[2]),
        (lambda *args: hop_regression(*args, hops=2), lambda: np.concatenate(list(hops(toy.graph(), 3)), axis=1)),
    ],
    ids=["mlp", "sgc", "hop_regression"],
)
def test_precomputed_features_are_the_hops(make, features):
    """A linear network's logits are features @ W, for all nodes, after a few steps."""
    (stage,) = make(mlp(toy.CLASSES, hidden=(), bias=False), optax.adam(0.05))
    fitted = fit((stage,), toy.data(), key=0, steps=5, progress=False)
    kernel = fitted.state.inner.params["head"]["kernel"]
    logits = stage.learner.predict(fitted.state, {"x": Nodes(jnp.asarray(ROWS), toy.graph())})["logits"]
    np.testing.assert_allclose(logits, features() @ kernel, atol=1e-5)
    np.testing.assert_allclose(fitted.state.signal, features(), atol=1e-6)


def test_the_loss_is_its_formula():
    """sum_i w_i CE_i + l2/2 |W0|^2 + decay/2 |W|^2 with normalised weights, in float64."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 4)).astype(np.float32), np.array([0, 2, 1, 1, 0])
    weight = random.random(5).astype(np.float32)
    network = mlp(3, hidden=(6,), bias=False)
    learner = node_learner(network, optax.sgd(0.0), l2=0.3, weight_decay=0.7, output_relu=True)
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(y), "weight": jnp.asarray(weight)}
    state = learner.init(jax.random.key(1), batch)
    _, metrics = learner.update(state, batch, jax.random.key(2))
    first, last = (np.asarray(state.params[a][b]["kernel"] if b else state.params[a]["kernel"], np.float64)
                   for a, b in (("backbone", "dense_0"), ("head", None)))  # fmt: skip
    logits = np.maximum(np.maximum(x @ first, 0) @ last, 0)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), y]
    expected = (weight / weight.sum() * nll).sum() + 0.15 * (first**2).sum()
    expected += 0.35 * ((first**2).sum() + (last**2).sum())
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_dealt_weights_are_a_permutation_that_changes_every_step():
    """Under dealing, the loss of one batch takes different values, each of which some order of the weights gives."""
    network = mlp(2, hidden=(), bias=False)
    learner = node_learner(network, optax.sgd(0.0), l2=0.0, deal_weights=True)
    batch = {"x": jnp.eye(3), "y": jnp.array([0, 1, 0]), "weight": jnp.array([0.7, 0.2, 0.1])}
    state = learner.init(jax.random.key(0), batch)
    rows = optax.softmax_cross_entropy_with_integer_labels(state.params["head"]["kernel"], batch["y"])
    possible = [float(jnp.dot(jnp.array(order), rows)) for order in itertools.permutations([0.7, 0.2, 0.1])]
    update = jax.jit(learner.update)
    seen = [float(update(state, batch, jax.random.key(key))[1]["loss"]) for key in range(12)]
    assert all(min(abs(one - other) for other in possible) < 1e-6 for one in seen)
    assert len({round(one, 5) for one in seen}) > 2


def test_the_first_layer_is_found_by_its_path():
    """The squared norm under the pattern is that of the first kernel and of nothing else."""
    x = jnp.ones((1, 5))
    for network, given, place in (
        (mlp(3, hidden=(4, 4)), x, ("backbone", "dense_0", "kernel")),
        (mlp(3, hidden=()), x, ("head", "kernel")),
        (gcn(3, hidden=4), toy.data()["x"], ("backbone", "layers_0", "kernel")),
        (gcn(3, depth=1), toy.data()["x"], ("head", "kernel")),
    ):
        params, _ = network.init(jax.random.key(0), given)
        leaf = params
        for name in place:
            leaf = leaf[name]
        np.testing.assert_allclose(squared_norm(params, first_layer(params)), (leaf**2).sum(), rtol=1e-6)


class Counted(NamedTuple):
    params: jax.Array


def test_invalid_rows_take_no_part_in_dealing():
    weights, valid = jnp.array([0.1, 0.2, 0.0, 0.3, 0.4, 0.0]), jnp.array([True, True, False, True, True, False])
    for seed in range(5):
        found = dealt(weights, jax.random.key(seed), valid)
        assert (found[~valid] == 0).all()
        np.testing.assert_array_equal(np.sort(found[valid]), weights[valid])


def counting(accuracies, losses_):
    """A learner whose step t has params t, accuracy and loss on four held-out rows as listed."""
    accuracy, margin = jnp.asarray(accuracies), jnp.asarray(losses_)

    def predict(state, batch):
        t = state.params.astype(jnp.int32)
        right = jnp.arange(4) < accuracy[t] * 4
        size = margin[t]
        return {"logits": jnp.stack([jnp.where(right, size, 0.0), jnp.where(right, 0.0, size)], axis=1)}

    update = lambda state, batch, key: (Counted(state.params + 1), {"loss": jnp.zeros(()), "finite": jnp.ones(())})
    return Learner(lambda key, batch: Counted(jnp.zeros(())), update, predict)


def follow(learner, steps):
    update = jax.jit(learner.update)
    state, seen = learner.init(jax.random.key(0), {}), []
    for _ in range(steps):
        state, _ = update(state, {}, jax.random.key(0))
        seen.append((float(state.params), float(state.inner.params)))
    return seen


HELD = {"x": jnp.zeros((4, 1)), "y": jnp.zeros(4, jnp.int32)}


def test_the_best_state_has_the_highest_accuracy_and_then_the_lowest_loss():
    # At accuracy 1/2 a larger margin means a larger loss.
    learner = keep_best(counting([0, 0.25, 0.5, 0.5, 0.5, 0.25], [1, 1.0, 3.0, 2.0, 4.0, 0.1]), lambda batch: HELD)
    assert [best for best, _ in follow(learner, 5)] == [1, 2, 3, 3, 3]


def test_patience_ends_training_where_neither_comes_up():
    # After step 1 accuracy and loss are worse throughout: with patience 2 steps 2 and 3 are the last.
    learner = keep_best(
        counting([0, 0.75, 0.5, 0.5, 0.5, 1.0], [1, 1.0, 1.0, 1.0, 1.0, 1.0]), lambda batch: HELD, patience=2
    )
    assert follow(learner, 5) == [(1, 1), (1, 2), (1, 3), (1, 3), (1, 3)]


def test_a_tie_counts_for_patience():
    learner = keep_best(counting([0, 0.5, 0.5, 0.5, 0.5, 0.5], [1.0] * 6), lambda batch: HELD, patience=2)
    assert follow(learner, 5)[-1] == (1, 5)


def test_a_graph_network_learns_the_blocks_and_keeps_its_best_state():
    learner = node_classification(gcn(toy.CLASSES, hidden=8, dropout=0.0), optax.adam(0.02))
    fitted = fit(learner, toy.data(), key=0, steps=60, source=full_batch(whole=True), progress=False)
    stopping = jnp.asarray(toy.split()[1])
    logits = learner.predict(fitted.state, {"x": Nodes(stopping, toy.graph())})["logits"]
    found = (logits.argmax(-1) == toy.arrays()["y"][stopping]).mean()
    history = fitted.history.metrics["stopping_accuracy"]
    assert (
        float(found) == pytest.approx(history.max()) and history.max() > 0.6
    )  # by chance, 15 of 24 of three classes: p < 0.01


def test_data_without_stopping_nodes_is_said_in_one_line():
    data = node_data(toy.graph(), toy.arrays()["y"], np.arange(24))
    learner = node_classification(gcn(toy.CLASSES, hidden=8), optax.adam(0.02))
    for plan, source in ((learner, full_batch(whole=True)), (sgc(mlp(3, hidden=()), optax.adam(0.1)), None)):
        with pytest.raises(UsageError, match="needs stopping nodes"):
            fit(plan, data, key=0, steps=2, source=source, progress=False)


def test_every_method_is_found_by_its_name():
    for name, method in METHODS.items():
        assert find(f"graphs.{name}").method is method and method.layout == "graph"
    assert find("AdaGCN").name == "graphs.adagcn"
