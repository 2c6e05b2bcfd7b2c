"""Heads, the last layer of a classifier: linear, cosine, and how either grows when classes are added.

A head's parameters are ``kernel [features, classes]``, and where it has them ``bias [classes]`` and ``scale []``; it
computes in float32 whatever the precision of the backbone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkit import check

_kernel_init = nn.initializers.lecun_normal()


class Linear(nn.Module):
    """z_c = f . w_c + b_c."""

    num_classes: int
    bias: bool = True

    @nn.compact
    def __call__(self, features):
        kernel = self.param("kernel", _kernel_init, (features.shape[-1], self.num_classes), jnp.float32)
        logits = features @ kernel
        if self.bias:
            logits = logits + self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        return logits


class Cosine(nn.Module):
    """z_c = s cos(f, w_c), s learnable or fixed (Gidaris and Komodakis 2018, eq. 2; Hou et al. 2019, eq. 3)."""

    num_classes: int
    initial_scale: float = 10.0
    learn_scale: bool = True

    @nn.compact
    def __call__(self, features):
        kernel = self.param("kernel", _kernel_init, (features.shape[-1], self.num_classes), jnp.float32)
        cosines = normalize(features, axis=-1) @ normalize(kernel, axis=0)
        if not self.learn_scale:
            return self.initial_scale * cosines
        return self.param("scale", nn.initializers.constant(self.initial_scale), (), jnp.float32) * cosines


def normalize(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """x / |x| along ``axis``; a vector shorter than 1e-6 becomes 0 with gradient 0."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    safe = square > 1e-12
    return x * jnp.where(safe, jax.lax.rsqrt(jnp.where(safe, square, 1.0)), 0.0)


Head = Callable[[int], nn.Module]


def linear(*, bias: bool = True) -> Head:
    """A linear head as an option of a network: ``mlp(10, head=heads.linear(bias=False))``."""
    return lambda num_classes: Linear(num_classes, bias)


def cosine(*, scale: float = 10.0, learn_scale: bool = True) -> Head:
    """A cosine head as an option of a network: ``mlp(10, head=heads.cosine(scale=16.0, learn_scale=False))``."""
    check.positive("scale", scale)
    return lambda num_classes: Cosine(num_classes, scale, learn_scale)


HEADS: dict[str, Head] = {"linear": linear(), "cosine": cosine()}


def make_head(head: str | Head, num_classes: int) -> nn.Module:
    """The head's module: by name (``linear``, ``cosine``), or from a function of the number of classes."""
    check.count("num_classes", num_classes)
    return (HEADS[check.choose("head", head, HEADS)] if isinstance(head, str) else head)(num_classes)


def num_classes_of(params: Any) -> int:
    """The number of classes that the head in ``params`` has."""
    return _head(params)["kernel"].shape[-1]


def grow_head(params: Any, num_classes: int, key: jax.Array) -> Any:
    """Enlarge the class axis of the head to ``num_classes``; the rows of the old classes keep their bits.

    New columns are drawn as in a fresh head (LeCun normal; fan-in, so the number of classes does not matter), new
    biases are 0, the scale of a cosine head stays. The network to apply afterwards is the one made for
    ``num_classes``; its variables are the old ones.

    Raises:
      UsageError: the parameters have no head of this module, or ``num_classes`` is less than it has now.
    """
    head = _head(params)
    kernel = head["kernel"]
    features, old = kernel.shape
    new = check.count("num_classes", num_classes) - old
    if new < 0:
        raise check.UsageError(
            f"a head of {old} classes cannot grow to {num_classes}; num_classes must be at least {old}"
        )
    grown = dict(head)
    grown["kernel"] = (
        jnp.concatenate([kernel, _kernel_init(key, (features, new), kernel.dtype)], axis=1) if new else kernel
    )
    if "bias" in head:
        grown["bias"] = jnp.concatenate([head["bias"], jnp.zeros((new,), head["bias"].dtype)])
    return {**params, "head": grown}


def new_head(params: Any, num_classes: int, key: jax.Array, head: str | Head = "linear") -> Any:
    """A fresh head on the old backbone: the parameters for the network made for ``num_classes`` and ``head``."""
    features = _head(params)["kernel"].shape[0]
    fresh = make_head(head, num_classes).init(key, jnp.zeros((1, features), jnp.float32))["params"]
    return {**params, "head": fresh}


def _head(params: Any) -> dict[str, Any]:
    if not isinstance(params, dict) or "head" not in params or "kernel" not in params["head"]:
        found = ", ".join(sorted(params)) if isinstance(params, dict) else type(params).__name__
        raise check.UsageError(f"expected params with head/kernel [features, classes], got {found}")
    return params["head"]
