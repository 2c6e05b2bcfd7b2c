"""Which examples a step sees: pure functions of (data, key, step), evaluated inside the compiled step.

A source is ``jaxkit.learner.Source``. Data is a dict of arrays whose leaves share the leading axis (``x`` may be a
pytree of such leaves). ``key`` is the same at every step of a stage, so the sources below that keep no state compute a
batch from (key, step) alone and need no checkpoint. Every batch of drawn rows carries ``index``, the row in Data
(int32).

Shuffling without replacement is a keyed bijection of 0..n-1 evaluated only at the rows of the batch (``permuted``), not
``jax.random.permutation``, which sorts all n rows at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Shaped

from jaxkit import check
from jaxkit.data.checks import rows
from jaxkit.learner import Batch, Data, HostSource, Key, PyTree, Source

Step = int | Array  # within its stage

ROUNDS, ROUNDS_SMALL, SMALL = 8, 24, 256
"""Feistel rounds of ``permuted``, and those for sizes up to 256. Four suffice for wide blocks (Luby and Rackoff 1988);
the few bits of a small index mix slowly: over the 120 orders of 5 rows, 8 rounds leave a chi-square of 35 per degree of
freedom, 24 leave 1.3."""


def _mix(value: Array, key: Array) -> Array:
    """A 32-bit integer hash of ``value`` under ``key``: xor, multiply, shift, twice (after MurmurHash3's finaliser)."""
    value = (value ^ key) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    value = (value ^ (value >> 16) ^ (key >> 7)) * jnp.uint32(0x9E3779B1)
    return value ^ (value >> 15)


def permuted(
    index: Integer[Array | np.ndarray, "*shape"], key: Key, size: int | Integer[Array, ""]
) -> Integer[Array, "*shape"]:
    """The images of ``index`` under a random permutation of 0..size-1 that ``key`` names, computed at ``index`` alone.

    A Feistel network on the ceil(log2 size) bits of an index is a bijection of 0..2^bits-1 for any round function; an
    image outside 0..size-1 is mapped again until it falls inside (cycle walking, fewer than two evaluations per index
    on average), which makes it a bijection of 0..size-1. Work and memory are those of ``index``, not of ``size``.

    Args:
      index: whole numbers of any shape, not negative, taken modulo ``size``.
      key: names the permutation.
      size: from 1 to 2^31 - 1; may be traced (which names other permutations than the same size as an int).

    Returns:
      int32, the shape of ``index``.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking, Feistel).
    """
    rounds = ROUNDS if isinstance(size, int) and size > SMALL else ROUNDS_SMALL
    size = jnp.asarray(size, jnp.uint32)
    keys = jax.random.bits(key, (rounds,), jnp.uint32)
    bits = jnp.maximum(32 - jax.lax.clz(jnp.maximum(size, 2) - 1), 2)
    high, low = bits >> 1, bits - (bits >> 1)

    def permute(value: Array) -> Array:
        left_bits, right_bits = high, low
        for round_key in keys:
            right = value & ((jnp.uint32(1) << right_bits) - 1)
            left = (value >> right_bits) ^ (_mix(right, round_key) & ((jnp.uint32(1) << left_bits) - 1))
            value = (right << left_bits) | left
            left_bits, right_bits = right_bits, left_bits
        return value

    def walk(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        value, outside = carry
        value = jnp.where(outside, permute(value), value)
        return value, outside & (value >= size)

    value = jnp.asarray(index).astype(jnp.uint32) % size  # from a value outside, the walk might never come inside
    inside, _ = jax.lax.while_loop(lambda carry: carry[1].any(), walk, (value, jnp.ones(value.shape, bool)))
    return inside.astype(jnp.int32)


def take(data: Data, index: Integer[Array, "..."]) -> Batch:
    """The rows ``index`` of every leaf of ``data``, and ``index`` itself."""
    gather = lambda leaf: jnp.asarray(leaf).at[index].get(mode="promise_in_bounds")
    return {**jax.tree.map(gather, data), "index": index.astype(jnp.int32)}


def _stateless(batch: Callable[[Data, Array, Key], Batch]) -> Source:
    """The source whose batch is a function of (data, step, key)."""
    return Source(
        init=lambda data, key: (),
        next=lambda data, source_state, state, step, key: (
            source_state,
            batch(data, jnp.asarray(step, jnp.int32), key),
        ),
    )


def epochs(batch_size: int) -> Source:
    """Every row once per epoch, in an order that differs from epoch to epoch; the last n mod batch_size are dropped.

    Step t takes positions (t mod m) B .. (t mod m) B + B - 1 of the permutation that (key, floor(t / m)) names, where
    m = floor(n / B) steps are an epoch.

    Raises:
      UsageError: Data has fewer rows than ``batch_size``.
    """
    batch_size = check.count("batch_size", batch_size)

    def batch(data: Data, step: Array, key: Key) -> Batch:
        size = rows(data)
        if batch_size > size:
            raise check.UsageError(
                f"batch_size={batch_size} is larger than the data ({size} rows); take at most {size}, or full_batch()"
            )
        epoch, place = jnp.divmod(step, size // batch_size)
        position = place * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        return take(data, permuted(position, jax.random.fold_in(key, epoch), size))

    return _stateless(batch)


def full_batch(*, whole: bool = False) -> Source:
    """All of Data at every step, in its own order (closed forms, transductive learning).

    On a mesh the rows are split over the devices; with ``whole`` every device gets all of them, as a graph needs it,
    whose nodes and edges are no rows.

    ``index`` counts the rows of ``y`` where there is one (the nodes of a graph, whose other leaves have other lengths).
    """

    def batch(data: Data, step: Array, key: Key) -> Batch:
        size = len(data["y"]) if "y" in data else rows(data)
        return {**jax.tree.map(jnp.asarray, data), "index": jnp.arange(size, dtype=jnp.int32)}

    return _stateless(batch)._replace(axis=None if whole else 0)


def _grouped(labels: Array, groups: int) -> tuple[Array, Array, Array]:
    """(rows sorted by group, rows per group, first position of each group); labels outside 0..groups-1 are in no
    group."""
    order = jnp.argsort(labels, stable=True).astype(jnp.int32)
    bounds = jnp.searchsorted(labels[order], jnp.arange(groups + 1, dtype=labels.dtype)).astype(jnp.int32)
    return order, jnp.diff(bounds), bounds[:-1]


def _column(data: Data, name: str, source: str) -> Array:
    if name not in data:
        raise check.UsageError(f"{source} needs data[{name!r}]; the data has {', '.join(sorted(data)) or 'nothing'}")
    return jnp.asarray(data[name])


def class_balanced(batch_size: int, num_classes: int) -> Source:
    """Each row of the batch by itself: a class drawn uniformly from the classes present, then a row uniformly from the
    class.

    Draws are with replacement. The rows of each class are found once, in ``init``. P(row i) = 1 / (C' n_c) for the C'
    classes present and the n_c rows of its class. (Kang et al. 2020, class-balanced sampling.)

    Raises:
      UsageError: Data has no ``y``.
    """
    batch_size, num_classes = check.count("batch_size", batch_size), check.count("num_classes", num_classes)

    def init(data: Data, key: Key) -> PyTree:
        order, counts, starts = _grouped(_column(data, "y", "class_balanced"), num_classes)
        present = jnp.argsort(counts == 0, stable=True).astype(jnp.int32)  # the classes that have rows come first
        return {"order": order, "counts": counts, "starts": starts, "present": present}

    def next_(data: Data, source_state: PyTree, state: PyTree, step: Step, key: Key) -> tuple[PyTree, Batch]:
        class_key, row_key = jax.random.split(jax.random.fold_in(key, step))
        num_present = jnp.maximum((source_state["counts"] > 0).sum(), 1)
        label = source_state["present"][jax.random.randint(class_key, (batch_size,), 0, num_present)]
        within = jax.random.randint(row_key, (batch_size,), 0, jnp.maximum(source_state["counts"][label], 1))
        return source_state, take(data, source_state["order"][source_state["starts"][label] + within])

    def validate(data: Data) -> None:
        labels = np.asarray(_column(data, "y", "class_balanced"))
        if labels.min() < 0 or labels.max() >= num_classes:
            raise check.UsageError(
                f"class_balanced: data['y'] must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}"
            )

    return Source(init, next_, validate=validate)


def by_environment(batch_size_per_env: int, num_envs: int) -> Source:
    """Batches ``[E, B, ...]``: B rows of each environment of ``data["env"]``, every environment shuffled by itself for
    ever.

    Within an environment of n_e rows every row comes once per epoch of floor(n_e / B) steps, the remainder dropped
    (DomainBed's infinite data loaders). An environment with fewer rows than B is gone through more than once within a
    batch. Environments run through their epochs at their own pace. (Gulrajani and Lopez-Paz 2021.)

    Raises:
      UsageError: Data has no ``env``.
    """
    size, num_envs = check.count("batch_size_per_env", batch_size_per_env), check.count("num_envs", num_envs)

    def init(data: Data, key: Key) -> PyTree:
        order, counts, starts = _grouped(_column(data, "env", "by_environment"), num_envs)
        return {"order": order, "counts": counts, "starts": starts}

    def next_(data: Data, source_state: PyTree, state: PyTree, step: Step, key: Key) -> tuple[PyTree, Batch]:
        def one(env: Array, count: Array, start: Array) -> Array:
            count = jnp.maximum(count, 1)
            epoch, place = jnp.divmod(step, jnp.maximum(count // size, 1))
            position = (place * size + jnp.arange(size, dtype=jnp.int32)) % count
            env_key = jax.random.fold_in(jax.random.fold_in(key, env), epoch)
            return start + permuted(position, env_key, count)

        step = jnp.asarray(step, jnp.int32)
        envs = jnp.arange(num_envs, dtype=jnp.int32)
        place = jax.vmap(one)(envs, source_state["counts"], source_state["starts"])
        return source_state, take(data, source_state["order"][place])

    def validate(data: Data) -> None:
        envs = np.asarray(_column(data, "env", "by_environment"))
        absent = sorted(set(range(num_envs)) - set(envs.tolist()))
        if envs.min() < 0 or envs.max() >= num_envs or absent:
            raise check.UsageError(
                f"by_environment: data['env'] must hold each of 0..{num_envs - 1}, it has {np.unique(envs).tolist()}"
            )

    return Source(init, next_, axis=1, validate=validate)


def _cumulative(weights: Array) -> Array:
    """Cumulative sums along the last axis that rise at positive weights only.

    XLA's parallel sum of floats is neither flat where a weight is 0 nor monotone to the last bit.
    """
    sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    return jax.lax.cummax(sums, axis=weights.ndim - 1)


def weighted(batch_size: int, weights: str | Callable[[Data], Shaped[Array, "rows"]]) -> Source:
    """Rows drawn with replacement, P(row i) = w_i / sum_j w_j.

    The cumulative weights are computed once, in ``init``, in sqrt(n) blocks: a draw picks the block and then the row,
    so that float32 keeps its resolution for millions of rows.

    Args:
      batch_size: rows of a batch.
      weights: the name of a column of Data, which is then left out of the batch (so that no loss applies it a second
        time), or a function ``data -> [rows]``. Not negative, not all zero.

    Raises:
      UsageError: the column is missing, or concrete weights are negative, not finite or all zero.
    """
    batch_size = check.count("batch_size", batch_size)

    def given_weights(data: Data) -> Array:
        return weights(data) if callable(weights) else _column(data, weights, "weighted")

    def validate(data: Data) -> None:
        known = np.asarray(given_weights(data))
        if not (np.isfinite(known).all() and (known >= 0).all() and known.sum() > 0):
            raise check.UsageError("weighted needs finite weights of at least 0, not all of them 0")

    def init(data: Data, key: Key) -> PyTree:
        given = given_weights(data)
        if not isinstance(given, jax.core.Tracer):
            validate(data)
        given = jnp.asarray(given, jnp.float32)
        if given.shape != (rows(data),):
            raise check.UsageError(f"weighted needs one weight per row, [{rows(data)}], got {list(given.shape)}")
        side = max(1, int(np.ceil(np.sqrt(given.size))))
        blocks = jnp.pad(given, (0, side * side - given.size)).reshape(side, side)
        inner = _cumulative(blocks)
        return {"inner": inner, "outer": _cumulative(inner[:, -1])}

    def next_(data: Data, source_state: PyTree, state: PyTree, step: Step, key: Key) -> tuple[PyTree, Batch]:
        inner, outer = source_state["inner"], source_state["outer"]
        # A uniform float32 is at most 1 - 2^-23, so u * total stays below total and a row of weight 0 is never drawn.
        uniform = jax.random.uniform(jax.random.fold_in(key, step), (2, batch_size), jnp.float32)
        block = jnp.searchsorted(outer, uniform[0] * outer[-1], side="right")
        cumulative = inner[block]
        within = (cumulative <= (uniform[1] * cumulative[:, -1])[:, None]).sum(1)
        kept = data if callable(weights) else {name: leaf for name, leaf in data.items() if name != weights}
        return source_state, take(kept, (block * inner.shape[1] + within).astype(jnp.int32))

    return Source(init, next_, validate=validate)


def pair(first: Source, second: Source) -> Source:
    """The batch of ``first`` with the batch of ``second`` under ``second``; the two draw independently.

    Raises:
      UsageError: the two split over devices along different axes, or the batch of ``first`` has a ``second`` already.
    """
    if first.axis != second.axis:
        raise check.UsageError(f"pair: both sources must have the same batch axis, got {first.axis} and {second.axis}")

    def init(data: Data, key: Key) -> PyTree:
        one, two = jax.random.split(key)
        return first.init(data, one), second.init(data, two)

    def join(one: Batch, two: Batch) -> Batch:
        if "second" in one:
            raise check.UsageError(
                "pair: the first source's batch has a 'second' already; nest the pair on the other side"
            )
        return {**one, "second": two}

    def next_(data: Data, source_state: PyTree, state: PyTree, step: Step, key: Key) -> tuple[PyTree, Batch]:
        keys = jax.random.split(key)
        one_state, one = first.next(data, source_state[0], state, step, keys[0])
        two_state, two = second.next(data, source_state[1], state, step, keys[1])
        return (one_state, two_state), join(one, two)

    def example(data: Data, source_state: PyTree, key: Key) -> Batch:
        keys = jax.random.split(key)
        return join(
            *(example_of(s, data, part, k) for s, part, k in zip((first, second), source_state, keys, strict=True))
        )

    def validate(data: Data) -> None:
        for source in (first, second):
            if source.validate is not None:
                source.validate(data)

    return Source(init, next_, example if first.example or second.example else None, first.axis, validate)


def views(source: Source, *transforms: Callable[[PyTree, Key], PyTree]) -> Source:
    """Augmented views of ``x``, drawn anew at every step: ``x`` becomes the first transform's, ``second`` holds the
    second's.

    Args:
      source: where the rows come from.
      transforms: one or two functions ``(x, key) -> x`` on ``[batch, ...]`` (``jaxkit.data.transforms``; ``chain``
        joins several).

    Raises:
      UsageError: no transform or more than two; two transforms where the batch has a ``second`` already.
    """
    if not 1 <= len(transforms) <= 2:
        raise check.UsageError(
            f"views takes one or two transforms, got {len(transforms)}; join several with transforms.chain"
        )

    def apply(transform: Callable[..., PyTree], x: PyTree, key: Key) -> PyTree:
        if not source.axis:
            return transform(x, key)
        return jax.vmap(transform)(x, jax.random.split(key, jax.tree.leaves(x)[0].shape[0]))  # [E, B, ...]

    def augment(batch: Batch, key: Key) -> Batch:
        x = [apply(t, batch["x"], k) for t, k in zip(transforms, jax.random.split(key, len(transforms)), strict=True)]
        if len(x) == 1:
            return {**batch, "x": x[0]}
        if "second" in batch:
            raise check.UsageError("views: the batch has a 'second' already; give one transform")
        return {**batch, "x": x[0], "second": {**batch, "x": x[1]}}

    def next_(data: Data, source_state: PyTree, state: PyTree, step: Step, key: Key) -> tuple[PyTree, Batch]:
        rows_key, augment_key = jax.random.split(key)
        source_state, batch = source.next(data, source_state, state, step, rows_key)
        return source_state, augment(batch, jax.random.fold_in(augment_key, step))

    def example(data: Data, source_state: PyTree, key: Key) -> Batch:
        return augment(example_of(source, data, source_state, jax.random.split(key)[0]), key)

    def init(data: Data, key: Key) -> PyTree:
        return source.init(data, jax.random.split(key)[0])  # the key that ``next`` gives it

    return Source(init, next_, example if source.example else None, source.axis, source.validate)


def for_layout(layout: str, batch_size: int, data: Data) -> Source:
    """The source that a method asks for by ``Method.layout``, for ``batch_size`` rows a step (at most those there are).

    ``rows``: ``epochs``; ``environments``: ``by_environment``, the rows shared out over the environments of Data;
    ``all``: ``full_batch``; ``graph``: ``full_batch(whole=True)``.

    Raises:
      UsageError: another layout, or Data without what it needs.
    """
    batch_size = check.count("batch_size", batch_size)
    if layout in ("all", "graph"):
        return full_batch(whole=layout == "graph")
    if layout == "rows":
        return epochs(min(batch_size, rows(data)))
    check.choose("layout", layout, ("rows", "environments", "all", "graph"))
    num_envs = int(np.asarray(_column(data, "env", "layout 'environments'")).max()) + 1
    return by_environment(max(1, batch_size // num_envs), num_envs)


def example_of(source: Source, data: Data, source_state: PyTree, key: Key) -> Batch:
    """A batch with the shapes that ``source`` gives, before there is a learner's state."""
    if source.example is not None:
        return source.example(data, source_state, key)
    return source.next(data, source_state, None, jnp.zeros((), jnp.int32), key)[1]


def host(open: Any, axis: int = 0) -> HostSource:
    """Batches made outside the compiled step: ``open(data, key, step)`` iterates over batches from step ``step`` on.

    What it yields must depend on (data, key, step) alone if a resumed run is to see what the first would have seen.
    """
    if not callable(open):
        raise check.UsageError(
            f"host needs a function open(data, key, step) -> iterator of batches, got {type(open).__name__}"
        )
    return HostSource(open, axis)
