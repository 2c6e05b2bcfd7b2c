"""The entries of Data from what a user gives: features, labels or targets, weights, each checked on the way in."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkit import check

TASKS = ("classification", "regression")
MAX_CLASSES = 1_000_000  # a larger label is an identifier, and as many class names would fill the memory


def array_of(values: Any, name: str) -> np.ndarray:
    """``values`` as an array; rows of different lengths raise UsageError."""
    try:
        return np.asarray(values)
    except ValueError:
        raise check.UsageError(f"{name} has rows of different lengths; give every row the same shape") from None


def float32_of(x: np.ndarray, name: str) -> np.ndarray:
    """``x`` as float32; a finite value beyond its range (3.4e38) raises UsageError rather than becoming infinite."""
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
    if x.dtype == np.float64:
        lost = np.isfinite(x) & ~np.isfinite(single)
        if lost.any():
            first = tuple(int(i) for i in np.argwhere(lost)[0])
            raise check.UsageError(
                f"{name} has {x[first]:g} in row {first[0] if first else 0}, beyond float32 (3.4e38); scale it down"
            )
    return single


def labels_of(y: Any, task: str | None = None, name: str = "y") -> tuple[np.ndarray, tuple[str, ...], str]:
    """(targets, class names, task): int32 labels or float32 targets from what was given.

    Text is numbered 0.. in alphabetical order. Whole numbers are labels and stay as they are. Floats are the targets of
    a regression; whole numbers stored as floats are refused, because they may be either, unless ``task`` says which.

    Raises:
      UsageError: see above; or the task does not fit.
    """
    y = array_of(y, name)
    task = None if task is None else check.choose("task", task, TASKS)
    if y.dtype.kind in "US" or (y.dtype == object and all(isinstance(value, str) for value in y.ravel())):
        if task == "regression":
            raise check.UsageError(f"{name} holds text; a regression needs numbers")
        _one_column(y, name)
        values, numbered = np.unique(y.astype(str), return_inverse=True)
        return numbered.astype(np.int32), tuple(values.tolist()), "classification"
    if y.dtype.kind not in "biuf":
        raise check.UsageError(f"{name} must hold numbers or text, got dtype {y.dtype}")
    if not np.isfinite(y).all():
        raise check.UsageError(f"{name} has NaN or infinity, first in row {np.argwhere(~np.isfinite(y))[0][0]}")
    if task == "regression":
        return float32_of(y, name), (), task
    if y.dtype.kind == "f":
        whole = bool((y == np.round(y)).all())
        if whole and task == "classification" and np.abs(y).max(initial=0) < MAX_CLASSES:
            return labels_of(y.astype(np.int32), task, name)
        if whole:
            raise check.UsageError(
                f"{name} holds whole numbers stored as floats; for labels pass integers (y.astype('int32')), "
                "for a regression task='regression'"
            )
        if task == "classification":
            raise check.UsageError(
                f"{name} holds floats such as {y[y != np.round(y)][0]:g}; labels are whole numbers or text"
            )
        return float32_of(y, name), (), "regression"
    _one_column(y, name)
    if y.size and y.min() < 0:
        raise check.UsageError(f"{name} has the label {y.min()}; labels are 0, 1, 2, ... (map -1/1 to 0/1)")
    if y.size and y.max() >= MAX_CLASSES:
        raise check.UsageError(
            f"{name} has the label {y.max()}; labels number the classes 0, 1, 2, ..., below {MAX_CLASSES:,}; "
            "np.unique(y, return_inverse=True)[1] numbers them"
        )
    names = tuple(map(str, range(int(y.max()) + 1))) if y.size else ()
    return y.astype(np.int32), names, "classification"


def _one_column(y: np.ndarray, name: str) -> None:
    if y.ndim != 1:
        raise check.UsageError(
            f"{name} must be one label for each row, shape [rows], got {list(y.shape)}; "
            "of one-hot rows take y.argmax(1), of a column y[:, 0]"
        )


def weights_of(weight: Any, name: str) -> np.ndarray:
    """float32 weights [rows]; negative ones, or nothing but zeros, raise UsageError."""
    values = array_of(weight, name)
    if values.dtype.kind not in "biuf":
        raise check.UsageError(f"{name} must hold numbers, got dtype {values.dtype}")
    if values.ndim != 1:
        raise check.UsageError(f"{name} must be one number for each row, shape [rows], got {list(values.shape)}")
    if (values < 0).any():
        row = np.flatnonzero(values < 0)[0]
        raise check.UsageError(f"{name} is {values[row]:g} in row {row}; weights are 0 or more")
    if values.size and not values.any():
        raise check.UsageError(f"{name} is 0 in every row; give at least one row a weight above 0")
    return float32_of(values, name)
