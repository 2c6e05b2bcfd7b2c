"""Mixed examples: a batch, the same batch in another order, and how much of each row is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxkit import check


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes:
      x: the mixed inputs.
      first: the labels of the rows themselves.
      second: the labels of the rows that were mixed in.
      share: float32 [batch], lambda: how much of a row is its own.
    """

    x: Array
    first: Array
    second: Array
    share: Array


def partners(key: Array, rows: int, valid: Bool[Array, " batch"] | None = None) -> Array:
    """For each row another's index, a permutation; valid rows are permuted among themselves, padding stays where it
    is.
    """
    if valid is None:
        return jax.random.permutation(key, rows)
    # The valid rows in their own order, and in a random one: the k-th of the former takes the k-th of the latter.
    order = jnp.argsort(~valid, stable=True)
    drawn = jnp.argsort(jnp.where(valid, jax.random.uniform(key, (rows,)), 2.0), stable=True)
    return jnp.arange(rows).at[order].set(jnp.where(valid[order], drawn, order))


def beta_share(key: Array, alpha: float | int | Array) -> Float[Array, ""]:
    """lambda ~ Beta(alpha, alpha).

    XLA may not fold alpha into the sampler's constants: what it folds depends on the program around, and the last bit
    of lambda with it, so that the seeds of one run would differ from runs of each seed.
    """
    alpha = jax.lax.optimization_barrier(jnp.asarray(alpha, jnp.float32))
    return jax.random.beta(key, alpha, alpha).astype(jnp.float32)


def mixup(
    key: Array,
    x: Float[Array, " batch *shape"],
    labels: Shaped[Array, " batch *label"],
    *,
    alpha: float | int | Array = 1.0,
    valid: Bool[Array, " batch"] | None = None,
) -> Mixed:
    """x_i <- lambda x_i + (1 - lambda) x_pi(i), with lambda ~ Beta(alpha, alpha) for the batch (Zhang et al. 2018,
    eq. 1).

    Args:
      key: draws lambda and the permutation pi.
      x: inputs.
      labels: integer or soft; both come back, see ``mixed_loss``.
      alpha: of the Beta distribution; small values mix little.
      valid: rows that count; they are mixed only with each other, and padding stays as it is.

    Raises:
      UsageError: alpha is not positive.
    """
    check.positive("alpha", alpha)
    key_share, key_order = jax.random.split(key)
    share = beta_share(key_share, alpha)
    other = partners(key_order, len(x), valid)
    mixed = (share * x + (1.0 - share) * x[other]).astype(x.dtype)
    return _finish(x, mixed, labels, other, share, valid)


def cutmix(
    key: Array,
    x: Float[Array, "batch height width channels"],
    labels: Shaped[Array, " batch *label"],
    *,
    alpha: float | int | Array = 1.0,
    valid: Bool[Array, " batch"] | None = None,
) -> Mixed:
    """A box of another row's picture is pasted over each picture (Yun et al. 2019, eqs. 1-2).

    The box has sides W sqrt(1 - lambda) and H sqrt(1 - lambda) with lambda ~ Beta(alpha, alpha), a uniform centre,
    and is cut at the border; one box for the batch. ``share`` is the part of the picture that is left after the cut,
    as in the authors' code.

    Args:
      key: draws lambda, the box and the permutation.
      x: pictures.
      labels: integer or soft; both come back, see ``mixed_loss``.
      alpha: of the Beta distribution.
      valid: rows that count; they are mixed only with each other, and padding stays as it is.

    Raises:
      UsageError: alpha is not positive.
    """
    check.positive("alpha", alpha)
    key_share, key_order, key_y, key_x = jax.random.split(key, 4)
    height, width = x.shape[1:3]
    side = jnp.sqrt(1.0 - beta_share(key_share, alpha))

    def span(key, length):
        centre, half = jax.random.randint(key, (), 0, length), jnp.floor(length * side).astype(jnp.int32) // 2
        places = jnp.arange(length)
        return (places >= centre - half) & (places < centre + half)

    box = span(key_y, height)[:, None] & span(key_x, width)[None, :]
    other = partners(key_order, len(x), valid)
    mixed = jnp.where(box[None, :, :, None], x[other], x)
    share = 1.0 - box.mean(dtype=jnp.float32)
    return _finish(x, mixed, labels, other, share, valid)


def _finish(x, mixed, labels, other, share, valid) -> Mixed:
    shares = jnp.full((len(x),), share, jnp.float32)
    if valid is not None:
        mixed = jnp.where(valid.reshape((-1,) + (1,) * (x.ndim - 1)), mixed, x)
    return Mixed(mixed, labels, labels[other], shares)


def mixed_loss(
    loss: Callable[[Array, Array], Float[Array, " batch"]], predictions: Float[Array, "batch ..."], mixed: Mixed
) -> Float[Array, " batch"]:
    """lambda loss(f, y) + (1 - lambda) loss(f, y_pi), per row."""
    return mixed.share * loss(predictions, mixed.first) + (1.0 - mixed.share) * loss(predictions, mixed.second)
