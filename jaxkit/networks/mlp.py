"""Multilayer perceptron."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import Classifier, compute_dtype, from_flax
from jaxkit.networks.heads import Head, linear, make_head
from jaxkit.networks.layers import NORMS, normalization


class MLPBackbone(nn.Module):
    """Per layer: dense, normalisation if any, ReLU, dropout if any. The input is flattened. Batch normalisation takes a
    dense layer's bias away again, so there is none before it."""

    hidden: tuple[int, ...]
    norm: str
    dropout: float
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, x, train: bool, valid=None, start: int = 0, stop: int | None = None):
        x = jnp.asarray(x, self.dtype).reshape(x.shape[0], -1)
        bias = self.bias and self.norm != "batch"
        for i, width in list(enumerate(self.hidden))[start:stop]:
            x = nn.Dense(width, bias, dtype=self.dtype, name=f"dense_{i}")(x)
            x = nn.relu(normalization(self.norm, self.dtype, f"norm_{i}", x, train, valid))
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x


def mlp(
    num_classes: int,
    hidden: tuple[int, ...] = (256, 256),
    head: str | Head = "linear",
    *,
    norm: str = "none",
    dropout: float = 0.0,
    bias: bool = True,
    output: str = "logits",
    precision: str = "float32",
) -> Network:
    """f = relu(W_n ... relu(W_1 x)), then the head; x of any shape [batch, ...] is flattened. ``hidden=()`` is the
    linear model.

    Args:
      num_classes: the number of outputs.
      hidden: widths of the hidden layers.
      head: ``linear``, ``cosine``, or a function of the number of classes (``heads.cosine(scale=16.0)``).
      norm: ``none``, ``batch`` or ``layer``, before each ReLU.
      dropout: probability with which a hidden unit is dropped in training.
      bias: biases in the hidden layers (but before batch normalisation, which has its own) and in a ``linear`` head;
        False leaves them out.
      output: ``logits``, or ``mean`` for regression.
      precision: ``float32`` or ``bfloat16`` (of the computation; parameters stay float32).

    Raises:
      UsageError: a width, name or probability out of range.
    """
    hidden = check.counts("hidden", hidden)
    norm = check.choose("norm", norm, NORMS)
    check.number("dropout", dropout, 0.0, 0.99)
    output = check.choose("output", output, ("logits", "mean"))
    backbone = MLPBackbone(hidden, norm, float(dropout), compute_dtype(precision), bool(bias))
    if not bias and isinstance(head, str) and check.fold(head) == "linear":
        head = linear(bias=False)
    return from_flax(Classifier(backbone, make_head(head, num_classes), output), stages=max(len(hidden), 1))
