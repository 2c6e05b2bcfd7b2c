"""Layers that networks share: normalisation that leaves padding rows out, and convolution in two forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxkit import check

NORMS = ("none", "batch", "layer")
CONVOLUTIONS = ("auto", "slices", "lax")


def batch_norm(x, train: bool, valid, *, name: str, dtype: Any, momentum: float = 0.9, epsilon: float = 1e-5):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015); call it inside a compact method.

    In training the statistics are those of the rows marked in ``valid``; all rows count where it is None, or marks
    none (the adapter then keeps the running statistics). Mean and variance are computed and kept in float32.
    """
    mask = None
    if train and valid is not None:
        counted = jnp.where(jnp.any(valid), valid, True)
        mask = counted.reshape((-1,) + (1,) * (x.ndim - 1))
    # The fast variance E[x^2] - E[x]^2 loses all digits where a mean is large against its deviation.
    options = {"momentum": momentum, "epsilon": epsilon, "dtype": dtype, "use_fast_variance": False}
    return nn.BatchNorm(use_running_average=not train, name=name, **options)(x, mask=mask)


def normalization(kind: str, dtype: Any, name: str, x, train: bool, valid):
    """``none``, ``batch`` or ``layer`` normalisation of x; call it inside a compact method."""
    if kind == "batch":
        return batch_norm(x, train, valid, name=name, dtype=dtype)
    return nn.LayerNorm(dtype=dtype, name=name)(x) if kind == "layer" else x


def images(x: Array, dtype: Any) -> Array:
    """x as floating-point images; UsageError if it is not [batch, height, width, channels]."""
    if x.ndim != 4:
        hint = "; add the channel axis with x[..., None]" if x.ndim == 3 else ""
        raise check.UsageError(
            f"expected images [batch, height, width, channels], got the shape {tuple(x.shape)}{hint}"
        )
    return jnp.asarray(x, dtype)


class Conv(nn.Module):
    """Two-dimensional convolution, NHWC, kernel HWIO under the name ``kernel``.

    Attributes:
      features: number of output channels.
      size: of the square kernel.
      stride: in both directions.
      padding: rows and columns of zeros on each side, or None for an output of ceil(input / stride) with the odd zero
        at the end.
      groups: channel groups; the number of input channels for a depthwise convolution.
      bias: whether a bias is added.
      method: see ``convolve``.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    bias: bool = False
    method: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        padding = (
            same_padding(x.shape[1:3], self.size, self.stride) if self.padding is None else ((self.padding,) * 2,) * 2
        )
        x = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            padding,
            groups=self.groups,
            method=self.method,
        )
        if self.bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return x


def same_padding(shape: tuple[int, ...], size: int, stride: int) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each axis so that the output has ceil(n / stride) places; the odd zero goes to the end."""
    totals = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in shape]
    return tuple((total // 2, total - total // 2) for total in totals)


def convolve(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "size size inputs_per_group outputs"],
    stride: int,
    padding: tuple[tuple[int, int], ...],
    *,
    groups: int = 1,
    method: str = "auto",
) -> Float[Array, "batch new_height new_width outputs"]:
    """y[b, i, j, o] = sum_{u, v, c} x[b, s i + u, s j + v, c] w[u, v, c, o], the convolution of neural networks.

    Args:
      x, kernel, stride, padding: as in the formula; padding is zeros before and after, for height and width.
      groups: 1, or the number of channel groups that do not see each other.
      method: ``lax`` is XLA's convolution. ``slices`` takes the shifted slices of x and multiplies them in one matrix
        product, or, for a depthwise convolution, adds their products with the weights; on the CPU that is several
        times faster than XLA's convolution, and inside a loop (in which training runs) ten times and more. ``auto``
        is ``slices`` where the default device is a CPU and groups allow it.

    Raises:
      UsageError: ``slices`` with groups that are neither one nor one per input channel.
    """
    sliced = groups == 1 or kernel.shape[2:] == (1, groups)
    if method == "slices" and not sliced:
        raise check.UsageError(f"method='slices' takes 1 group or one per channel, got {groups}; use method='lax'")
    if method == "slices" or (method == "auto" and sliced and jax.default_backend() == "cpu"):
        return _by_slices(x, kernel, stride, padding, depthwise=groups != 1)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _by_slices(x, kernel, stride, padding, depthwise):
    size, outputs = kernel.shape[0], kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    shifts = [(u, v) for u in range(size) for v in range(size)]

    def shifted(u, v):
        return x[:, u : u + (height - 1) * stride + 1 : stride, v : v + (width - 1) * stride + 1 : stride]

    if depthwise:
        return sum(shifted(u, v) * kernel[u, v, 0] for u, v in shifts)
    patches = jnp.concatenate([shifted(u, v) for u, v in shifts], axis=-1)
    flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, outputs)
    return flat.reshape(x.shape[0], height, width, outputs)
