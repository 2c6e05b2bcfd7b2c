"""Splits that are a function of the labels alone: the same rows on every machine, with no generator behind them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxkit import check


def spaced(total: int, chosen: int) -> np.ndarray:
    """A mask with ``chosen`` of ``total`` places True, evenly spaced: place i is True when floor((i+1) c / n) > floor(i
    c / n)."""
    steps = np.arange(total + 1, dtype=np.int64) * chosen // max(total, 1)
    return np.diff(steps) > 0


def stratified(y: np.ndarray, chosen: int | dict[int, int], names: Sequence[str] = ()) -> np.ndarray:
    """A mask of test rows: of each class ``chosen`` rows, evenly spaced over its rows in their order.

    Args:
      y: labels, [rows].
      chosen: test rows for each class, or one number for all.
      names: of the classes, for the error message.

    Raises:
      UsageError: a class would have no training row left.
    """
    mask = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        number = chosen[int(label)] if isinstance(chosen, dict) else chosen
        if number >= len(members):
            raise check.UsageError(
                f"class {names[label] if len(names) > label else label} has {_rows(len(members))}; {_rows(number)} for "
                "testing would leave none to train on; give more rows of it, or drop the class"
            )
        mask[members] = spaced(len(members), number)
    return mask


def _rows(number: int) -> str:
    return f"{number} row{'s' * (number != 1)}"


def test_mask(y: np.ndarray, fraction: float, labels: bool, names: Sequence[str] = ()) -> np.ndarray:
    """A mask of test rows: ``fraction`` of the rows (of each class if ``labels``), rounded, at least one.

    Raises:
      UsageError: the fraction is not in (0, 1), or a class has fewer than two rows.
    """
    check.number("test_fraction", fraction, 0.0, 1.0, open_low=True)
    part = lambda n: max(1, round(n * fraction))
    if labels:
        values, counts = np.unique(y, return_counts=True)
        return stratified(y, {int(v): part(int(c)) for v, c in zip(values, counts, strict=True)}, names)
    if part(len(y)) >= len(y):
        raise check.UsageError(f"test_fraction={fraction} of {_rows(len(y))} leaves none to train on")
    return spaced(len(y), part(len(y)))
