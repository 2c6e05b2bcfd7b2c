"""The plan of hops, its compiled form, and the identities between AdaGCN and its ablations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import fit
from jaxkit.check import UsageError
from jaxkit.graphs import (
    HopRows,
    Nodes,
    adagcn,
    boosting_of,
    build,
    effective_sample_size,
    ensemble,
    hops,
    node_data,
    node_mlp,
    run,
    samme_r_scores,
)
from jaxkit.networks import mlp
from tests.graphs import toy

LAYERS, EPOCHS = 3, 12
KEY = jax.random.key(4)


def network():
    return mlp(toy.CLASSES, hidden=(8,), bias=False)


def train(data=None, steps=LAYERS * EPOCHS, layers=LAYERS, **settings):
    """(the last stage's learner, the fit) of the plan."""
    plan = adagcn(network(), optax.adam(0.05), layers=layers, **settings)
    fitted = fit(plan, data or toy.data(), key=KEY, steps=steps, progress=False)
    return plan[-1].learner, fitted


def predict(learner, state, rows, graph=None):
    nodes = Nodes(jnp.asarray(rows), graph or toy.graph())
    return jax.jit(learner.predict)(state, {"x": nodes})["logits"]


@functools.lru_cache
def standard():
    """The plan with its defaults, trained once."""
    return train()


@functools.lru_cache
def compiled(first=0, **settings):
    train_rows, stopping, test = toy.split()
    y, signal = toy.arrays()["y"], hops(toy.graph(), LAYERS + first)[first:]
    rows = HopRows(signal[:, train_rows], jnp.asarray(y[train_rows]), signal[:, stopping], jnp.asarray(y[stopping]),
                   signal[:, test])  # fmt: skip
    rules = boosting_of(network(), optax.adam(0.05), **settings)
    return jax.jit(functools.partial(run, rules, epochs=EPOCHS))(rows, KEY)


VARIANTS = (
    {},
    {"weighting": "official", "restore": "none"},
    {"weighting": "shuffled", "restore": "run", "patience": 2},
    {"weighting": "inverted", "warm_start": False, "output_relu": True, "dropout": 0.3},
)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_compiled_run_is_the_plan(settings):
    learner, fitted = train(**settings) if settings else standard()
    out = compiled(**settings)
    np.testing.assert_allclose(
        predict(learner, fitted.state, toy.split()[2]), ensemble(out.logits)[-1], rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(fitted.history.metrics["loss"], out.loss.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.state.scores, out.accuracy, atol=1e-6)
    y = toy.arrays()["y"][toy.split()[1]]
    np.testing.assert_allclose(out.accuracy, (out.stopping_logits.argmax(-1) == y).mean(-1), atol=1e-6)
    chex.assert_trees_all_close(fitted.state.params, out.params, rtol=1e-3, atol=1e-4)


def test_one_hop_is_the_mlp():
    learner, fitted = train(layers=1, steps=EPOCHS)
    (stage,) = node_mlp(network(), optax.adam(0.05), l2=5e-3, weight_decay=1e-4)
    alone = fit((stage,), toy.data(), key=KEY, steps=EPOCHS, progress=False)
    rows = np.arange(toy.NODES)
    one, two = predict(learner, fitted.state, rows), predict(stage.learner, alone.state, rows)
    np.testing.assert_allclose(one, samme_r_scores(jax.nn.log_softmax(two)), atol=1e-5)
    np.testing.assert_allclose(fitted.history.metrics["loss"], alone.history.metrics["loss"], rtol=1e-6)


def test_the_weights_follow_the_update_hop_by_hop():
    out = compiled()
    y = toy.arrays()["y"][toy.split()[0]]
    np.testing.assert_allclose(out.weights[0], 1 / len(y))
    for hop in range(1, LAYERS):  # independently, in float64, from the hop's own parameters
        params = jax.tree.map(lambda leaf: np.asarray(leaf[hop - 1], np.float64), out.params)
        rows = hops(toy.graph(), LAYERS)[hop - 1, toy.split()[0]].astype(np.float64)
        hidden = np.maximum(rows @ params["backbone"]["dense_0"]["kernel"], 0)
        logits = hidden @ params["head"]["kernel"]
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        coded = np.where(np.arange(toy.CLASSES) == y[:, None], 1.0, -1 / (toy.CLASSES - 1))
        raised = out.weights[hop - 1] * np.exp(-(toy.CLASSES - 1) / toy.CLASSES * (coded * log_p).sum(1))
        np.testing.assert_allclose(out.weights[hop], raised / raised.sum(), rtol=1e-4)
    assert effective_sample_size(out.weights[-1]) < len(y)


def test_prediction_is_the_sum_of_zero_sum_scores():
    out = compiled()
    np.testing.assert_allclose(out.logits.sum(-1), 0, atol=1e-4)
    np.testing.assert_allclose(ensemble(out.logits)[-1], np.asarray(out.logits).sum(0), rtol=1e-5, atol=1e-5)


def test_uniform_weights_stay():
    np.testing.assert_allclose(compiled(first=1, weighting="uniform").weights, 1 / 24, rtol=1e-6)


def test_the_best_hop_is_the_one_with_the_best_stopping_accuracy():
    """Without hop 0, which the sum may leave out as well."""
    learner, fitted = train(weighting="uniform", combine="best", include_layer0=False)
    out = compiled(first=1, weighting="uniform")
    best = int(np.argmax(out.accuracy))
    np.testing.assert_allclose(predict(learner, fitted.state, toy.split()[2]), out.logits[best], rtol=1e-4, atol=1e-3)


def test_propagation_helps_on_a_graph_made_for_it():
    """Features are noisy and neighbours alike: the sum over hops must beat the features alone."""
    y, test = toy.arrays()["y"], toy.split()[2]
    out = compiled()
    alone, together = (
        (np.asarray(logits).argmax(-1) == y[test]).mean() for logits in (out.logits[0], out.logits.sum(0))
    )
    assert together >= alone and together > 0.6  # by chance, 15 of 24 of three classes: p < 0.01


def test_renumbering_the_nodes_renumbers_the_predictions():
    order = np.random.default_rng(1).permutation(toy.NODES)
    place = np.argsort(order)
    x = toy.arrays()["x"]
    moved = build({**x, "nodes": x["nodes"][order], "senders": place[x["senders"]], "receivers": place[x["receivers"]]})
    train_rows, stopping, _ = toy.split()
    data = node_data(moved, toy.arrays()["y"][order], place[train_rows], place[stopping])
    learner, fitted = standard()
    other, again = train(data)
    rows = np.arange(toy.NODES)
    np.testing.assert_allclose(
        predict(other, again.state, place[rows], moved), predict(learner, fitted.state, rows), atol=1e-3
    )


def test_a_hop_restores_its_best_state():
    """With the best state kept, no hop is worse on the stopping nodes than with its last one, from the same start."""
    best, last = compiled(weighting="official"), compiled(weighting="official", restore="none")
    assert best.accuracy[0] >= (last.stopping_logits[0].argmax(-1) == toy.arrays()["y"][toy.split()[1]]).mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adagcn(network(), optax.sgd(1), weighting="sammer"), "unknown weighting 'sammer'; did you mean"),
        (lambda: adagcn(network(), optax.sgd(1), layers=0), "layers must be at least 1"),
        (lambda: adagcn(network(), optax.sgd(1), combine="mean"), "unknown combine 'mean'"),
        (lambda: adagcn(network(), optax.sgd(1), restore="last"), "unknown restore"),
        (lambda: adagcn(network(), optax.sgd(1), dropout=1.0), "dropout must lie in"),
        (lambda: adagcn(network(), optax.sgd(1), l2=-1.0), "l2 must lie in"),
        (lambda: adagcn(network(), optax.sgd(1), patience=0), "patience must be at least 1"),
        (lambda: train(l2_on="conv"), "l2_on='conv' matches no parameter; they are backbone/dense_0/kernel"),
        (
            lambda: train(node_data(toy.graph(), toy.arrays()["y"], np.arange(24))),
            "the plan needs stopping nodes",
        ),
    ],
)
def test_bad_settings_are_said_in_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
