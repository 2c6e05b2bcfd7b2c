"""What the graph networks share: the propagation A-hat V, dropout of dense and sparse matrices, layers, the frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxkit import check

PARTS = ("nodes", "edges", "senders", "receivers")

_glorot = nn.initializers.glorot_uniform(in_axis=0, out_axis=2, batch_axis=1)


def spread(
    values: Float[Array, "nodes width"], graph: Any, edges: Float[Array, " edges"] | None = None
) -> Float[Array, "nodes width"]:
    """A-hat V: row i is sum over edges e into i of a_e V_{senders_e}.

    Args:
      values: V.
      graph: ``edges`` (the entries a), ``senders`` and ``receivers``.
      edges: entries to take in place of ``graph.edges``.
    """
    entries = graph.edges if edges is None else edges
    sent = entries[:, None] * values[graph.senders]
    return jax.ops.segment_sum(sent, graph.receivers, num_segments=values.shape[0])


def take(values: Array, rows: Int[Array, " rows"] | None) -> Array:
    """The rows asked for; all of them where ``rows`` is None."""
    return values if rows is None else values[rows]


def drop(tree: Any, rate: float, key: jax.Array) -> Any:
    """Dropout on the floats of a tree: each is 0 with probability ``rate``, else divided by 1 - rate.

    Of a sparse matrix the stored values are dropped, which is dropout on the dense one: a zero stays a zero.
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(1, len(leaves)))

    def dropped(leaf: jax.Array, key: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(jax.random.bernoulli(key, 1.0 - rate, leaf.shape), leaf / (1.0 - rate), 0.0)

    return jax.tree.unflatten(structure, [dropped(leaf, key) for leaf, key in zip(leaves, keys)])


class Drop(nn.Module):
    """``drop`` in training; x as it is otherwise, and at rate 0."""

    rate: float

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return drop(x, self.rate, self.make_rng("dropout")) if train and self.rate else x


def kernel(module: nn.Module, inputs: int, width: int, blocks: int = 1, name: str = "kernel") -> jax.Array:
    """The parameter W = [W_1 ... W_b], float32 [inputs, blocks * width]; call it inside a compact method.

    Each block is drawn by itself (uniform; Glorot and Bengio 2010), so that its scale does not depend on their number.
    """

    def init(key: jax.Array) -> jax.Array:
        return _glorot(key, (inputs, blocks, width), jnp.float32).reshape(inputs, blocks * width)

    return module.param(name, init)


class FeatureDense(nn.Module):
    """drop(X) W + b (without b by default) for dense and sparse X [N, F]; a layer that does not look at the graph."""

    width: int
    dropout: float
    bias: bool = False

    @nn.compact
    def __call__(self, nodes: Any, graph: Any, rows: Any, train: bool) -> jax.Array:
        values = Drop(self.dropout)(nodes, train) @ kernel(self, nodes.shape[-1], self.width)
        if self.bias:
            values = values + self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        return take(values, rows)


class Layers(nn.Module):
    """The hidden layers of a network: H_{l+1} = activation(layer_l(H_l, graph)), H_0 = X; all nodes.

    Attributes:
      layers: each called as ``layer(nodes, graph, rows, train)``; ``rows=None`` asks for every node.
      activation: applied to what each of them gives.
    """

    layers: tuple[nn.Module, ...]
    activation: Callable[[jax.Array], jax.Array]

    def __call__(self, graph: Any, train: bool) -> jax.Array:
        hidden = graph.nodes
        for layer in self.layers:
            hidden = self.activation(layer(hidden, graph, None, train))
        return hidden


class NodeClassifier(nn.Module):
    """Hidden layers on every node, and a last layer that propagates and gives the rows asked for.

    Attributes:
      backbone: called as ``backbone(graph, train)``, gives [N, H]; None where the head sees the input.
      head: called as ``head(nodes, graph, rows, train)``, gives [n, K].
    """

    backbone: nn.Module | None
    head: nn.Module

    def __call__(self, x: Any, train: bool = False, valid=None) -> dict[str, jax.Array]:
        rows, graph = nodes_of(x)
        hidden = graph.nodes if self.backbone is None else self.backbone(graph, train)
        logits = self.head(hidden, graph, rows, train)
        return {"logits": logits, "features": logits if self.backbone is None else hidden[rows]}


def nodes_of(x: Any) -> tuple[Any, Any]:
    """The rows and the graph of x = ``Nodes(rows, graph)``; UsageError if x is something else."""
    rows, graph = getattr(x, "rows", None), getattr(x, "graph", None)
    if rows is None or graph is None:
        got = f"an array of shape {tuple(x.shape)}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise check.UsageError(
            f"a graph network takes x = Nodes(rows, graph), got {got}; for plain rows take a network such as 'mlp'"
        )
    lacking = [part for part in PARTS if getattr(graph, part, None) is None]
    if lacking:
        raise check.UsageError(f"x.graph needs {', '.join(PARTS)}; it has no {', '.join(lacking)}")
    if len(graph.nodes.shape) != 2 or jnp.ndim(rows) != 1:
        shapes = f"{tuple(graph.nodes.shape)} and {jnp.shape(rows)}"
        raise check.UsageError(f"x.graph.nodes must be [N, F] and x.rows [n], got the shapes {shapes}")
    lengths = [jnp.shape(getattr(graph, part)) for part in PARTS[1:]]
    if len(lengths[0]) != 1 or len(set(lengths)) != 1:
        raise check.UsageError(f"x.graph's edges, senders and receivers must all be [E], got the shapes {lengths}")
    return rows, graph
