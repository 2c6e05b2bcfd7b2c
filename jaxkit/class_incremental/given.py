"""Rows and labels as a user gives them: checked, scaled, and the labels taken for what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxkit import check
from jaxkit.data import from_arrays
from jaxkit.data.entries import array_of

MOST_PROBES = 20
"""Rows of a class that are held back at most."""


class Format(NamedTuple):
    """What rows look like.

    Attributes:
      shape: of one row.
      scaled: whether they come as uint8 and are divided by 255.
    """

    shape: tuple[int, ...]
    scaled: bool

    def read(self, x: Any) -> Float[np.ndarray, "rows ..."]:
        """Rows as the network takes them.

        Raises:
          UsageError: no rows, another shape or kind, or a value that is not finite.
        """
        x = array_of(x, "x")
        if x.ndim == 0 or x.shape[1:] != self.shape:
            hint = "; for one row pass x[None]" if x.shape == self.shape else ""
            raise check.UsageError(
                f"x must have the shape (rows, {', '.join(map(str, self.shape))}) of the rows learnt so far, got "
                f"{x.shape}{hint}"
            )
        if self.scaled != (x.dtype == np.uint8):
            wanted = "uint8 (0..255)" if self.scaled else "not uint8; scale x as it was then"
            raise check.UsageError(f"x is {x.dtype}; the rows learnt so far were {wanted}")
        return from_arrays(x)[0]["x"]

    def store(self, x: Float[np.ndarray, "rows ..."]) -> np.ndarray:
        """The inverse of ``read``."""
        return np.round(x * np.float32(255)).astype(np.uint8) if self.scaled else x


def format_of(x: Any) -> Format:
    """What these rows look like.

    Raises:
      UsageError: x has no axis beside that of its rows, or no rows.
    """
    x = array_of(x, "x")
    if x.ndim < 2:
        raise check.UsageError(f"x must have the shape (rows, ...), got {x.shape}; of single numbers take x[:, None]")
    return Format(x.shape[1:], x.dtype == np.uint8)


def labels(y: Any, rows: int) -> np.ndarray:
    """Labels as int64 or text, [rows].

    Raises:
      UsageError: labels that are neither whole numbers nor text, or not one for each row.
    """
    y = array_of(y, "y")
    if y.dtype == object and all(isinstance(value, str) for value in y.ravel()):
        y = y.astype(str)
    if y.dtype.kind not in "iuU":
        hint = "; of whole numbers stored as floats take y.astype('int64')" if y.dtype.kind == "f" else ""
        raise check.UsageError(f"y must hold labels, whole numbers or text, got dtype {y.dtype}{hint}")
    if y.shape != (rows,):
        raise check.UsageError(f"y must have one label for each of {rows} rows, got the shape {y.shape}")
    if y.dtype.kind == "u" and y.size and y.max() > np.iinfo(np.int64).max:
        raise check.UsageError(f"y holds {y.max()}, which is above the largest int64; give smaller numbers, or text")
    return y if y.dtype.kind == "U" else y.astype(np.int64)


def of_one_kind(y: np.ndarray, known: Sequence[Any]) -> None:
    """Text and numbers are not mixed among the labels of a model."""
    if known and isinstance(known[0], str) != (y.dtype.kind == "U"):
        kinds = ("text", "whole numbers") if isinstance(known[0], str) else ("whole numbers", "text")
        raise check.UsageError(f"the labels learnt so far are {kinds[0]} such as {known[0]!r}; y holds {kinds[1]}")


def places(y: np.ndarray, known: Sequence[Any]) -> Int[np.ndarray, " rows"]:
    """The places of labels in the stream.

    Raises:
      UsageError: a label that is not known.
    """
    of_one_kind(y, known)
    at = {label: place for place, label in enumerate(known)}
    strange = next((label for label in np.unique(y).tolist() if label not in at), None)
    if strange is not None:
        raise check.UsageError(f"class {strange!r} is not known; known are {', '.join(map(repr, known[:12]))}")
    return np.asarray([at[label] for label in y.tolist()], np.int32)


def probe_mask(y: Int[np.ndarray, " rows"], share: float, seed: Sequence[int]) -> Bool[np.ndarray, " rows"]:
    """Which rows are held back: of each class the share, rounded, at least one and at most ``MOST_PROBES``, drawn at
    random; none where the share is 0."""
    mask, generator = np.zeros(len(y), bool), np.random.default_rng(list(seed))
    for place in np.unique(y) if share else ():
        members = np.flatnonzero(y == place)
        count = min(max(round(share * len(members)), 1), MOST_PROBES)
        mask[generator.permutation(members)[:count]] = True
    return mask


def new_classes(y: np.ndarray, known: tuple, bounds: tuple[int, ...]) -> tuple:
    """The classes of a task in alphabetical or numerical order.

    Raises:
      UsageError: one of them is known already.
    """
    of_one_kind(y, known)
    names = tuple(np.unique(y).tolist())
    twice = next((name for name in names if name in known), None)
    if twice is not None:
        task = int(np.searchsorted(bounds, known.index(twice), side="right")) + 1
        raise check.UsageError(f"class {twice!r} was learnt in task {task}; learn() takes new classes only")
    return names


def check_rows(
    y: Int[np.ndarray, " rows"], held: Bool[np.ndarray, " rows"], classes: Sequence[Any], quota: int
) -> None:
    """Whether each class has the rows that are held back, ``quota`` to keep as exemplars, and one to train on.

    Raises:
      UsageError: a class with fewer.
    """
    for place in np.unique(y):
        rows, back = int((y == place).sum()), int(held[y == place].sum())
        if rows - back < max(quota, 1):
            kept = f"{quota} are kept as exemplars" if quota else "one at least is trained on"
            raise check.UsageError(
                f"class {classes[place]!r} has {rows} row{'s' * (rows != 1)}; {back} {'is' if back == 1 else 'are'} "
                f"held back and {kept}: give more rows of it, or start with a smaller memory or probe"
            )


def plain(value: Any) -> bool:
    """Whether JSON holds a value as it is, with lists for tuples."""
    if isinstance(value, tuple):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


def tupled(value: Any) -> Any:
    """A value with tuples for lists, and Python's numbers for NumPy's."""
    value = value.item() if isinstance(value, np.generic) else value
    return tuple(map(tupled, value)) if isinstance(value, list) else value
