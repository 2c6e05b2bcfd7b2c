"""What can be wrong with Data, said in one line before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxkit import check
from jaxkit.learner import Data


def rows(data: Data) -> int:
    """The number of rows: the length of the leading axis that all leaves share; shapes only, so it may be called when
    traced.

    Raises:
      UsageError: Data is empty, a leaf has no axis, or two leaves have different lengths.
    """
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise check.UsageError("the data is empty; expected a dict of arrays such as {'x': features, 'y': labels}")
    lengths: dict[int, str] = {}
    for path, leaf in leaves:
        shape = np.shape(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not shape:
            raise check.UsageError(f"data {name!r} is a single number; expected an array with one row per example")
        lengths.setdefault(shape[0], name)
    if len(lengths) > 1:
        (one, first), (two, second) = list(lengths.items())[:2]
        raise check.UsageError(
            f"data {first!r} has {one} rows and {second!r} has {two}; every array needs one row per example"
        )
    return next(iter(lengths))


def _numeric(name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype == object or array.dtype.kind not in "biufcV":  # V: bfloat16 and its kin
        raise check.UsageError(
            f"data {name!r} is not numeric (dtype {array.dtype}); map text to numbers first (from_csv and from_arrays "
            f"do it for y)"
        )
    return array


def _members(name: str, what: str, values: np.ndarray, number: int | None) -> None:
    """``values`` are whole numbers in 0..number-1 and none of the groups is empty."""
    if values.ndim != 1:
        raise check.UsageError(f"data {name!r} must have shape [rows], got {list(values.shape)}")
    if values.dtype.kind not in "iu":
        raise check.UsageError(f"data {name!r} must hold whole numbers (int32), got dtype {values.dtype}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or (number is not None and high >= number):
        bound = "0 or more" if number is None else f"in 0..{number - 1}"
        bad = np.flatnonzero((values < 0) | (values >= (high + 1 if number is None else number)))
        raise check.UsageError(
            f"data {name!r} must lie {bound}, got {low}..{high} ({bad.size} rows outside, the first is row {bad[0]})"
        )
    if number is not None:
        missing = np.flatnonzero(np.bincount(values, minlength=number) == 0)
        if missing.size:
            listed = ", ".join(map(str, missing[:8])) + (", ..." if missing.size > 8 else "")
            raise check.UsageError(
                f"{what} without a row: {listed} (of {number}); give data for each, "
                "or number those that have rows 0, 1, 2, ... without a gap"
            )


def check_data(data: Any, num_classes: int | None = None, num_envs: int | None = None) -> Data:
    """Return ``data`` if it can be trained on; concrete arrays are read once, traced ones pass by shape alone.

    Args:
      data: a dict of arrays with a common leading axis; ``x`` is required and may be a pytree.
      num_classes: if given, ``y`` holds labels 0..num_classes-1, each at least once.
      num_envs: if given, ``env`` holds 0..num_envs-1, each at least once.

    Raises:
      UsageError: no ``x``, no rows, different lengths, text, NaN or infinity in a float array, labels or environments
        that are not whole numbers, out of range, or without a row.
    """
    if not isinstance(data, dict):
        raise check.UsageError(
            f"data must be a dict of arrays such as {{'x': features, 'y': labels}}, got {type(data).__name__}"
        )
    if "x" not in data:
        raise check.UsageError(f"data has no 'x'; it has {', '.join(sorted(map(str, data))) or 'nothing'}")
    if rows(data) == 0:
        raise check.UsageError("the data has no rows")
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if isinstance(leaf, jax.core.Tracer):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = _numeric(name, leaf)
        if array.dtype.kind in "fcV":
            finite = np.isfinite(array.astype(np.float32) if array.dtype.kind == "V" else array)
            if not finite.all():
                bad = np.unique(np.nonzero(~finite)[0])
                raise check.UsageError(
                    f"data {name!r} has NaN or infinity in {bad.size} of {len(array)} rows (the first is row "
                    f"{bad[0]}); "
                    "remove or fill them"
                )
    if num_classes == 1:
        raise check.UsageError("data 'y' has one class only; a classifier needs rows of two classes or more")
    for name, what, number in (("y", "classes", num_classes), ("env", "environments", num_envs)):
        if number is not None and name not in data:
            raise check.UsageError(
                f"data has no {name!r}, which {what} are read from; it has {', '.join(sorted(data))}"
            )
        wanted = name in data and (number is not None or name == "env")
        if wanted and not isinstance(data[name], jax.core.Tracer):
            _members(name, what, np.asarray(data[name]), number)
    return data
