"""CMO: a cut-out of a rare class is pasted on a picture drawn as it comes, which lends it its context."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from jaxkit import check
from jaxkit.data import epochs, pair
from jaxkit.learner import Gradient, Key, Network, Plan, Stage, from_loss, plain
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.augmentation.mixing import mixable, mixed_mean
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.decoupled import ClassLoss, checked
from jaxkit.long_tailed.losses import softmax
from jaxkit.long_tailed.samplers import by_class_weight, power_weights
from jaxkit.losses.mixing import beta_share


def box(key: Key, share: Array, height: int, width: int) -> Bool[Array, "height width"]:
    """The pixels of a box with sides floor(H r) and floor(W r), r = sqrt(1 - share), around a uniform pixel, cut at the
    border (an odd side loses a pixel). (Yun et al. 2019, CutMix, eq. 2, as in the authors' code.)
    """
    key_row, key_column = jax.random.split(key)
    ratio = jnp.sqrt(1.0 - share)

    def span(key: Key, length: int) -> Array:
        centre, half = jax.random.randint(key, (), 0, length), jnp.floor(length * ratio).astype(jnp.int32) // 2
        places = jnp.arange(length)
        return (places >= centre - half) & (places < centre + half)

    return span(key_row, height)[:, None] & span(key_column, width)[None, :]


def _pictures(x: Any) -> Array:
    shape = getattr(x, "shape", ())
    if len(shape) != 4:
        raise check.UsageError(
            f"cmo needs pictures x [batch, height, width, channels], got the shape {list(shape)}; for rows that are "
            "vectors take mixup or remix"
        )
    return mixable(x)


def cmo(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    alpha: Scalar = 1.0,
    probability: Scalar = 0.5,
    power: Scalar = 1.0,
    batch_size: int = 128,
    loss: ClassLoss = softmax,
    gradient: Gradient = plain,
) -> Plan:
    """Context-rich minority oversampling: x = M x_b + (1 - M) x_f and lambda l(f(x), y_b) + (1 - lambda) l(f(x), y_f).

    The background (x_b, y_b) comes from the training set as it is, the foreground (x_f, y_f) from the distribution of
    classes p_c proportional to n_c^-power; M is 0 inside a ``box`` of lambda ~ Beta(alpha, alpha), one for a batch, and
    lambda is then the part of the picture that is left of the background. Other batches are trained on as they are.

    Args:
      network: for pictures.
      optimizer: an optax transformation.
      class_counts: training rows of each class, above 0.
      alpha: 1 as in the paper. May be traced.
      probability: with which a batch is pasted on; 0.5 as in the paper. May be traced.
      power: r of the paper's q(r, k), 1: the inverse frequency. The released code draws each row by n_y^-r, which for
        its r = 1 makes classes equally frequent: here power = 0.
      batch_size: of either source.
      loss: of a row, by default the cross-entropy; the paper also pairs it with LDAM, RIDE and balanced softmax.
      gradient: how the gradient is taken.

    Raises:
      UsageError: x that is no batch of pictures, a setting out of its range, counts that are none.

    Source: Park et al. 2022, The majority can help the minority: context-rich minority oversampling for long-tailed
    classification, algorithm 1.
    """
    check.positive("alpha", alpha), check.fraction("probability", probability), check.number("power", power)
    counts = check_counts(class_counts)

    def objective(params, state, batch, key):
        x, second = _pictures(batch["x"]), loss_methods.second_of(batch, "cmo", "jaxkit.data.pair")
        key_share, key_box, key_when = jax.random.split(jax.random.fold_in(key, 1), 3)
        share = beta_share(key_share, alpha)
        pasted = box(key_box, share, *x.shape[1:3]) & jax.random.bernoulli(key_when, probability)
        covered = jnp.broadcast_to(pasted, (len(x), *pasted.shape))
        if "valid" in second:
            covered = covered & second["valid"][:, None, None]
        seen = {**batch, "x": jnp.where(covered[..., None], second["x"], x)}
        outputs, variables = loss_methods.applied(network, params, state.variables, seen, key, counts)
        left = 1.0 - covered.mean((1, 2), dtype=jnp.float32)
        ones = jnp.ones(left.shape)
        weights = batch.get("weight", ones), second.get("weight", ones)
        value = mixed_mean(outputs["logits"], batch["y"], second["y"], left, *weights, batch, loss, counts)
        return value, (state._replace(variables=variables), {"pasted": pasted.mean(dtype=jnp.float32)})

    rows_of = lambda batch: _pictures(batch["x"])
    foreground = by_class_weight(batch_size, counts.size, lambda counts, step: power_weights(counts, -power))
    learner = from_loss(checked(network, counts.size), objective, optimizer, gradient=gradient, example=rows_of)
    return (Stage("oversampling", learner, pair(epochs(batch_size), foreground)),)
