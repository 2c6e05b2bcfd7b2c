"""SAMME.R: scores and sample weights of multi-class boosting with class probabilities, and what it is compared with.

Source: Zhu, Zou, Rosset and Hastie 2009, Multi-class AdaBoost, Algorithm 4; AdaGCN (Sun, Zhu and Lin 2021) applies it
to one network per hop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

WEIGHTINGS = ("samme_r", "uniform", "official", "inverted", "shuffled")
"""How sample weights follow from the last hop:

* ``samme_r``: w_i exp(-h_{y_i}(x_i) / (K - 1)), the algorithm of the paper
* ``uniform``: w stays 1 / n, so that the sum over hops is a plain ensemble
* ``official``: what the released code computes: w_i exp(-(K - 2) / (K - 1) nll_i), which lowers the weight of badly
  classified nodes, and at every epoch the weights are dealt to the nodes anew at random
* ``inverted``: the update of ``official`` with each weight left at its node
* ``shuffled``: the update of ``samme_r``, dealt anew at random at every epoch
"""

SHUFFLED = ("official", "shuffled")
"""The weightings that deal their weights anew at every epoch."""

LOWEST = float(np.log(np.finfo(np.float64).eps))
"""log p is clipped here from below, as scikit-learn's SAMME.R did, so that p = 0 leaves h finite."""


def log_probabilities(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """log softmax, clipped from below at log eps of float64 (-36.04)."""
    return jnp.maximum(jax.nn.log_softmax(logits), LOWEST)


def samme_r_scores(log_p: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """h_k = (K - 1) (log p_k - 1/K sum_k' log p_k'); sums to 0 over the classes. (Zhu et al. 2009, Algorithm 4, 2c.)"""
    return (log_p.shape[-1] - 1) * (log_p - log_p.mean(-1, keepdims=True))


def _picked(values: Array, labels: Array) -> Array:
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def samme_r_weights(
    weights: Float[Array, " rows"], log_p: Float[Array, "rows classes"], labels: Int[Array, " rows"]
) -> Float[Array, " rows"]:
    """w_i <- w_i exp(-(K - 1) / K y_i . log p(x_i)), normalised to sum 1; y_i is 1 at the label, -1/(K-1) elsewhere.

    Computed in the equal form w_i exp(-h_{y_i}(x_i) / (K - 1)). (Zhu et al. 2009, Algorithm 4, 2d.)
    """
    return _normalised(weights, -_picked(samme_r_scores(log_p), labels) / (log_p.shape[-1] - 1))


def inverted_weights(
    weights: Float[Array, " rows"], log_p: Float[Array, "rows classes"], labels: Int[Array, " rows"]
) -> Float[Array, " rows"]:
    """w_i <- w_i exp(-(K - 2) / (K - 1) nll_i), normalised, nll = -log p_y: the update of the released code.

    Its sign is the reverse of boosting's; for two classes nothing changes.
    """
    classes = log_p.shape[-1]
    return _normalised(weights, (classes - 2) / (classes - 1) * _picked(log_p, labels))


def _normalised(weights: Array, log_factor: Array) -> Array:
    raised = weights * jnp.exp(log_factor - log_factor.max())  # the largest factor is 1: no overflow, same quotients
    return raised / raised.sum()


def next_weights(
    weighting: str,
    weights: Float[Array, " rows"],
    log_p: Float[Array, "rows classes"],
    labels: Int[Array, " rows"],
) -> Float[Array, " rows"]:
    """The weights for the next hop under one of ``WEIGHTINGS``."""
    if weighting == "uniform":
        return weights
    update = inverted_weights if weighting in ("official", "inverted") else samme_r_weights
    return update(weights, log_p, labels)


def effective_sample_size(weights: Float[Array, " rows"]) -> Float[Array, ""]:
    """(sum_i w_i)^2 / sum_i w_i^2: n for equal weights, 1 where one node has all."""
    return weights.sum() ** 2 / (weights**2).sum()
