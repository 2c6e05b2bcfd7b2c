"""Networks against oversmoothing, made to be deep: JK-Net and GCNII."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import Classifier, from_flax
from jaxkit.networks.graph.convolution import GraphConvolution
from jaxkit.networks.graph.layers import Drop, FeatureDense, drop, nodes_of, spread
from jaxkit.networks.heads import make_head

JUMPS = ("concat", "max")

_per_layer = nn.initializers.glorot_uniform(batch_axis=0)


class JumpingKnowledge(nn.Module):
    """The features concat(H_1, ..., H_L) or their elementwise maximum, H_l = relu(A-hat drop(H_{l-1}) W_l), rows asked
    for."""

    layers: tuple[nn.Module, ...]
    jump: str
    dropout: float

    @nn.compact
    def __call__(self, x: Any, train: bool, valid=None) -> jax.Array:
        rows, graph = nodes_of(x)
        hidden, seen = graph.nodes, []
        for layer in self.layers:
            hidden = nn.relu(layer(hidden, graph, None, train))
            seen.append(hidden[rows])
        features = jnp.concatenate(seen, axis=1) if self.jump == "concat" else jnp.stack(seen).max(0)
        return Drop(self.dropout)(features, train)


class InitialResidual(nn.Module):
    """The layers of GCNII after H_0 = relu(drop(X) W + b), as one scan: compilation does not grow with depth."""

    layers: tuple[nn.Module, ...]
    depth: int
    alpha: float
    theta: float
    dropout: float

    @nn.compact
    def __call__(self, x: Any, train: bool, valid=None) -> jax.Array:
        rows, graph = nodes_of(x)
        (dense,) = self.layers
        first = nn.relu(dense(graph.nodes, graph, None, train))
        width = first.shape[1]
        kernels = self.param("kernels", _per_layer, (self.depth, width, width), jnp.float32)
        betas = np.log1p(self.theta / np.arange(1, self.depth + 1)).astype(np.float32)
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if train and self.dropout else None

        def layer(hidden: jax.Array, per_layer: Any) -> tuple[jax.Array, None]:
            weights, beta, key = per_layer
            hidden = hidden if key is None else drop(hidden, self.dropout, key)
            mixed = (1.0 - self.alpha) * spread(hidden, graph) + self.alpha * first
            return nn.relu((1.0 - beta) * mixed + beta * (mixed @ weights)), None

        hidden = jax.lax.scan(layer, first, (kernels, betas, keys))[0]
        return Drop(self.dropout)(hidden[rows], train)


def jknet(num_classes: int, hidden: int = 64, depth: int = 6, jump: str = "concat", *, dropout: float = 0.5) -> Network:
    """Jumping knowledge network: H_l = relu(A-hat H_{l-1} W_l) for l = 1..depth, logits = jump(H_1, ..., H_depth) W + b
    with the concatenation or the elementwise maximum (Xu et al. 2018).

    Dropout acts on the input of every layer, the last one included. The layers have no biases, as in ``gcn``.

    Sparse products per forward pass: ``depth``, of width ``hidden``.

    Args:
      num_classes: K.
      hidden: width of the layers.
      depth: number of graph convolutions.
      jump: ``concat`` or ``max``.
      dropout: probability with which an input of a layer is dropped in training.

    Raises:
      UsageError: an option out of range; from ``init`` and ``apply``, x is not ``Nodes(rows, graph)``.
    """
    hidden, depth = check.count("hidden", hidden), check.count("depth", depth)
    jump, dropout = check.choose("jump", jump, JUMPS), float(check.number("dropout", dropout, 0.0, 0.99))
    layers = tuple(GraphConvolution(hidden, dropout) for _ in range(depth))
    return from_flax(Classifier(JumpingKnowledge(layers, jump, dropout), make_head("linear", num_classes)), whole=True)


def gcnii(
    num_classes: int,
    hidden: int = 64,
    depth: int = 16,
    *,
    alpha: float = 0.1,
    theta: float = 0.5,
    dropout: float = 0.6,
) -> Network:
    """GCN with initial residual and identity mapping: H_0 = relu(X W + b), for l = 1..depth

        H_l = relu(((1 - alpha) A-hat H_{l-1} + alpha H_0) ((1 - beta_l) I + beta_l W_l)),  beta_l = log(theta / l + 1),

    logits = H_depth W' + b' (Chen et al. 2020). Dropout acts on the input of every layer, but not on H_0 where it
    returns. The kernels W_l are one parameter, ``backbone/kernels`` [depth, hidden, hidden]; in the paper they have a
    weight decay of their own. The paper tunes depth, width, theta and dropout for each data set.

    Sparse products per forward pass: ``depth``, of width ``hidden``.

    Args:
      num_classes: K.
      hidden: width of the layers.
      depth: number of graph convolutions.
      alpha: share of H_0, in [0, 1].
      theta: lambda of the paper, above 0; from l = theta / (e - 1) on, beta_l is at most 1.
      dropout: probability with which an input of a layer is dropped in training.

    Raises:
      UsageError: an option out of range; from ``init`` and ``apply``, x is not ``Nodes(rows, graph)``.
    """
    hidden, depth = check.count("hidden", hidden), check.count("depth", depth)
    alpha, theta = float(check.fraction("alpha", alpha)), float(check.positive("theta", theta))
    dropout = float(check.number("dropout", dropout, 0.0, 0.99))
    backbone = InitialResidual((FeatureDense(hidden, dropout, bias=True),), depth, alpha, theta, dropout)
    return from_flax(Classifier(backbone, make_head("linear", num_classes)), whole=True)
