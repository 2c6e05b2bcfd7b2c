"""De-confound-TDE: a normalised classifier of several heads; at test the part of the features that momentum put there
is taken out.

Momentum lets the features drift into the direction d of the frequent classes. Training keeps that; what is predicted is
the total direct effect (TDE): the logits of the features less alpha times those of their projection on d.

Source: Tang et al. 2020, Long-tailed classification by keeping the good and removing the bad momentum causal effect,
and its released code.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxkit import check
from jaxkit.learner import (
    Batch,
    Gradient,
    Learner,
    Network,
    Outputs,
    Params,
    PyTree,
    TrainState,
    batch_mean,
    from_loss,
    plain,
)
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.losses import softmax
from jaxkit.long_tailed.representation.cosine import Features, Kernel, with_read_out
from jaxkit.losses.vectors import normalize


class Confounder(NamedTuple):
    """``TrainState.extra`` of ``de_confound``.

    Attributes:
      drift: d, the moving average of the features, [F].
      alpha: of the prediction; it lies in the state, so that a trained state can be read out with another.
    """

    drift: jax.Array
    alpha: jax.Array


def multi_head_logits(
    features: Features, kernel: Kernel, *, num_heads: int = 2, tau: Scalar = 16.0, gamma: Scalar = 1 / 32
) -> Float[Array, "*batch classes"]:
    """z_c = tau / K sum_k w_ck . x_k / ((|w_ck| + gamma) |x_k|), k = 1..K the equal slices of x and w_c.

    Raises:
      UsageError: K does not divide the features; tau or gamma not positive.
    """
    return tde_logits(features, kernel, jnp.zeros(features.shape[-1:]), num_heads=num_heads, tau=tau, gamma=gamma)


def tde_logits(
    features: Features,
    kernel: Kernel,
    drift: Float[Array | np.ndarray, " features"],
    *,
    alpha: Scalar = 3.0,
    num_heads: int = 2,
    tau: Scalar = 16.0,
    gamma: Scalar = 1 / 32,
) -> Float[Array, "*batch classes"]:
    """``multi_head_logits`` with x_k / |x_k| - alpha cos(x_k, d_k) d_k / |d_k| in the place of x_k / |x_k|.

    Args:
      features: x.
      kernel: w, a column for each class.
      drift: d; only its direction within each slice counts. 0 takes nothing out.
      alpha: 0 takes nothing out. May be traced.
      num_heads: K.
      tau: scale of the logits. May be traced.
      gamma: is added to the norms of w. May be traced.

    Raises:
      UsageError: K does not divide the features; tau or gamma not positive.
    """
    check.positive("tau", tau), check.positive("gamma", gamma), check.number("alpha", alpha)
    _check_heads(kernel.shape[0], num_heads)
    slices = lambda array: jnp.asarray(array).reshape(*array.shape[:-1], num_heads, -1)
    x, w, d = normalize(slices(features)), slices(kernel.T), normalize(slices(drift))
    direct = x - alpha * jnp.sum(x * d, axis=-1, keepdims=True) * d
    # |w| as a product with the unit vector, whose gradient is 0 at w = 0 and not NaN.
    norm = jnp.sum(w * normalize(w), axis=-1, keepdims=True)
    return tau / num_heads * jnp.einsum("...kf,ckf->...c", direct, w / (norm + gamma))


def moving_average(
    average: Float[Array, " features"],
    features: Float[Array, "batch features"],
    momentum: Scalar,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, " features"]:
    """mu d + (1 - mu) mean_i x_i over the valid rows; d itself where no row is valid. No gradient.

    The released code adds the whole mean: the direction, which alone counts, is the same.
    """
    valid = jnp.ones(features.shape[:1], bool) if valid is None else valid
    features = jax.lax.stop_gradient(features)
    mean = jnp.where(valid[:, None], features, 0.0).sum(0) / jnp.maximum(valid.sum(), 1)
    return jnp.where(valid.any(), momentum * average + (1.0 - momentum) * mean, average)


def de_confound(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    alpha: Scalar = 3.0,
    tau: Scalar = 16.0,
    gamma: Scalar = 1 / 32,
    num_heads: int = 2,
    momentum: float = 0.9,
    gradient: Gradient = plain,
) -> Learner:
    """The cross-entropy of ``multi_head_logits``; ``predict`` gives ``tde_logits`` as ``logits`` and those of training
    as ``logits_biased``.

    Another alpha for a trained state: ``state._replace(extra=state.extra._replace(alpha=jnp.float32(1.0)))``.

    Args:
      network: with ``backbone`` and ``head``, of whose parameters ``head/kernel`` is used.
      optimizer: with momentum, which is what the method is about.
      class_counts: as many as there are classes; their values do not count.
      alpha: how much of the drift is taken out; the paper chooses it on validation data. May be traced.
      tau: see ``multi_head_logits``. May be traced.
      gamma: see ``multi_head_logits``. May be traced.
      num_heads: K, a divisor of the number of features.
      momentum: mu of the moving average of the features. (The code ties it to the learning rate on large data.)
      gradient: how the gradient is taken.

    Raises:
      UsageError: a setting out of range, or a network that does not fit.
    """
    check.positive("tau", tau), check.positive("gamma", gamma), check.number("alpha", alpha)
    check.fraction("momentum", momentum), check.count("num_heads", num_heads)
    counts = check_counts(class_counts, empty=True)
    settings = {"num_heads": num_heads, "tau": tau, "gamma": gamma}
    biased = with_read_out(network, counts.size, lambda x, w: multi_head_logits(x, w, **settings))

    def loss(params, state, batch, key):
        outputs, variables = loss_methods.applied(biased, params, state.variables, batch, key, counts)
        value = batch_mean(softmax(outputs["logits"], batch["y"]), batch)
        drift = moving_average(state.extra.drift, outputs["features"], momentum, batch.get("valid"))
        return value, (state._replace(variables=variables, extra=state.extra._replace(drift=drift)), {})

    def no_drift(params: Params, variables: PyTree) -> Confounder:
        features = params["head"]["kernel"].shape[0]
        _check_heads(features, num_heads)
        return Confounder(jnp.zeros((features,), jnp.float32), jnp.asarray(alpha, jnp.float32))

    learner = from_loss(biased, loss, optimizer, gradient=gradient, init_extra=no_drift)

    def predict(state: TrainState, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        kernel, (drift, alpha) = state.params["head"]["kernel"], state.extra
        logits = tde_logits(outputs["features"], kernel, drift, alpha=alpha, **settings)
        return {**outputs, "logits": logits, "logits_biased": outputs["logits"]}

    return learner._replace(predict=predict)


def _check_heads(features: int, num_heads: int) -> None:
    if features % check.count("num_heads", num_heads):
        raise check.UsageError(
            f"num_heads={num_heads} does not divide the {features} features of the network; take a divisor"
        )
