"""Networks on rows of features that were propagated once: an MLP on X, SGC, and logistic regression on several hops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import optax

from jaxkit import check
from jaxkit.data import full_batch
from jaxkit.graphs.objective import first_layer_penalty, node_learner
from jaxkit.graphs.stopping import keep_best
from jaxkit.graphs.structure import dense_nodes, propagate
from jaxkit.learner import Batch, Data, Key, Learner, Metrics, Network, Outputs, Plan, Stage, State


class FeatureState(NamedTuple):
    """The state of a learner on precomputed features.

    Attributes:
      inner: of the learner of rows.
      signal: the features of all nodes, [N, D].
      stopping: those of the stopping nodes, [s, D].
    """

    inner: State
    signal: jax.Array
    stopping: jax.Array


def on_features(learner: Learner, features: Callable[[jraph.GraphsTuple], jax.Array]) -> Plan:
    """The plan of one stage that computes ``features(graph) [N, D]`` once, in ``begin``, and trains on their rows.

    Args:
      learner: of rows [n, D], with ``stopping`` ``{"x", "y"}`` in its batches.
      features: pure; computed again by ``predict`` for the graph of its batch.
    """

    def rows_of(batch: Batch, signal: jax.Array, stopping: jax.Array) -> Batch:
        held = {"stopping": {"x": stopping, "y": batch["stopping"]["y"]}} if "stopping" in batch else {}
        return {**batch, "x": signal[batch["x"].rows], **held}

    def init(key: Key, batch: Batch) -> FeatureState:
        if "stopping" not in batch:
            raise check.UsageError("the plan needs stopping nodes: node_data(graph, y, rows, stopping)")
        shape = jax.eval_shape(features, batch["x"].graph)
        signal = jnp.zeros(shape.shape, shape.dtype)
        stopping = jnp.zeros((len(batch["stopping"]["rows"]), *shape.shape[1:]), shape.dtype)
        return FeatureState(learner.init(key, rows_of(batch, signal, stopping)), signal, stopping)

    def begin(state: FeatureState | None, data: Data, key: Key) -> FeatureState:
        signal = features(data["x"].graph)
        return init(key, data)._replace(signal=signal, stopping=signal[data["stopping"]["rows"]])

    def update(state: FeatureState, batch: Batch, key: Key) -> tuple[FeatureState, Metrics]:
        inner, metrics = learner.update(state.inner, rows_of(batch, state.signal, state.stopping), key)
        return state._replace(inner=inner), metrics

    def predict(state: FeatureState, batch: Batch) -> Outputs:
        nodes = batch["x"]
        return learner.predict(state.inner, {**batch, "x": features(nodes.graph)[nodes.rows]})

    return (Stage("train", Learner(init, update, predict), full_batch(whole=True), begin=begin),)


def _hop(graph: jraph.GraphsTuple, count: int) -> jax.Array:
    signal = dense_nodes(graph)
    for _ in range(count):
        signal = propagate(graph, signal)
    return signal


def _joined(graph: jraph.GraphsTuple, count: int) -> jax.Array:
    signals = [dense_nodes(graph)]
    for _ in range(count):
        signals.append(propagate(graph, signals[-1]))
    return jnp.concatenate(signals, axis=1)


def _plan(
    features: Callable,
    network: Network,
    optimizer: optax.GradientTransformation,
    l2: Any,
    weight_decay: Any,
    dropout: float,
    patience: int | None,
) -> Plan:
    learner = node_learner(network, optimizer, l2=l2, weight_decay=weight_decay, dropout=dropout)
    held_out = lambda batch: batch["stopping"]
    return on_features(keep_best(learner, held_out, patience=patience, penalty=first_layer_penalty(l2)), features)


def node_mlp(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    l2: Any = 5e-3,
    weight_decay: Any = 0.0,
    dropout: float = 0.0,
    patience: int | None = None,
) -> Plan:
    """f(X): a network on the features alone, the graph unused; the zeroth hop of AdaGCN.

    Args:
      network: on rows of features [n, F].
      optimizer: an optax transformation.
      l2: factor of 1/2 ||W_0||^2. May be traced.
      weight_decay: factor of 1/2 ||theta||^2. May be traced.
      dropout: of the features.
      patience: see ``keep_best``.
    """
    return _plan(dense_nodes, network, optimizer, l2, weight_decay, dropout, patience)


def sgc(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    hops: int = 2,
    l2: Any = 0.0,
    weight_decay: Any = 5e-5,
    dropout: float = 0.0,
    patience: int | None = None,
) -> Plan:
    """f(A-hat^K X): simple graph convolution, K = ``hops``.

    Args:
      network: linear on rows of features (``mlp(classes, hidden=())``); SGC with another is a network on one hop.
      optimizer: an optax transformation.
      hops: K >= 0.
      l2: factor of 1/2 ||W_0||^2. May be traced.
      weight_decay: factor of 1/2 ||theta||^2, tuned between 1e-10 and 1e-4 in the paper. May be traced.
      dropout: of the features.
      patience: see ``keep_best``.

    Source: Wu et al. 2019, Simplifying graph convolutional networks, eq. 8.
    """
    features = functools.partial(_hop, count=check.count("hops", hops, 0))
    return _plan(features, network, optimizer, l2, weight_decay, dropout, patience)


def hop_regression(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    hops: int = 2,
    l2: Any = 0.0,
    weight_decay: Any = 5e-5,
    dropout: float = 0.0,
    patience: int | None = None,
) -> Plan:
    """f([X, A-hat X, ..., A-hat^K X]): multinomial logistic regression on hops 0..K side by side, K = ``hops``.

    Args:
      network: linear on rows of (K + 1) F features (``mlp(classes, hidden=())``).
      optimizer: an optax transformation.
      hops: K >= 0.
      l2: factor of 1/2 ||W_0||^2. May be traced.
      weight_decay: factor of 1/2 ||theta||^2. May be traced.
      dropout: of the features.
      patience: see ``keep_best``.

    Source: Frasca et al. 2020, SIGN, eq. 3, with linear layers.
    """
    features = functools.partial(_joined, count=check.count("hops", hops, 0))
    return _plan(features, network, optimizer, l2, weight_decay, dropout, patience)
