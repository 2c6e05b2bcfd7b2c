"""Augmentations ``(x, key) -> x`` of a batch on the device, with a key of its own for every row.

Row i is transformed by ``split(key, batch)[i]``, so a row's result does not depend on the rows beside it. Images are
[batch, height, width, channels]. Each function here makes a transform; ``chain`` joins several; ``jaxkit.data.views``
applies them to the batches of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkit import check
from jaxkit.learner import Key

Transform = Callable[[Any, Key], Any]


def per_row(transform: Callable[[jax.Array, Key], jax.Array]) -> Transform:
    """The transform of a batch from the transform of one row."""
    return lambda x, key: jax.vmap(transform)(x, jax.random.split(key, x.shape[0]))


def chain(*transforms: Transform) -> Transform:
    """The transforms one after another, each with a key of its own; without any, the identity."""

    def apply(x: Any, key: Key) -> Any:
        for number, transform in enumerate(transforms):
            x = transform(x, jax.random.fold_in(key, number))
        return x

    return apply


def _image(x: jax.Array, name: str) -> jax.Array:
    if x.ndim != 3:
        raise check.UsageError(
            f"{name} needs images [batch, height, width, channels], got rows of shape {list(x.shape)}"
        )
    return x


def random_crop(padding: int, mode: str = "constant") -> Transform:
    """Pad every side by ``padding`` pixels, then cut out the original size at a place uniform over the (2 p + 1)^2
    possible.

    Args:
      padding: pixels on each side.
      mode: of ``jnp.pad``: ``constant`` (zeros) or ``reflect``.
    """
    padding = check.count("padding", padding, 0)
    mode = check.choose("padding mode", mode, ("constant", "reflect", "edge"))

    def one(x: jax.Array, key: Key) -> jax.Array:
        height, width, channels = _image(x, "random_crop").shape
        wide = jnp.pad(x, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(wide, (top, left, 0), (height, width, channels))

    return per_row(one)


def horizontal_flip(probability: float = 0.5) -> Transform:
    """Mirror left and right with the given probability."""
    check.fraction("probability", probability)
    return per_row(
        lambda x, key: jnp.where(jax.random.bernoulli(key, probability), _image(x, "horizontal_flip")[:, ::-1], x)
    )


def brightness(strength: float) -> Transform:
    """c x with one c for each row, uniform from max(0, 1 - strength) to 1 + strength, cut to [0, 1], where x lies."""
    check.number("strength", strength, 0.0)

    def one(x: jax.Array, key: Key) -> jax.Array:
        factor = jax.random.uniform(key, (), x.dtype, max(0.0, 1.0 - strength), 1.0 + strength)
        return jnp.clip(factor * _image(x, "brightness"), 0.0, 1.0)

    return per_row(one)


def normalise(mean: Sequence[float] | float, std: Sequence[float] | float) -> Transform:
    """(x - mean) / std, per channel (the last axis) or for all; draws nothing.

    Raises:
      UsageError: a standard deviation that is not above 0.
    """
    for value in [std] if isinstance(std, (int, float)) else list(std):
        check.positive("std", float(value))
    return lambda x, key: (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype)


def gaussian_noise(std: float | jax.Array) -> Transform:
    """x + std e with e standard normal, independent in every element; nothing is clipped. ``std`` may be traced."""
    check.number("std", std, 0.0)
    return per_row(lambda x, key: x + jnp.asarray(std, x.dtype) * jax.random.normal(key, x.shape, x.dtype))
