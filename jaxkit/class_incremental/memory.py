"""The exemplar memory: fixed arrays, of which the first slots are taken, the exemplars of a class side by side.

Its shape never changes, so that a sequence of tasks compiles once. Exemplars of a class stand in the order of herding;
to keep fewer is to keep a prefix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxkit import check
from jaxkit.class_incremental.stream import Stream
from jaxkit.learner import Data

STORAGES = ("uint8", "float32")


class Keep(NamedTuple):
    """How many exemplars are kept, and as what.

    Attributes:
      total: M for all classes together, M // K for each of K seen classes; None: ``per_class`` counts.
      per_class: exemplars of each class whatever their number; ``Keep(None, 0)`` keeps none.
      storage: ``uint8`` (x in [0, 1] as round(255 x), a byte a value) or ``float32`` (as it is, four bytes).
      partial: whether a class may have fewer rows than its exemplars (a long tail); all of them are kept then.
    """

    total: int | None = 2000
    per_class: int = 20
    storage: str = "uint8"
    partial: bool = False

    def slots(self, num_classes: int) -> int:
        """Exemplars that the memory has room for."""
        return self.per_class * num_classes if self.total is None else self.total

    def quota(self, seen: Int[Array, ""] | int) -> Any:
        """Exemplars of each class when ``seen`` classes are known; traced as ``seen`` is."""
        return self.per_class if self.total is None else self.total // seen


NOTHING = Keep(None, 0)


class Memory(NamedTuple):
    """Exemplars; slots from ``counts.sum()`` on are free.

    Attributes:
      x: [slots, ...], as stored.
      counts: int32 [classes]; the exemplars of class c are in slots ``starts(memory)[c]`` and following.
    """

    x: Array
    counts: Array


def make_keep(memory: int | Keep | None, storage: str | None = None) -> Keep:
    """What a method's ``memory`` means: a number of exemplars in all, a ``Keep``, or None for none.

    Raises:
      UsageError: numbers out of range or an unknown storage.
    """
    keep = memory if isinstance(memory, Keep) else NOTHING if memory is None else Keep(check.count("memory", memory))
    if storage is not None:
        keep = keep._replace(storage=storage)
    if keep.total is None:
        keep = keep._replace(per_class=check.count("per_class", keep.per_class, 0))
    else:
        keep = keep._replace(total=check.count("memory", keep.total))
    return keep._replace(storage=check.choose("storage", keep.storage, STORAGES))


def check_keep(keep: Keep, stream: Stream) -> Keep:
    """The same, if it holds an exemplar of every class.

    Raises:
      UsageError: a budget below one exemplar for each class.
    """
    if keep.slots(stream.num_classes) == 0:
        return keep
    if keep.quota(stream.num_classes) < 1:
        raise check.UsageError(
            f"a memory of {keep.total} exemplars is less than one for each of {stream.num_classes} classes; "
            f"take at least {stream.num_classes}"
        )
    return keep


def empty(keep: Keep, num_classes: int, x: Array) -> Memory | tuple[()]:
    """A memory without exemplars for rows like those of ``x`` [rows, ...]; () where none are ever kept."""
    slots = keep.slots(num_classes)
    if slots == 0:
        return ()
    dtype = jnp.uint8 if keep.storage == "uint8" else x.dtype
    return Memory(jnp.zeros((slots, *x.shape[1:]), dtype), jnp.zeros((num_classes,), jnp.int32))


def stored(x: Array, like: Memory) -> Array:
    """Rows as the memory holds them."""
    if like.x.dtype == x.dtype:
        return x
    return jnp.clip(jnp.round(x * 255.0), 0.0, 255.0).astype(like.x.dtype)


def read(memory: Memory, slots: Int[Array, "..."]) -> Array:
    """The exemplars in these slots, as float32 rows."""
    rows = memory.x[slots]
    return rows.astype(jnp.float32) / 255.0 if rows.dtype == jnp.uint8 else rows


def starts(counts: Int[Array, " classes"]) -> Int[Array, " classes"]:
    """The first slot (or row) of each class when the classes stand one after the other."""
    return jnp.cumsum(counts) - counts


def labels(memory: Memory) -> tuple[Int[Array, " slots"], Array]:
    """(class of each slot, whether the slot is taken)."""
    slots = jnp.arange(memory.x.shape[0], dtype=jnp.int32)
    label = jnp.searchsorted(jnp.cumsum(memory.counts), slots, side="right").astype(jnp.int32)
    taken = label < memory.counts.size
    return jnp.where(taken, label, 0), taken


def remember(
    memory: Memory, counts: Int[Array, " classes"], data: Data, chosen: Int[Array, "new rows"], old: Int[Array, ""]
) -> Memory:
    """The memory with ``counts[c]`` exemplars of each class: prefixes of what it has, and rows of Data for new classes.

    Args:
      memory: holds the classes below ``old``.
      counts: at most as many of an old class as there are.
      data: with ``x``.
      chosen: for class ``old + i`` the rows of Data in the order of herding, at least ``counts[old + i]`` of them.
      old: the classes known before; may be traced.
    """
    after = memory._replace(counts=counts)
    label, taken = labels(after)
    rank = jnp.arange(label.size, dtype=jnp.int32) - starts(counts)[label]
    slot = jnp.clip(starts(memory.counts)[label] + rank, 0, label.size - 1)
    row = chosen[jnp.clip(label - old, 0, len(chosen) - 1), jnp.clip(rank, 0, chosen.shape[1] - 1)]
    pick = lambda mask, ndim: mask.reshape(mask.shape + (1,) * (ndim - 1))
    fresh, kept = stored(jnp.asarray(data["x"])[row], memory), memory.x[slot]
    x = jnp.where(pick(label < old, kept.ndim), kept, fresh)
    return after._replace(x=jnp.where(pick(taken, x.ndim), x, jnp.zeros((), x.dtype)))


def check_rows(keep: Keep, data: Data, bounds: tuple[int, ...]) -> None:
    """Whether these training rows can be stored so; only concrete data is looked at.

    Raises:
      UsageError: values outside [0, 1] for ``uint8``, or a class with fewer rows than its exemplars.
    """
    x, y = data["x"], data["y"]
    if keep.slots(bounds[-1]) == 0 or isinstance(x, jax.core.Tracer):
        return
    if keep.storage == "uint8":
        low, high = float(np.min(x)), float(np.max(x))
        if low < 0.0 or high > 1.0:
            raise check.UsageError(
                f"exemplars are stored as uint8, for which x must lie in [0, 1]; it lies in [{low:g}, {high:g}]; "
                "scale x, or begin with Keep(..., storage='float32')"
            )
    if keep.partial:
        return
    have = np.bincount(np.asarray(y), minlength=bounds[-1])
    for low, high in zip((0, *bounds), bounds):
        rows = have[low:high]
        c = low + int(np.argmin(np.where(rows > 0, rows, rows.max() + 1)))
        if 0 < have[c] < keep.quota(high):
            raise check.UsageError(
                f"class {c} has {have[c]} rows, but {keep.quota(high)} exemplars of each class are kept when {high} "
                "classes are known; keep fewer, or take Keep(..., partial=True)"
            )
