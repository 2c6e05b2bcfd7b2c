"""Small functions of vectors and masks that the losses share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def normalize(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """x / |x| along ``axis``; a vector shorter than 1e-6 becomes 0 with gradient 0."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    safe = square > 1e-12
    return x * jnp.where(safe, jax.lax.rsqrt(jnp.where(safe, square, 1.0)), 0.0)


def row_weights(rows: int, valid: Bool[Array, " batch"] | None) -> Float[Array, " batch"]:
    """1 for a row that counts, 0 for padding."""
    return jnp.ones((rows,), jnp.float32) if valid is None else valid.astype(jnp.float32)


def clear(x: Float[Array, " batch *rest"], valid: Bool[Array, " batch"] | None) -> Float[Array, " batch *rest"]:
    """x with 0 in padding rows, so that whatever stands there (NaN too) enters no sum and no gradient."""
    return x if valid is None else jnp.where(valid.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0.0)


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|x_i - y_j|^2 by differences: exact where points agree, and with a finite gradient there."""
    return jnp.square(x[:, None] - y[None]).sum(-1)
