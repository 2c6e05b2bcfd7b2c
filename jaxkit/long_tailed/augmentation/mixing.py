"""Mixed rows on long-tailed data: mixup, and Remix, which gives a mixed row to the rarer of its two classes.

Both take any loss of ``jaxkit.long_tailed`` in the place of the cross-entropy. A mixed row has the loss of each of its
two labels, in their shares; a row's ``weight`` goes with its own label.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Real

from jaxkit import check, losses
from jaxkit.learner import Batch, Gradient, Learner, Network, batch_mean, from_loss, plain
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.decoupled import ClassLoss
from jaxkit.long_tailed.losses import softmax

LabelShare = Callable[[Array, Array, Array], Array]
"""``(share, first, second) -> share``: how much of a row's label is its own, from how much of the row is, and the two
labels."""


def remix_share(
    share: Float[Array | np.ndarray, "*batch"] | float,
    counts_first: Real[Array | np.ndarray, "*batch"] | float,
    counts_second: Real[Array | np.ndarray, "*batch"] | float,
    kappa: Scalar = 3.0,
    tau: Scalar = 0.5,
) -> Float[Array, "*batch"]:
    """How much of a mixed row's label is its own, lambda_y, from how much of the row is, lambda.

    0 where n_i / n_j >= kappa and lambda < tau (the row is given to the rarer j), 1 where n_i / n_j <= 1 / kappa and
    1 - lambda < tau (to the rarer i), lambda elsewhere. kappa = inf or tau = 0 is mixup.

    Args:
      share: lambda in [0, 1].
      counts_first: n_i, training rows of the row's own class, above 0.
      counts_second: n_j, those of the class of the row mixed in.
      kappa: from which ratio on a class is much larger than another; at least 1. May be traced.
      tau: up to which share a label may be given away, in [0, 1]. May be traced.

    Raises:
      UsageError: kappa below 1, tau outside [0, 1].

    Source: Chou et al. 2020, Remix: rebalanced mixup, ECCV workshops, eq. 10.
    """
    _check_remix(kappa, tau)
    share = jnp.asarray(share, jnp.float32)
    first, second = jnp.asarray(counts_first, jnp.float32), jnp.asarray(counts_second, jnp.float32)
    to_second = (first >= kappa * second) & (share < tau)
    to_first = (kappa * first <= second) & (1.0 - share < tau)
    return jnp.where(to_second, 0.0, jnp.where(to_first, 1.0, share))


def _check_remix(kappa: Scalar, tau: Scalar) -> None:
    check.number("kappa", kappa, 1.0), check.fraction("tau", tau)


def mixup(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    alpha: Scalar = 0.2,
    loss: ClassLoss = softmax,
    gradient: Gradient = plain,
) -> Learner:
    """Rows mixed in pairs: x = lambda x_i + (1 - lambda) x_j, loss lambda l(f(x), y_i) + (1 - lambda) l(f(x), y_j).

    Args:
      network: its ``logits``.
      optimizer: an optax transformation.
      class_counts: training rows of each class, above 0.
      alpha: lambda ~ Beta(alpha, alpha), one for a batch; 0.2 as in MiSLAS on ImageNet-LT (1 on CIFAR-LT). May be
        traced.
      loss: of a row, by default the cross-entropy.
      gradient: how the gradient is taken.

    Raises:
      UsageError: alpha not above 0, counts that are none, x that is no array of floats.

    Source: Zhang et al. 2018, mixup: beyond empirical risk minimization, eq. 1 and algorithm of figure 1.
    """
    check.positive("alpha", alpha)
    return _mixed(network, optimizer, check_counts(class_counts), alpha, loss, lambda share, i, j: share, gradient)


def remix(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    alpha: Scalar = 1.0,
    kappa: Scalar = 3.0,
    tau: Scalar = 0.5,
    loss: ClassLoss = softmax,
    gradient: Gradient = plain,
) -> Learner:
    """``mixup`` with labels mixed by ``remix_share``.

    Args:
      network, optimizer, class_counts, loss, gradient: as in ``mixup``.
      alpha: 1 as in the paper. May be traced.
      kappa: 3 as in the paper. May be traced.
      tau: 0.5 as in the paper. May be traced.

    Raises:
      UsageError: as ``mixup``; kappa below 1, tau outside [0, 1].

    Source: Chou et al. 2020, Remix: rebalanced mixup, ECCV workshops, eqs. 8-10.
    """
    check.positive("alpha", alpha), _check_remix(kappa, tau)
    counts = check_counts(class_counts)
    given = lambda share, first, second: remix_share(share, counts[first], counts[second], kappa, tau)
    return _mixed(network, optimizer, counts, alpha, loss, given, gradient)


def _mixed(
    network: Network,
    optimizer: optax.GradientTransformation,
    counts: Array,
    alpha: Scalar,
    row_loss: ClassLoss,
    label_share: LabelShare,
    gradient: Gradient,
) -> Learner:
    """Minimise the loss of mixed rows, their labels mixed by ``label_share``."""

    def loss(params, state, batch, key):
        rows, mix_key = jnp.arange(len(batch["y"])), jax.random.fold_in(key, 1)
        mixed = losses.mixup(mix_key, mixable(batch["x"]), rows, alpha=alpha, valid=batch.get("valid"))
        seen = {**batch, "x": mixed.x}
        outputs, variables = loss_methods.applied(network, params, state.variables, seen, key, counts)
        own, other = batch["y"], batch["y"][mixed.second]
        shares = label_share(mixed.share, own, other)
        weight = batch.get("weight", jnp.ones(shares.shape))
        value = mixed_mean(outputs["logits"], own, other, shares, weight, weight[mixed.second], batch, row_loss, counts)
        return value, (state._replace(variables=variables), {})

    return from_loss(network, loss, optimizer, gradient=gradient)


def mixed_mean(
    logits: Float[Array, "batch classes"],
    own: Array,
    other: Array,
    share: Array,
    own_weight: Array,
    other_weight: Array,
    batch: Batch,
    row_loss: ClassLoss,
    counts: Array,
) -> Float[Array, ""]:
    """The mean over valid rows of share w l(z, y) + (1 - share) w' l(z, y'), each label with the weight of its row."""
    values = share * own_weight * row_loss(logits, own, counts)
    values = values + (1.0 - share) * other_weight * row_loss(logits, other, counts)
    return batch_mean(values, {"valid": batch["valid"]} if "valid" in batch else {})


def mixable(x: Array) -> Array:
    """Return ``x`` if rows of it can be mixed: one array of floats."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = type(x).__name__ if dtype is None else f"an array of {dtype}"
        raise check.UsageError(f"mixing rows needs x as one array of floats, got {got}; divide images of bytes by 255")
    return x
