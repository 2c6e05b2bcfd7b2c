"""Losses for training data with few rows in many classes, one value per row.

Every loss is ``name(logits, labels, class_counts, *, ...)``: logits z [..., C], labels y [...], training rows n_c of
each class [C]; pi = n / sum n is the prior and CE(z) = -log softmax(z)_y. Numbers may be traced, and so may
``class_counts``. Concrete labels outside 0..C-1 are a UsageError, traced ones give NaN.

Default values are those of the official code where there is one; each docstring says whose.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.learner import Key
from jaxkit.long_tailed.counts import (
    Counts,
    Labels,
    Logits,
    Scalar,
    check_counts,
    check_labels,
    concrete,
    log_prior,
)
from jaxkit.losses import balanced_cross_entropy, cross_entropy

Rows = Float[Array, "*batch"]
ClassWeights = Float[Array, " classes"]

WEIGHTINGS = ("released", "paper")

# The logit of what is masked. Its softmax is 0, and so is 0 times its gradient; with -inf that would be NaN.
_AWAY = -1e30


def as_logits(values: Any) -> Any:
    """Arrays as they are, lists of numbers as a float32 array.

    Raises:
      UsageError: text, or rows of unequal length.
    """
    if hasattr(values, "shape"):
        return values
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise check.UsageError("logits must be numbers [..., classes], got text or rows of unequal length") from None


def as_labels(values: Any) -> Any:
    """Arrays as they are, lists as an array.

    Raises:
      UsageError: lists of unequal length.
    """
    if hasattr(values, "shape"):
        return values
    try:
        return np.asarray(values)
    except ValueError:
        raise check.UsageError("labels must be whole numbers [...], got lists of unequal length") from None


def _check(logits: Any, labels: Any, class_counts: Counts | None) -> tuple[Any, Any]:
    logits, labels = as_logits(logits), as_labels(labels)
    classes = logits.shape[-1] if logits.ndim else 0
    if classes == 0 or logits.shape[:-1] != labels.shape:
        raise check.UsageError(
            f"logits {list(logits.shape)} must be labels {list(labels.shape)} and an axis of classes at the end"
        )
    check_labels(labels, classes)
    if class_counts is not None:
        check_counts(class_counts, classes, empty=True)
    return logits, labels


def softmax(logits: Logits, labels: Labels, class_counts: Counts | None = None) -> Rows:
    """CE(z), the loss that knows nothing of class counts; it takes them so that all losses are called alike."""
    logits, labels = _check(logits, labels, class_counts)
    return cross_entropy(jnp.asarray(logits), jnp.asarray(labels))


def inverse_weights(class_counts: Counts, *, form: str = "released") -> ClassWeights:
    """Weights of weighted softmax: ``released`` 1 - ln(pi_c / pi_max), ``paper`` 1 / pi_c.

    The text of the survey has 1 / pi; the code that its numbers come from has the logarithm, which is much milder (for
    an imbalance of 100: 5.6 between the largest and the smallest class, not 100).

    Source: Zhang et al. 2023, Deep Long-Tailed Learning: A Survey, section 3.1, and its released code.
    """
    form = check.choose("form", form, WEIGHTINGS)
    counts = check_counts(class_counts)
    return counts.sum() / counts if form == "paper" else 1.0 - jnp.log(counts / counts.max())


def weighted_softmax(logits: Logits, labels: Labels, class_counts: Counts, *, form: str = "released") -> Rows:
    """w_y CE(z) with the weights of ``inverse_weights``."""
    logits, labels = _check(logits, labels, class_counts)
    return inverse_weights(class_counts, form=form)[labels] * softmax(logits, labels)


def focal(
    logits: Logits,
    labels: Labels,
    class_counts: Counts | None = None,
    *,
    gamma: Scalar = 2.0,
    detach: bool = False,
) -> Rows:
    """(1 - p_y)^gamma CE(z), p = softmax(z): rows that are right already count less. gamma = 0 is CE.

    Args:
      logits: z.
      labels: y.
      class_counts: not used.
      gamma: 2 by default (Lin et al.); the survey's released code has 3, that of LDAM 1. At least 0; may be traced.
      detach: no gradient through (1 - p_y)^gamma, as in the survey's released code. Lin et al. have it.

    Source: Lin et al. 2017, Focal loss for dense object detection, eq. 4.
    """
    check.number("gamma", gamma, 0.0)
    entropy = softmax(logits, labels, class_counts)
    wrong = -jnp.expm1(-(jax.lax.stop_gradient(entropy) if detach else entropy))
    # Where 1 - p_y is 0 the power has no slope for gamma < 1, and the row has no loss.
    some = wrong != 0
    return jnp.where(some, jnp.where(some, wrong, 1.0) ** gamma, 0.0) * entropy


def effective_number_weights(class_counts: Counts, *, beta: Scalar = 0.9999) -> ClassWeights:
    """w_c proportional to (1 - beta) / (1 - beta^{n_c}), sum C: one over the effective number of rows.

    beta = 0 weighs all classes alike, beta -> 1 by 1 / n_c.

    Args:
      class_counts: n, at least 1 each.
      beta: in [0, 1); 0.9999 by default as in the code of LDAM and RIDE, 0.9 where the survey's code makes its loss.
        May be traced.

    Source: Cui et al. 2019, Class-balanced loss based on effective number of samples, section 4.
    """
    check.fraction("beta", beta)
    if concrete(beta) and float(beta) == 1:
        raise check.UsageError("beta must be below 1; for weights 1 / n take weighted_softmax with form='paper'")
    counts = check_counts(class_counts, least=1.0)
    # The float64 logarithm where there is one: 0.9999 in float32 has a logarithm of four digits.
    exact = isinstance(beta, (int, float)) and beta > 0
    log_beta = math.log(beta) if exact else jnp.log(beta)
    weights = -1.0 / jnp.expm1(counts * log_beta)
    return weights * len(counts) / weights.sum()


def class_balanced(logits: Logits, labels: Labels, class_counts: Counts, *, beta: Scalar = 0.9999) -> Rows:
    """w_y CE(z) with the weights of ``effective_number_weights``; its product with ``focal`` is CB-focal."""
    logits, labels = _check(logits, labels, class_counts)
    return effective_number_weights(class_counts, beta=beta)[labels] * softmax(logits, labels)


def ldam_margins(class_counts: Counts, *, max_margin: Scalar = 0.5) -> ClassWeights:
    """Delta_c = K / n_c^{1/4}, K such that the smallest class has ``max_margin``."""
    check.number("max_margin", max_margin, 0.0)
    counts = check_counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def ldam(
    logits: Logits,
    labels: Labels,
    class_counts: Counts,
    *,
    max_margin: Scalar = 0.5,
    scale: Scalar = 30.0,
    scale_logits: bool = False,
) -> Rows:
    """CE of z with z_y - s Delta_y in the place of z_y: a margin that is larger for smaller classes.

    Args:
      logits: z. The paper's are cosines times s (``mlp(C, head=heads.cosine(scale=30.0, learn_scale=False))``).
      labels: y.
      class_counts: n.
      max_margin: the largest Delta; 0.5 in the released code of LDAM and RIDE, 0.3 where RSG uses it.
      scale: s, 30 in all of them.
      scale_logits: s (z - Delta_y) in place of z - s Delta_y, for logits that are plain cosines. The code of LDAM and
        RSG multiplies in the loss; that of RIDE, which the survey ran, in the head, so that its loss scales the margin
        alone. With the head that belongs to each the two are one function.

    Source: Cao et al. 2019, Learning imbalanced datasets with label-distribution-aware margin loss, section 3.2.
    """
    check.positive("scale", scale)
    logits, labels = _check(logits, labels, class_counts)
    margins = ldam_margins(class_counts, max_margin=max_margin)[labels]
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    if scale_logits:
        return softmax(scale * (logits - margins[..., None] * own), labels)
    return softmax(logits - scale * margins[..., None] * own, labels)


def equalization(
    logits: Logits,
    labels: Labels,
    class_counts: Counts,
    key: Key,
    *,
    gamma: Scalar = 0.9,
    threshold: Scalar | None = None,
) -> Rows:
    """CE over a random part of the classes: rare ones are mostly not pushed down by the rows of others.

    A class j != y with pi_j <= lambda is left out of the softmax of a row with probability gamma, drawn for each row
    and class. lambda = 0 or gamma = 0 is CE.

    Args:
      logits: z.
      labels: y.
      class_counts: n.
      key: draws what is left out.
      gamma: 0.9 as in the survey's released code. May be traced.
      threshold: lambda; None: 0.43 / C, which for the 1000 classes of ImageNet-LT is the released 4.3e-4. May be
        traced.

    Source: Tan et al. 2020, Equalization loss for long-tailed object recognition, the softmax form.
    """
    check.fraction("gamma", gamma)
    logits, labels = _check(logits, labels, class_counts)
    classes = logits.shape[-1]
    threshold = 0.43 / classes if threshold is None else check.fraction("threshold", threshold)
    rare = jnp.exp(log_prior(class_counts)) <= threshold
    other = ~jax.nn.one_hot(labels, classes, dtype=bool)
    left_out = rare & other & jax.random.bernoulli(key, gamma, logits.shape)
    return softmax(jnp.where(left_out, _AWAY, logits), labels)


def logit_adjusted(logits: Logits, labels: Labels, class_counts: Counts, *, tau: Scalar = 1.0) -> Rows:
    """CE(z + tau log pi); tau = 0 is CE. Trained so, z itself is for a uniform prior.

    Args:
      logits: z.
      labels: y.
      class_counts: n; only their ratios count.
      tau: 1, which is consistent for the balanced error. May be traced.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment, the logit adjusted loss.
    """
    check.number("tau", tau)
    logits, labels = _check(logits, labels, class_counts)
    return softmax(logits + tau * log_prior(class_counts), labels)


def balanced_softmax(logits: Logits, labels: Labels, class_counts: Counts) -> Rows:
    """CE(z + log pi) = -log( n_y e^{z_y} / sum_c n_c e^{z_c} ).

    Source: Ren et al. 2020, Balanced meta-softmax for long-tailed visual recognition, theorem 1.
    """
    logits, labels = _check(logits, labels, class_counts)
    return balanced_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), check_counts(class_counts))


def vector_scaling(
    logits: Logits, labels: Labels, class_counts: Counts, *, gamma: Scalar = 0.3, tau: Scalar = 1.0
) -> Rows:
    """CE(z / D + tau log pi) with D_c = (n_max / n_c)^gamma; gamma = 0 is ``logit_adjusted``.

    Args:
      logits: z.
      labels: y.
      class_counts: n.
      gamma: 0.3 as in the released code. May be traced.
      tau: 1 as in the released code. May be traced.

    Source: Kini et al. 2021, Label-imbalanced and group-sensitive classification under overparameterization.
    """
    check.number("gamma", gamma, 0.0)
    counts = check_counts(class_counts)
    return logit_adjusted(as_logits(logits) * (counts / counts.max()) ** gamma, labels, class_counts, tau=tau)


def seesaw(
    logits: Logits,
    labels: Labels,
    class_counts: Counts,
    *,
    p: Scalar = 0.8,
    q: Scalar = 2.0,
    smallest: Scalar = 1e-2,
) -> Rows:
    """CE of z_j + log S_j, S_y = 1 and for j != y S_j = M_j C_j. p = q = 0 is CE.

    M_j = min(1, n_j / n_y)^p mitigates: a class rarer than the label is pushed down less. C_j = max(1, sigma_j /
    sigma_y)^q compensates where the network takes j for more likely than y, sigma = softmax(z) without gradient.

    Args:
      logits: z.
      labels: y.
      class_counts: n, accumulated in training in the paper (``seesaw`` of ``METHODS``); a class without rows counts 1.
      p: exponent of the mitigation, 0.8 in the paper. May be traced.
      q: exponent of the compensation, 2 in the paper. May be traced.
      smallest: the least sigma_y to divide by, 0.01 in the released code.

    Source: Wang et al. 2021, Seesaw loss for long-tailed instance segmentation.
    """
    check.number("p", p, 0.0), check.number("q", q, 0.0), check.positive("smallest", smallest)
    logits, labels = _check(logits, labels, class_counts)
    log_n = jnp.log(jnp.maximum(check_counts(class_counts, least=1.0, empty=True), 1.0))
    log_p = jax.lax.stop_gradient(jax.nn.log_softmax(jnp.asarray(logits)))
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=log_p.dtype)
    log_p_own = jnp.sum(jnp.where(own > 0, log_p, 0.0), axis=-1, keepdims=True)
    mitigation = p * jnp.minimum(log_n - log_n[labels][..., None], 0.0)
    compensation = q * jnp.maximum(log_p - jnp.maximum(log_p_own, jnp.log(smallest)), 0.0)
    return softmax(logits + (1.0 - own) * (mitigation + compensation), labels)
