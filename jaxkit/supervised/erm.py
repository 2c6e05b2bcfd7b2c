"""Empirical risk minimisation with the cross-entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxkit import check, losses
from jaxkit.learner import Batch, Gradient, Learner, Network, Outputs, from_example_loss, plain


def erm(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    label_smoothing: float | jax.Array = 0.0,
    gradient: Gradient = plain,
) -> Learner:
    """min_theta 1/n sum_i -sum_k q_ik log softmax(f(x_i; theta))_k, with q_ik = (1 - s) [y_i = k] + s / K.

    Args:
      network: its ``logits`` ``[batch, K]``.
      optimizer: an optax transformation.
      label_smoothing: s in [0, 1]; 0 is the negative log-likelihood. May be traced.
      gradient: how the gradient is taken.

    Raises:
      UsageError: label_smoothing outside [0, 1]; no labels, or labels that are not whole numbers.

    Source: Vapnik 1991; label smoothing: Szegedy et al. 2016, section 7.
    """
    check.fraction("label_smoothing", label_smoothing)

    def example_loss(outputs: Outputs, batch: Batch) -> jax.Array:
        if "y" not in batch or not jnp.issubdtype(batch["y"].dtype, jnp.integer):
            got = f"y of dtype {batch['y'].dtype}" if "y" in batch else f"a batch of {', '.join(sorted(batch))}"
            raise check.UsageError(f"erm needs whole-number labels 'y' (0..classes-1, int32), got {got}")
        return losses.cross_entropy(outputs["logits"], batch["y"], smoothing=label_smoothing)

    return from_example_loss(network, example_loss, optimizer, gradient=gradient)
