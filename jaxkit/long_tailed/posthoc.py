"""Corrections of a model already trained: pure functions of its logits, or of its head.

Logits z [..., C] in, logits out; their softmax is the corrected distribution. Nothing is trained; tau and beta are
chosen on validation data (``rescue`` chooses tau).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.long_tailed.counts import Counts, Logits, Scalar, check_counts, check_prior, log_prior
from jaxkit.long_tailed.losses import as_logits


def logit_adjustment(logits: Logits, class_counts: Counts, tau: Scalar = 1.0) -> Float[Array, "*batch classes"]:
    """z - tau log pi: from the prior of the training rows to a uniform one (tau = 1), or on the way there.

    For a model trained with the plain cross-entropy. One whose loss took the prior out already (balanced softmax,
    LADE, logit adjustment) would be adjusted twice, and falls below the plain one.

    Args:
      logits: z.
      class_counts: n, training rows of each class; only their ratios count.
      tau: 0 is the identity. May be traced.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment, post-hoc form.
    """
    check.number("tau", tau)
    logits, _ = _checked(logits, class_counts)
    return logits - tau * log_prior(class_counts)


def uno_ic(
    logits: Logits, class_counts: Counts, *, beta: Scalar, target_prior: Any = None
) -> Float[Array, "*batch classes"]:
    """Logits of p^{1-beta} (p pi_t / pi)^beta, normalised: z + beta (log pi_t - log pi).

    beta = 0 is the identity, beta = 1 the shift of the prior by Bayes' rule; with a uniform target it is
    ``logit_adjustment`` with tau = beta, up to a constant.

    Args:
      logits: z, p = softmax(z).
      class_counts: n, training rows of each class.
      beta: in [0, 1]; chosen on validation data in the paper. May be traced.
      target_prior: pi_t of the test data, [C]; None: uniform.

    Source: Tian et al. 2020, Posterior re-calibration for imbalanced datasets, the imbalance calibration (IC); its
    uncertainty-aware temperature (UNO) is not here.
    """
    check.fraction("beta", beta)
    logits, classes = _checked(logits, class_counts)
    target = -jnp.log(float(classes)) if target_prior is None else _log_target(target_prior, classes)
    return logits + beta * (target - log_prior(class_counts))


def for_prior(logits: Logits, target_prior: Any) -> Float[Array, "*batch classes"]:
    """z + log pi_t: logits that are for a uniform prior (balanced softmax, LADE, logit adjustment), for another one.

    Source: Hong et al. 2021, Disentangling label distribution for long-tailed visual recognition.
    """
    logits = as_logits(logits)
    return logits + _log_target(target_prior, logits.shape[-1])


def tau_normalize(params: Any, tau: Scalar, *, keep_bias: bool = False) -> Any:
    """The parameters with w_c / |w_c|^tau in the linear head: a classifier whose norms grow with class size made even.

    Args:
      params: of a network of ``jaxkit.networks`` with a linear head: ``head/kernel`` [features, C].
      tau: 0 leaves the kernel, 1 makes its columns unit vectors; chosen on validation data in 0, 0.1, ..., 2 in the
        released code. May be traced.
      keep_bias: keep ``head/bias``; the paper and its code drop it (here: zeros).

    Raises:
      UsageError: no linear head; a negative tau.

    Source: Kang et al. 2020, Decoupling representation and classifier for long-tailed recognition, section 4.
    """
    check.number("tau", tau, 0.0)
    head = params.get("head") if isinstance(params, dict) else None
    if not isinstance(head, dict) or "kernel" not in head or "scale" in head:
        raise check.UsageError("tau_normalize needs params with a linear head, head/kernel [features, classes]")
    kernel = head["kernel"]
    norm = jnp.linalg.norm(kernel, axis=0)
    changed = {**head, "kernel": kernel / jnp.where(norm > 0, norm, 1.0) ** tau}
    if "bias" in head and not keep_bias:
        changed["bias"] = jnp.zeros_like(head["bias"])
    return {**params, "head": changed}


def _checked(logits: Any, class_counts: Counts) -> tuple[Any, int]:
    logits = as_logits(logits)
    if logits.ndim == 0:
        raise check.UsageError("logits must have an axis of classes at the end, got one number")
    check_counts(class_counts, logits.shape[-1])
    return logits, logits.shape[-1]


def _log_target(target_prior: Any, classes: int) -> jax.Array:
    return jnp.log(check_prior("target_prior", target_prior, classes))
