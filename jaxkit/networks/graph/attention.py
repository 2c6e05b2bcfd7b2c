"""Graph attention: GAT."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import from_flax
from jaxkit.networks.graph.layers import Drop, Layers, NodeClassifier, kernel, take

SLOPE = 0.2  # of LeakyReLU below 0, section 3.3 of the paper


def edge_softmax(
    scores: Float[Array, "edges heads"], receivers: Int[Array, " edges"], num_nodes: int
) -> Float[Array, "edges heads"]:
    """exp(s_e) / sum of exp(s_f) over the edges f into the same node, by column; no overflow for large scores."""
    highest = jax.lax.stop_gradient(jax.ops.segment_max(scores, receivers, num_segments=num_nodes))
    raised = jnp.exp(scores - highest[receivers])
    return raised / jax.ops.segment_sum(raised, receivers, num_segments=num_nodes)[receivers]


class Attention(nn.Module):
    """Heads that average over the neighbours with learned weights, side by side or their mean; bias added.

    Attributes:
      width: of one head.
      heads: their number.
      dropout: on the input and on the attention coefficients.
      mean: whether the heads are averaged.
    """

    width: int
    heads: int
    dropout: float
    mean: bool = False

    @nn.compact
    def __call__(self, nodes: Any, graph: Any, rows: Any, train: bool) -> jax.Array:
        count = nodes.shape[0]
        nodes = Drop(self.dropout)(nodes, train)
        values = nodes @ kernel(self, nodes.shape[-1], self.width, self.heads)
        values = values.reshape(count, self.heads, self.width)
        sent, received = (
            jnp.einsum("nhd,dh->nh", values, kernel(self, self.width, 1, self.heads, name))
            for name in ("sender", "receiver")
        )
        scores = nn.leaky_relu(sent[graph.senders] + received[graph.receivers], SLOPE)
        weights = Drop(self.dropout)(edge_softmax(scores, graph.receivers, count), train)
        gathered = jax.ops.segment_sum(weights[..., None] * values[graph.senders], graph.receivers, num_segments=count)
        gathered = take(gathered, rows)
        out = gathered.mean(1) if self.mean else gathered.reshape(gathered.shape[0], -1)
        return out + self.param("bias", nn.initializers.zeros, (out.shape[-1],), jnp.float32)


def gat(
    num_classes: int,
    hidden: int = 8,
    heads: int = 8,
    depth: int = 2,
    output_heads: int = 1,
    *,
    dropout: float = 0.6,
) -> Network:
    """Graph attention network (Velickovic et al. 2018, eq. 3, 5 and 6): for every head

        c_ij = softmax over the edges j -> i of LeakyReLU_0.2(a_r . W h_i + a_s . W h_j),  out_i = sum_j c_ij W h_j

    and H_{l+1} = elu(concat over heads of out + b), logits = mean over ``output_heads`` of out + b. The entries of
    A-hat play no role, the edges do: nodes need their self loops. Dropout acts on the input of every layer and on c, as
    in the paper (its code also drops entries of W h).

    Sparse products per forward pass: ``depth``, of width ``heads * hidden`` and the last of width ``output_heads *
    num_classes``; beside each, the softmax over E edges for every head.

    Args:
      num_classes: K.
      hidden: width of one head.
      heads: number of heads in a hidden layer.
      depth: number of layers, the last one counted.
      output_heads: number of heads in the last layer (the paper takes 8 on PubMed).
      dropout: probability with which an input or a coefficient is dropped in training.

    Raises:
      UsageError: an option out of range; from ``init`` and ``apply``, x is not ``Nodes(rows, graph)``.
    """
    hidden, heads = check.count("hidden", hidden), check.count("heads", heads)
    depth, output_heads = check.count("depth", depth), check.count("output_heads", output_heads)
    num_classes, dropout = check.count("num_classes", num_classes), float(check.number("dropout", dropout, 0.0, 0.99))
    layers = tuple(Attention(hidden, heads, dropout) for _ in range(depth - 1))
    head = Attention(num_classes, output_heads, dropout, mean=True)
    return from_flax(NodeClassifier(Layers(layers, nn.elu) if layers else None, head), whole=True)
