"""The streams of randomness: every key of a run is a function of (run key, stage, stream, step), so resuming is
exact."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkit import check


class Streams(NamedTuple):
    """The keys of one stage: ``begin``, ``source`` (which rows, which augmentation), ``update`` (folded with the
    step), ``end``."""

    begin: jax.Array
    source: jax.Array
    update: jax.Array
    end: jax.Array


def streams(key: jax.Array, stage: int | jax.Array) -> Streams:
    """The streams of stage number ``stage`` of a run with ``key``."""
    key = jax.random.fold_in(key, stage)
    return Streams(*(jax.random.fold_in(key, number) for number in range(len(Streams._fields))))


def seed_keys(key: jax.Array, seeds: int) -> jax.Array:
    """``seeds`` keys; seed i of ``fit(..., key=key, seeds=S)`` is the run ``fit(..., key=jax.random.fold_in(key,
    i))``."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(seeds))


def is_key(leaf: object) -> bool:
    """Whether a leaf (an array or its shape and dtype) holds new-style random keys."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_key(key: jax.Array | int) -> jax.Array:
    """A new-style key from a key or an integer seed."""
    if isinstance(key, int) and not isinstance(key, bool):
        return jax.random.key(check.seed("key", key))
    if isinstance(key, jax.Array) and is_key(key) and key.shape == ():
        return key
    raise check.UsageError(f"key must be one jax.random.key(...) or an integer seed, got {key!r}")
