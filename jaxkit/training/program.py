"""The compiled pieces of a stage: begin, many steps in one dispatch, end.

Programs are cached by the identity of the functions they are made of, so stages (and fits) that share a learner and a
source share one compilation. ``Data`` is an argument everywhere: closed over, it would become program text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit.data.sources import example_of
from jaxkit.learner import Batch, Data, HostSource, Learner, Source, State, path_name
from jaxkit.training.keys import Streams
from jaxkit.training.sharding import batch_sharding

PyTree = Any
CAPACITY = 1024  # steps of one dispatch at most: the length of the metrics buffer


class Carry(NamedTuple):
    """What a dispatch takes and gives back: donated, so that it exists once."""

    state: State
    source_state: PyTree


def over_seeds(function: Callable, seeds: int | None, per_seed: bool = False) -> Callable:
    """Map ``function(data, *args)`` over the leading axis of args, and of data where each seed has its own: in turn on
    a CPU (bit-equal to single runs), at once elsewhere."""
    if seeds is None:
        return function

    def mapped(data: Data, *args: PyTree) -> PyTree:
        of_seed = (data, *args) if per_seed else args
        one = lambda of_seed: function(*of_seed) if per_seed else function(data, *of_seed)
        return jax.lax.map(one, of_seed) if jax.default_backend() == "cpu" else jax.vmap(one)(of_seed)

    return mapped


class Place(NamedTuple):
    """The shardings of a tree in a form that can be a cache key; None in place of it means one device, wherever that
    is."""

    leaves: tuple[Any, ...]
    tree: Any

    @classmethod
    def of(cls, shardings: PyTree) -> Place:
        leaves, tree = jax.tree.flatten(shardings)
        return cls(tuple(leaves), tree)

    def shardings(self) -> PyTree:
        return jax.tree.unflatten(self.tree, self.leaves)


def pinned(place: Place | None) -> dict[str, Any]:
    """The arguments of ``jax.jit`` that pin its output to ``place``."""
    return {} if place is None else {"out_shardings": place.shardings()}


@functools.lru_cache(maxsize=128)
def compile_begin(
    begin: Callable | None,
    learner: Learner,
    source: Source | HostSource,
    seeds: int | None,
    place: Place | None = None,
    per_seed: bool = False,
) -> Callable:
    """``(state | None, data, keys, batch | None) -> state``: a stage's begin, or the state as it is, or the learner's
    first one.

    ``batch`` is an example from a HostSource; other sources make theirs inside the program.
    """

    def one(data: Data, state: State | None, keys: Streams, batch: Batch | None) -> State:
        if begin is not None:
            return begin(state, data, keys.begin)
        if state is not None:
            return state
        if batch is None:
            assert isinstance(source, Source)
            batch = example_of(source, data, source.init(data, keys.source), keys.source)
        return learner.init(keys.begin, batch)

    def mapped(state: State | None, data: Data, keys: Streams, batch: Batch | None = None) -> State:
        return over_seeds(lambda data, state, keys: one(data, state, keys, batch), seeds, per_seed)(data, state, keys)

    return jax.jit(mapped, **pinned(place))


@functools.lru_cache(maxsize=128)
def compile_end(end: Callable, seeds: int | None, place: Place | None = None, per_seed: bool = False) -> Callable:
    """``(state, data, keys) -> state``."""
    mapped = over_seeds(lambda data, state, keys: end(state, data, keys.end), seeds, per_seed)
    return jax.jit(lambda state, data, keys: mapped(data, state, keys), **pinned(place))


@functools.lru_cache(maxsize=128)
def compile_source_init(
    source: Source, seeds: int | None, place: Place | None = None, per_seed: bool = False
) -> Callable:
    """``(data, keys) -> source_state``."""
    return jax.jit(over_seeds(lambda data, keys: source.init(data, keys.source), seeds, per_seed), **pinned(place))


def _constrain(batch: Batch, mesh: Mesh | None, axis: int | None) -> Batch:
    return batch if mesh is None else jax.lax.with_sharding_constraint(batch, batch_sharding(batch, mesh, axis))


@functools.lru_cache(maxsize=128)
def compile_steps(
    learner: Learner,
    source: Source | HostSource,
    seeds: int | None,
    mesh: Mesh | None = None,
    place: Place | None = None,
    per_seed: bool = False,
) -> Callable:
    """``(carry, data, keys, start, count) -> (carry, metrics [capacity] or [seeds, capacity])``: ``count`` steps in
    one dispatch.

    ``count`` is traced, so that a last short dispatch compiles nothing. ``place`` is that of the carry. For a
    HostSource ``data`` is a stack of batches, one for each step.
    """

    def step(carry: Carry, data: Data, keys: Streams, start: jax.Array, number: jax.Array):
        at = start + number
        if isinstance(source, HostSource):
            source_state, batch = (), jax.tree.map(lambda leaf: leaf[number], data)
        else:
            source_state, batch = source.next(data, carry.source_state, carry.state, at, keys.source)
        batch = _constrain(batch, mesh, source.axis)
        state, metrics = learner.update(carry.state, batch, jax.random.fold_in(keys.update, at))
        return Carry(state, source_state), metrics

    def run(data: Data, carry: Carry, keys: Streams, start: jax.Array, count: jax.Array):
        names = jax.eval_shape(step, carry, data, keys, start, start)[1]
        buffer = {name: jnp.zeros((CAPACITY,), jnp.float32) for name in names}

        def body(number, loop):
            carry, buffer = loop
            carry, metrics = step(carry, data, keys, start, number)
            return carry, {name: buffer[name].at[number].set(metrics[name]) for name in buffer}

        carry, buffer = jax.lax.fori_loop(0, count, body, (carry, buffer))
        if "finite" in buffer:  # a loss tells of a bad gradient one step late: the last step answers for the state
            buffer["finite"] = buffer["finite"].at[count - 1].min(healthy(carry.state).astype(jnp.float32))
        return carry, buffer

    def dispatch(carry: Carry, data: Data, keys: Streams, start: jax.Array, count: jax.Array):
        one = lambda data, carry, keys: run(data, carry, keys, start, count)
        return over_seeds(one, seeds, per_seed)(data, carry, keys)

    if place is None or mesh is None:
        return jax.jit(dispatch, donate_argnums=0)
    # Left to XLA, the output layout may differ from the input's and the second dispatch compiles again.
    return jax.jit(dispatch, donate_argnums=0, out_shardings=(place.shardings(), NamedSharding(mesh, P())))


@jax.jit
def healthy(state: State) -> jax.Array:
    """Whether a state may be saved: no NaN anywhere and no infinity in the parameters (elsewhere one can be meant:
    the best loss so far)."""
    sound = [jnp.ones((), bool)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            parameter = re.search(r"(^|/)params(/|$)", path_name(path))
            sound.append(jnp.isfinite(leaf).all() if parameter else ~jnp.isnan(leaf).any())
    return jnp.stack(sound).all()
