"""What a class-incremental state holds besides the network, and which rows a step sees."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxkit import check
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.memory import Keep, Memory
from jaxkit.class_incremental.stream import Stream
from jaxkit.data import permuted
from jaxkit.data.transforms import Transform
from jaxkit.learner import Batch, Data, Key, PyTree, Source, TrainState

POOLS = ("new", "replay", "exemplars", "all", "validation")
"""Which rows a phase sees: of the new classes; and the exemplars of old classes; exemplars alone; all rows of the
classes seen so far (joint training); the rows that ``held`` keeps back."""


class Task(NamedTuple):
    """``TrainState.extra`` of every method here: where in the stream the model is, and what it carries along.

    Attributes:
      number: int32, tasks begun less one; -1 before the first.
      old, seen: int32, the classes known before the task and with it.
      memory: the exemplars, or ().
      means: [classes, features], the class means of the nearest-mean read-out as of the end of the last task.
      teacher: (params, variables) of the model before the task, or ().
      own: the method's arrays.
    """

    number: Array
    old: Array
    seen: Array
    memory: Memory | tuple[()]
    means: Array
    teacher: PyTree
    own: PyTree


class Groups(NamedTuple):
    """The rows of Data by class: class c has the rows ``order[starts[c] : starts[c] + counts[c]]``."""

    order: Int[Array, " rows"]
    counts: Int[Array, " classes"]
    starts: Int[Array, " classes"]


def grouped(y: Int[Array, " rows"], num_classes: int) -> Groups:
    """The rows of each class, in their order in Data."""
    y = jnp.asarray(y)
    counts = jnp.bincount(y, length=num_classes).astype(jnp.int32)
    return Groups(jnp.argsort(y, stable=True).astype(jnp.int32), counts, memories.starts(counts))


def rows_of_new(groups: Groups, old: Int[Array, ""], width: int, most: int) -> tuple[Array, Array]:
    """(rows of Data, whether they are there) of the classes old..old + width - 1, each [width, most]."""
    classes = old + jnp.arange(width, dtype=jnp.int32)
    there = classes < groups.counts.size
    classes = jnp.where(there, classes, 0)
    rank = jnp.arange(most, dtype=jnp.int32)
    valid = (rank < groups.counts[classes, None]) & there[:, None]
    place = jnp.where(valid, groups.starts[classes, None] + rank, 0)
    return groups.order[place], valid


def held_back(counts: Int[Array, " classes"], share: float) -> Int[Array, " classes"]:
    """How many rows of each class are kept back for validation: floor(share n), of two rows at least one."""
    return jnp.where(counts > 1, jnp.maximum((share * counts).astype(jnp.int32), 1), 0)


def pool_counts(
    pool: str, task: Task, groups: Groups, held: float = 0.0
) -> tuple[Int[Array, " classes"], Array, Int[Array, " classes"]]:
    """(rows of each class in the pool, whether they are exemplars, the first of them within its class), each [C].

    Of the rows of a class, of ``held`` > 0, the pool ``validation`` has the last ones, as many of a new class as an old
    one keeps back and none in the first task, and ``replay`` the others.
    """
    place = jnp.arange(groups.counts.size)
    new = (place >= task.old) & (place < task.seen)
    kept = task.memory.counts if isinstance(task.memory, Memory) else jnp.zeros_like(groups.counts)
    nothing, first = jnp.zeros_like(groups.counts), jnp.zeros_like(groups.counts)
    if pool == "new":
        return jnp.where(new, groups.counts, 0), jnp.zeros_like(new), first
    if pool == "all":
        return jnp.where(place < task.seen, groups.counts, 0), jnp.zeros_like(new), first
    if pool == "exemplars":
        return jnp.where(place < task.seen, kept, 0), jnp.ones_like(new), first
    counts = jnp.where(new, groups.counts, jnp.where(place < task.old, kept, 0))
    if not held:
        return counts, ~new, first
    back = jnp.where(place < task.old, held_back(kept, held), nothing)
    back = jnp.where(new & (task.old > 0), jnp.minimum(back.max(), counts - 1), back)
    return (back, ~new, counts - back) if pool == "validation" else (counts - back, ~new, first)


def pool_source(
    pool: str,
    batch_size: int,
    stream: Stream,
    keep: Keep,
    *,
    augment: Transform | None = None,
    held: float = 0.0,
) -> Source:
    """Every row of the pool once per epoch of floor(n / B) steps, in an order that differs from epoch to epoch; a pool
    of fewer than B rows is gone through more than once within a batch.

    The pool is that of the task at which the state is, so that one source serves all tasks. ``index`` is the row in
    Data, and for an exemplar the number of rows in Data plus its slot.

    Args:
      pool: one of ``POOLS``.
      batch_size: B.
      stream: the classes.
      keep: what is stored, for the checks.
      augment: ``(x, key) -> x`` on the batch.
      held: the share of the rows of each class that is left to the pool ``validation``.
    """
    pool, batch_size = check.choose("pool", pool, POOLS), check.count("batch_size", batch_size)

    def draw(data: Data, groups: Groups, state: TrainState, position: Array, key: Key, step: Array) -> Batch:
        task = state.extra
        counts, remembered, first = pool_counts(pool, task, groups, held)
        total, ends = jnp.maximum(counts.sum(), 1), jnp.cumsum(counts)
        epoch, place = jnp.divmod(step, jnp.maximum(total // batch_size, 1))
        at = permuted((place * batch_size + position) % total, jax.random.fold_in(key, epoch), total)
        label = jnp.searchsorted(ends, at, side="right").astype(jnp.int32)
        within = at - (ends - counts)[label] + first[label]
        exemplar = remembered[label]
        row = groups.order[jnp.where(exemplar, 0, groups.starts[label] + within)]
        x, index = jnp.asarray(data["x"])[row], row
        if isinstance(task.memory, Memory):
            slot = jnp.where(exemplar, memories.starts(task.memory.counts)[label] + within, 0)
            mask = exemplar.reshape((-1,) + (1,) * (x.ndim - 1))
            x = jnp.where(mask, memories.read(task.memory, slot).astype(x.dtype), x)
            index = jnp.where(exemplar, len(data["y"]) + slot, row)
        if augment is not None:
            x = augment(x, jax.random.fold_in(jax.random.fold_in(key, step), 1))
        return {"x": x, "y": label, "index": index}

    def next_(data: Data, groups: Groups, state: TrainState, step: Any, key: Key) -> tuple[Groups, Batch]:
        position = jnp.arange(batch_size, dtype=jnp.int32)
        return groups, draw(data, groups, state, position, key, jnp.asarray(step, jnp.int32))

    def example(data: Data, groups: Groups, key: Key) -> Batch:
        rows = jnp.zeros((batch_size,), jnp.int32)
        return {"x": jnp.asarray(data["x"])[rows], "y": rows, "index": rows}

    def validate(data: Data) -> None:
        labels = np.asarray(data["y"])
        if labels.min() < 0 or labels.max() >= stream.num_classes:
            raise check.UsageError(
                f"data['y'] must be places in a stream of {stream.num_classes} classes, got "
                f"{labels.min()}..{labels.max()}"
            )
        memories.check_rows(keep, data, stream.bounds if stream.room is None else (stream.room,))

    return Source(lambda data, key: grouped(data["y"], stream.num_classes), next_, example, validate=validate)
