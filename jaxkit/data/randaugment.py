"""RandAugment on the device: a few random operations of one strength on each picture, inside the compiled step.

Cubuk et al. 2020, RandAugment: practical automated data augmentation with a reduced search space, NeurIPS. The 14
operations of the paper are here, as functions of one picture [height, width, channels] with values in [0, 1]: identity,
rotate, shear and translate along x and y, brightness, color, contrast, sharpness, posterize, solarize, autocontrast,
equalize. (The released code adds invert, cutout and SolarizeAdd, which are not.) The operations of pixels follow
Pillow, without its rounding to bytes.

Strength s = magnitude / 10 goes from the picture as it is to the end of AutoAugment's ranges: 30 degrees, a shear of
0.3, a shift of 0.45 of the side, a factor of 1 +- 0.9, a threshold of 0, 4 bits. The released code has other ranges for
some: there 0 is the far end of posterize and solarize, and factors are 0.1 + 1.8 s. Directions are drawn.

Pictures of a batch are mapped over (``jax.vmap``), which computes every operation of pixels for each and keeps one;
those of geometry are one bilinear warp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.data import transforms
from jaxkit.learner import Key

Picture = Float[Array, "height width channels"]
Matrix = Float[Array, "2 3"]
Scalar = float | int | Array

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601)


# Geometry ----------------------------------------------------------------------------------------------------------


def warp(x: Picture, matrix: Matrix, fill: Scalar = 0.0) -> Picture:
    """The pixel (i, j) is x at (row, column) = matrix (i, j, 1), bilinear between pixels; ``fill`` is all around x."""
    row, column = jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in x.shape[:2]), indexing="ij")
    places = [line[0] * row + line[1] * column + line[2] for line in matrix]
    channel = lambda plane: map_coordinates(plane, places, order=1, mode="constant", cval=fill)
    return jax.vmap(channel, in_axes=-1, out_axes=-1)(x)


def rotation(degrees: Scalar, shape: Sequence[int]) -> Matrix:
    """Counter-clockwise about the middle of the picture."""
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    row, column = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    return jnp.stack(
        [
            jnp.stack([cos, sin, row - cos * row - sin * column]),
            jnp.stack([-sin, cos, column + sin * row - cos * column]),
        ]
    )


def _plus(line: int, entry: int, value: Scalar) -> Matrix:
    """The identity with ``value`` added at one place."""
    return jnp.eye(2, 3, dtype=jnp.float32).at[line, entry].add(value)


def rotate(x: Picture, degrees: Scalar, fill: Scalar = 0.0) -> Picture:
    """Counter-clockwise about the middle; 90 is ``numpy.rot90`` of a square picture."""
    return warp(x, rotation(degrees, x.shape), fill)


def shear_x(x: Picture, factor: Scalar, fill: Scalar = 0.0) -> Picture:
    """The pixel (i, j) is x at (i, j + factor i)."""
    return warp(x, _plus(1, 0, factor), fill)


def shear_y(x: Picture, factor: Scalar, fill: Scalar = 0.0) -> Picture:
    """The pixel (i, j) is x at (i + factor j, j)."""
    return warp(x, _plus(0, 1, factor), fill)


def translate_x(x: Picture, pixels: Scalar, fill: Scalar = 0.0) -> Picture:
    """To the right by ``pixels``."""
    return warp(x, _plus(1, 2, -pixels), fill)


def translate_y(x: Picture, pixels: Scalar, fill: Scalar = 0.0) -> Picture:
    """Down by ``pixels``."""
    return warp(x, _plus(0, 2, -pixels), fill)


# Pixels ------------------------------------------------------------------------------------------------------------


def grey(x: Picture) -> Float[Array, "height width 1"]:
    """The luminance of three channels, the mean of another number."""
    if x.shape[-1] == 3:
        return x @ jnp.asarray(LUMINANCE, x.dtype)[:, None]
    return x.mean(-1, keepdims=True)


def blend(degenerate: Array, x: Picture, factor: Scalar) -> Picture:
    """degenerate + factor (x - degenerate), cut to [0, 1]: 1 is x, 0 is degenerate, more goes beyond x."""
    return jnp.clip(degenerate + factor * (x - degenerate), 0.0, 1.0)


def brightness(x: Picture, factor: Scalar) -> Picture:
    """``blend`` with black."""
    return blend(jnp.zeros_like(x), x, factor)


def color(x: Picture, factor: Scalar) -> Picture:
    """``blend`` with the picture in grey; one channel stays as it is."""
    return blend(grey(x), x, factor)


def contrast(x: Picture, factor: Scalar) -> Picture:
    """``blend`` with the mean of the picture in grey."""
    return blend(grey(x).mean(), x, factor)


def sharpness(x: Picture, factor: Scalar) -> Picture:
    """``blend`` with the picture smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; pixels at the border are not smoothed."""
    height, width, _ = x.shape
    around = sum(x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    smooth = x.at[1:-1, 1:-1].set((around + 4.0 * x[1:-1, 1:-1]) / 13.0)
    return blend(smooth, x, factor)


def posterize(x: Picture, bits: Scalar) -> Picture:
    """The highest ``bits`` of the eight bits of 255 x, divided by 255; 8 is x."""
    step = 2.0 ** (8 - jnp.asarray(bits))
    return jnp.where(step > 1, jnp.floor(jnp.round(255.0 * x) / step) * step / 255.0, x)


def solarize(x: Picture, threshold: Scalar) -> Picture:
    """1 - x where x is at least ``threshold``."""
    return jnp.where(x >= threshold, 1.0 - x, x)


def autocontrast(x: Picture) -> Picture:
    """(x - min) / (max - min) in each channel; a channel of one value stays as it is."""
    low, high = x.min((0, 1)), x.max((0, 1))
    return jnp.where(high > low, (x - low) / jnp.where(high > low, high - low, 1.0), x)


def equalize(x: Picture) -> Picture:
    """Each channel, in 256 levels, mapped by its cumulative histogram so that levels are about equally frequent.

    As Pillow counts: with h the histogram and step = (pixels - those of the highest level) // 255, level l becomes
    (sum_{k < l} h_k + step // 2) // step; where step is 0 (few pixels) the channel stays as it is.
    """

    def channel(plane: Array) -> Array:
        level = jnp.round(255.0 * plane).astype(jnp.int32)
        histogram = jnp.zeros((256,), jnp.int32).at[level.ravel()].add(1)
        step = (level.size - histogram[level.max()]) // 255
        below = jnp.cumsum(histogram) - histogram
        table = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[level] / 255.0, plane)

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(x)


# RandAugment -------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """An operation as a function of its signed strength s in [-1, 1].

    Attributes:
      matrix: ``(s, shape) -> [2, 3]``, see ``warp``.
      pixels: ``(x, s) -> x``.
    """

    matrix: Callable[[Array, Sequence[int]], Matrix] = lambda s, shape: jnp.eye(2, 3, dtype=jnp.float32)
    pixels: Callable[[Picture, Array], Picture] = lambda x, s: x


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(),
    "rotate": Operation(matrix=lambda s, shape: rotation(30.0 * s, shape)),
    "shear_x": Operation(matrix=lambda s, shape: _plus(1, 0, 0.3 * s)),
    "shear_y": Operation(matrix=lambda s, shape: _plus(0, 1, 0.3 * s)),
    "translate_x": Operation(matrix=lambda s, shape: _plus(1, 2, 0.45 * s * shape[1])),
    "translate_y": Operation(matrix=lambda s, shape: _plus(0, 2, 0.45 * s * shape[0])),
    "brightness": Operation(pixels=lambda x, s: brightness(x, 1.0 + 0.9 * s)),
    "color": Operation(pixels=lambda x, s: color(x, 1.0 + 0.9 * s)),
    "contrast": Operation(pixels=lambda x, s: contrast(x, 1.0 + 0.9 * s)),
    "sharpness": Operation(pixels=lambda x, s: sharpness(x, 1.0 + 0.9 * s)),
    "posterize": Operation(pixels=lambda x, s: posterize(x, 8.0 - jnp.round(4.0 * jnp.abs(s)))),
    "solarize": Operation(pixels=lambda x, s: solarize(x, 256.0 / 255.0 * (1.0 - jnp.abs(s)))),
    "autocontrast": Operation(pixels=lambda x, s: autocontrast(x)),
    "equalize": Operation(pixels=lambda x, s: equalize(x)),
}
"""The operations by name; a threshold of 256 / 255 is above every x."""


def rand_augment(
    num_ops: int = 2,
    magnitude: Scalar = 9.0,
    *,
    fill: float = 0.0,
    operations: Sequence[str] = tuple(OPERATIONS),
) -> transforms.Transform:
    """``num_ops`` operations on each picture, drawn with replacement and all alike likely, at one magnitude.

    Args:
      num_ops: N, 2 as in the paper for ImageNet.
      magnitude: M in [0, 10]; 9 as in the paper for ImageNet. May be traced.
      fill: what comes in from outside, in [0, 1].
      operations: the names in ``OPERATIONS`` that are drawn from.

    Returns:
      ``(x, key) -> x`` for pictures [batch, height, width, channels] of floats in [0, 1], which stay there; for
      ``jaxkit.data.views``.

    Raises:
      UsageError: a setting out of its range, an unknown operation, x that is no such batch (its values are looked at
        where they are concrete).

    Source: Cubuk et al. 2020, section 3.
    """
    num_ops = check.count("num_ops", num_ops, 0)
    check.number("magnitude", magnitude, 0.0, 10.0), check.fraction("fill", fill)
    chosen = [OPERATIONS[check.choose("operation", name, OPERATIONS)] for name in operations]
    if not chosen:
        raise check.UsageError("rand_augment needs at least one operation; leave operations out for all of them")

    def one(x: Picture, key: Key) -> Picture:
        for number in range(num_ops):
            kind_key, sign_key = jax.random.split(jax.random.fold_in(key, number))
            kind = jax.random.randint(kind_key, (), 0, len(chosen))
            strength = jnp.where(jax.random.bernoulli(sign_key), 0.1, -0.1) * magnitude
            matrix = jax.lax.switch(kind, [lambda s, f=op.matrix: f(s, x.shape) for op in chosen], strength)
            x = jnp.clip(warp(x, matrix, fill), 0.0, 1.0)  # the weights of four pixels sum to 1 but for rounding
            x = jax.lax.switch(kind, [op.pixels for op in chosen], x, strength)
        return x

    def apply(x: Array, key: Key) -> Array:
        _check_pictures(x)
        return transforms.per_row(one)(x, key)

    return apply


def _check_pictures(x: Array) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise check.UsageError(
            f"rand_augment needs pictures [batch, height, width, channels] of floats in [0, 1], got {x.dtype} of the "
            f"shape {list(x.shape)}; divide bytes by 255"
        )
    if not isinstance(x, jax.core.Tracer) and x.size:
        values = np.asarray(x)
        if not (values.min() >= 0 and values.max() <= 1):
            raise check.UsageError(
                f"rand_augment needs values in [0, 1], got {values.min():g}..{values.max():g}; normalise afterwards"
            )
