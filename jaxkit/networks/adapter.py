"""A Flax module seen as two pure functions (``jaxkit.learner.Network``), and the shape that every classifier here has.

A module is called as ``module(x, train=..., valid=...)`` and returns a dict with ``features`` and ``logits`` (or
``mean``). Parameters and statistics lie under ``backbone`` and ``head``, so that ``freeze="backbone"`` and
``heads.grow_head`` work on every network.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from jaxkit import check
from jaxkit.learner import Network

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(precision: str) -> Any:
    """The dtype in which a network computes; its parameters, statistics and outputs are float32 under every policy."""
    return PRECISIONS[check.choose("precision", precision, PRECISIONS)]


class Classifier(nn.Module):
    """A backbone ``x -> features [batch, f]`` and a head ``features -> [batch, k]``; both outputs are float32.

    Attributes:
      backbone: called as ``backbone(x, train=..., valid=...)``; where it has stages, also with ``start=`` and
        ``stop=``, and then it computes those from ``start`` on and before ``stop`` (``part_of``).
      head: called as ``head(features)``.
      output: the name of what the head gives, ``logits`` or ``mean``.
    """

    backbone: nn.Module
    head: nn.Module
    output: str = "logits"

    def __call__(self, x, train: bool = False, valid=None, headless: bool = False, **stages: int):
        features = self.backbone(x, train=train, valid=valid, **stages).astype(jnp.float32)
        if headless or stages:
            return {"features": features}
        return {self.output: self.head(features).astype(jnp.float32), "features": features}


def from_flax(module: nn.Module, *, whole: bool = False, stages: int = 1) -> Network:
    """The Network of a Flax Linen module.

    Args:
      module: called as ``module(x, train=bool, valid=bool [batch] or None)``; returns a dict of arrays. It draws its
        randomness (dropout) from the stream ``dropout``.
      whole: whether ``init`` reads the shapes of x as it is, for a graph, whose leaves do not share the leading axis.
      stages: how many the module has; more than one are told apart by its keywords ``start`` and ``stop``.

    Returns:
      ``init(key, x) -> (params, variables)`` reads the shapes of one row of x;
      ``apply(params, variables, x, *, train=False, key=None, valid=None) -> (outputs, variables)``. With
      ``train=False`` the variables come back as they are, and so they do from a batch in which no row is valid.

    Raises:
      UsageError: from ``apply`` when the module draws random numbers and ``key`` is None.
    """

    def init(key: jax.Array, x: Any, **part: int) -> tuple[Any, Any]:
        example = x if whole else jax.tree.map(lambda leaf: jnp.asarray(leaf)[:1], x)
        variables = dict(jax.jit(functools.partial(module.init, **part))({"params": key}, example))
        params = variables.pop("params", {})
        return jax.tree.map(_strong, params), jax.tree.map(_strong, variables)

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None, **part: int):
        inputs = {"params": params, **variables}
        if not train:
            return module.apply(inputs, x, train=False, valid=valid, **part), variables
        rngs = {} if key is None else {"dropout": key}
        options = {"train": True, "valid": valid, "rngs": rngs, "mutable": list(variables)}
        try:
            outputs, after = module.apply(inputs, x, **options, **part)
        except errors.InvalidRngError:
            raise check.UsageError("this network draws random numbers in training (dropout); pass key=") from None
        if valid is not None:
            keep = jnp.any(valid)
            after = jax.tree.map(lambda new, old: jnp.where(keep, new, old), dict(after), dict(variables))
        return outputs, {**variables, **after}

    return Network(init, apply, stages)


def part_of(network: Network, start: int = 0, stop: int | None = None) -> Network:
    """The stages of a network from ``start`` on and before ``stop``, without its head: ``x -> features``.

    ``part_of(network)`` is the backbone. ``part_of(network, 0, 2)`` and ``part_of(network, 2)`` after it are the
    backbone again, each with the parameters of its own stages, as they stand under ``backbone`` in the whole.

    Args:
      network: of ``jaxkit.networks``, or ``from_flax`` of a ``Classifier``. Its stages are the layers of an MLP, the
        two convolutions and the dense layer of a ConvNet, the three stages of a ResNet.
      start, stop: which stages; None is all that are left.

    Raises:
      UsageError: the network has no such stages.
    """
    stop = network.stages if stop is None else stop
    if not 0 <= start < stop <= network.stages:
        raise check.UsageError(f"a network of {network.stages} stages has no part from {start} to {stop}")
    cut = {"headless": True} if (start, stop) == (0, network.stages) else {"start": start, "stop": stop}
    return Network(functools.partial(network.init, **cut), functools.partial(network.apply, **cut))


def _strong(leaf: jax.Array) -> jax.Array:
    return leaf.astype(leaf.dtype)  # an explicit dtype is never a weak one
