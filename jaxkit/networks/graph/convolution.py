"""Graph convolutions: GCN, and MixHop, which mixes powers of A-hat in one layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import from_flax
from jaxkit.networks.graph.layers import Drop, Layers, NodeClassifier, kernel, spread, take


class GraphConvolution(nn.Module):
    """A-hat (drop(H) W), without bias."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, nodes: Any, graph: Any, rows: Any, train: bool) -> jax.Array:
        nodes = Drop(self.dropout)(nodes, train)
        return take(spread(nodes @ kernel(self, nodes.shape[-1], self.width), graph), rows)


class MixedPowers(nn.Module):
    """The values A-hat^j (drop(H) W_j) for j in ``powers``, side by side, or their sum with the weights softmax(q).

    The sum takes max(powers) products: A-hat (A-hat V_2 + V_1) + V_0.
    """

    width: int
    powers: tuple[int, ...]
    dropout: float
    summed: bool = False

    @nn.compact
    def __call__(self, nodes: Any, graph: Any, rows: Any, train: bool) -> jax.Array:
        nodes, count = Drop(self.dropout)(nodes, train), len(self.powers)
        values = nodes @ kernel(self, nodes.shape[-1], self.width, blocks=count)
        blocks = dict(zip(self.powers, jnp.split(values, count, axis=1)))
        if self.summed:
            mixed = jax.nn.softmax(self.param("q", nn.initializers.zeros, (count,), jnp.float32))
            total = jnp.zeros_like(blocks[self.powers[0]])
            for power in reversed(range(max(self.powers) + 1)):
                if power in blocks:
                    total = total + mixed[self.powers.index(power)] * blocks[power]
                total = spread(total, graph) if power else total
            return take(total, rows)
        for power in self.powers:
            for _ in range(power):
                blocks[power] = spread(blocks[power], graph)
        return take(jnp.concatenate([blocks[power] for power in self.powers], axis=1), rows)


def gcn(num_classes: int, hidden: int = 64, depth: int = 2, *, dropout: float = 0.5) -> Network:
    """Graph convolutional network: H_0 = X, H_{l+1} = relu(A-hat H_l W_l), logits = A-hat H_{L-1} W_{L-1} (Kipf and
    Welling 2017, eq. 9).

    Dropout acts on the input of every layer. There are no biases, as in the authors' code. ``hidden`` is that of the
    comparison in Gasteiger et al. (2019); the paper's own is 16. ``depth=1`` is A-hat X W.

    Sparse products per forward pass: ``depth``, of width ``hidden`` and the last of width ``num_classes``.

    Args:
      num_classes: K.
      hidden: width of the hidden layers.
      depth: number of layers L, the last one counted.
      dropout: probability with which an input of a layer is dropped in training.

    Raises:
      UsageError: an option out of range; from ``init`` and ``apply``, x is not ``Nodes(rows, graph)``.
    """
    hidden, depth = check.count("hidden", hidden), check.count("depth", depth)
    dropout = float(check.number("dropout", dropout, 0.0, 0.99))
    head = GraphConvolution(check.count("num_classes", num_classes), dropout)
    layers = tuple(GraphConvolution(hidden, dropout) for _ in range(depth - 1))
    return from_flax(NodeClassifier(Layers(layers, nn.relu) if layers else None, head), whole=True)


def mixhop(
    num_classes: int,
    hidden: int = 64,
    powers: tuple[int, ...] = (0, 1, 2),
    depth: int = 2,
    *,
    dropout: float = 0.5,
) -> Network:
    """MixHop: H_0 = X, H_{l+1} = relu(concat over j in ``powers`` of A-hat^j H_l W_{l,j}), and
    logits = sum_j softmax(q)_j A-hat^j H_{L-1} W_j with learned q, at first 0 (Abu-El-Haija et al. 2019).

    Every power has the same width; the paper also learns the widths, and its code normalises the features and every
    layer (batch normalisation), which is not done here. Dropout acts on the input of every layer; no biases.

    Sparse products per forward pass: ``sum(powers)`` of width ``hidden`` for each of the ``depth - 1`` hidden layers,
    and ``max(powers)`` of width ``num_classes``.

    Args:
      num_classes: K.
      hidden: width for each power, so that H is [N, len(powers) * hidden].
      powers: the powers of A-hat, different whole numbers from 0 on.
      depth: number of layers L, the last one counted.
      dropout: probability with which an input of a layer is dropped in training.

    Raises:
      UsageError: an option out of range; from ``init`` and ``apply``, x is not ``Nodes(rows, graph)``.
    """
    hidden, depth = check.count("hidden", hidden), check.count("depth", depth)
    num_classes = check.count("num_classes", num_classes)
    powers = check.counts("powers", powers, 0)
    if not powers or len(set(powers)) < len(powers):
        raise check.UsageError(f"powers must be different whole numbers such as (0, 1, 2), got {powers}")
    dropout = float(check.number("dropout", dropout, 0.0, 0.99))
    layers = tuple(MixedPowers(hidden, powers, dropout) for _ in range(depth - 1))
    head = MixedPowers(num_classes, powers, dropout, summed=True)
    return from_flax(NodeClassifier(Layers(layers, nn.relu) if layers else None, head), whole=True)
