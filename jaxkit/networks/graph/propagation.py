"""Predict, then propagate: APPNP and PPNP, in which personalised PageRank spreads the predictions of a perceptron."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import from_flax
from jaxkit.networks.graph.layers import Drop, FeatureDense, Layers, NodeClassifier, drop, kernel, spread, take


class PowerIteration(nn.Module):
    """Z_hops of Z_0 = Y = drop(H) W, Z_{k+1} = (1 - alpha) A-hat Z_k + alpha Y.

    Entries of A-hat are dropped anew in every step.
    """

    width: int
    dropout: float
    alpha: float
    hops: int

    @nn.compact
    def __call__(self, nodes: Any, graph: Any, rows: Any, train: bool) -> jax.Array:
        start = Drop(self.dropout)(nodes, train) @ kernel(self, nodes.shape[-1], self.width)
        keys = jax.random.split(self.make_rng("dropout"), self.hops) if train and self.dropout else None

        def step(values: jax.Array, key: jax.Array | None) -> tuple[jax.Array, None]:
            edges = graph.edges if key is None else drop(graph.edges, self.dropout, key)
            return (1.0 - self.alpha) * spread(values, graph, edges) + self.alpha * start, None

        return take(jax.lax.scan(step, start, keys, length=self.hops)[0], rows)


class ExactPageRank(nn.Module):
    """Pi Y with Y = drop(H) W and the matrix Pi in ``graph.globals``, whose entries are dropped."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, nodes: Any, graph: Any, rows: Any, train: bool) -> jax.Array:
        count, matrix = nodes.shape[0], getattr(graph, "globals", None)
        if matrix is None or jnp.shape(matrix) != (count, count):
            got = "nothing" if matrix is None else f"the shape {jnp.shape(matrix)}"
            raise check.UsageError(
                f"ppnp needs its matrix [{count}, {count}] in x.graph.globals, got {got}; jaxkit.graphs' with_pagerank "
                "puts it there, and appnp needs none"
            )
        start = Drop(self.dropout)(nodes, train) @ kernel(self, nodes.shape[-1], self.width)
        return Drop(self.dropout)(take(matrix, rows), train) @ start


def appnp(
    num_classes: int,
    hidden: int = 64,
    *,
    dropout: float = 0.5,
    alpha: float = 0.1,
    hops: int = 10,
) -> Network:
    """Approximate personalised propagation of neural predictions: Y = relu(X W_0) W_1, Z_0 = Y,
    Z_{k+1} = (1 - alpha) A-hat Z_k + alpha Y, logits = Z_hops (Gasteiger et al. 2019).

    As in the authors' code there are no biases, and dropout acts on X, on the hidden units and, drawn anew in every
    step, on the entries of A-hat. The paper takes alpha = 0.2 on MS-Academic. ``features`` are the hidden units.

    Sparse products per forward pass: ``hops``, of width ``num_classes``.

    Args:
      num_classes: K.
      hidden: width of the hidden layer.
      dropout: probability of all three kinds of dropout.
      alpha: probability of a restart, in [0, 1]; 1 is the perceptron alone.
      hops: number of power iterations; 0 is the perceptron alone.

    Raises:
      UsageError: an option out of range; from ``init`` and ``apply``, x is not ``Nodes(rows, graph)``.
    """
    alpha, hops = float(check.fraction("alpha", alpha)), check.count("hops", hops, 0)
    num_classes, dropout = check.count("num_classes", num_classes), float(check.number("dropout", dropout, 0.0, 0.99))
    return _predict_then(PowerIteration(num_classes, dropout, alpha, hops), hidden, dropout)


def ppnp(num_classes: int, hidden: int = 64, *, dropout: float = 0.5) -> Network:
    """Personalised propagation of neural predictions: logits = Pi relu(X W_0) W_1 with
    Pi = alpha (I - (1 - alpha) A-hat)^{-1}, the limit of APPNP (Gasteiger et al. 2019, eq. 3).

    Pi [N, N] comes with the input, as ``x.graph.globals``; alpha is whatever it was made with. As in the authors' code
    there are no biases, and dropout acts on X, on the hidden units and on Pi. ``features`` are the hidden units.

    Sparse products per forward pass: none; a dense one, [n, N] by [N, num_classes].

    Args:
      num_classes: K.
      hidden: width of the hidden layer.
      dropout: probability of all three kinds of dropout.

    Raises:
      UsageError: an option out of range; from ``init`` and ``apply``, x is not ``Nodes(rows, graph)`` or has no Pi.
    """
    num_classes, dropout = check.count("num_classes", num_classes), float(check.number("dropout", dropout, 0.0, 0.99))
    return _predict_then(ExactPageRank(num_classes, dropout), hidden, dropout)


def _predict_then(head: nn.Module, hidden: int, dropout: float) -> Network:
    perceptron = Layers((FeatureDense(check.count("hidden", hidden), dropout),), nn.relu)
    return from_flax(NodeClassifier(perceptron, head), whole=True)
