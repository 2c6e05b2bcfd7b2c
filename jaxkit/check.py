"""Checks at the doors: one clear line that names what was wrong, what was expected and how to mend it.

Values that are traced (inside ``jax.jit``, ``vmap`` or ``grad``) pass unchecked, so that a hyper-parameter can be swept
inside one compiled program; concrete values are checked before anything runs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax


class UsageError(ValueError):
    """A mistake that the caller can mend; its message is one line and stands by itself (exit code 2)."""


def _concrete(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _float(name: str, value: Any) -> float:
    """A concrete number as a float; text is none."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number, got {value!r}") from None


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False) -> Any:
    """Return ``value`` if ``low <= value <= high`` (``low < value`` with ``open_low``); raise UsageError otherwise."""
    if not _concrete(value):
        return value
    given = _float(name, value)
    inside = (low < given if open_low else low <= given) and given <= high
    if not inside:  # a NaN is never inside
        bracket = "(" if open_low else "["
        raise UsageError(f"{name} must lie in {bracket}{low:g}, {high:g}], got {value!r}")
    return value


def positive(name: str, value: Any) -> Any:
    """Return ``value`` if it is a finite number above zero; raise UsageError otherwise."""
    if _concrete(value) and not 0 < _float(name, value) < math.inf:
        raise UsageError(f"{name} must be a finite number above 0, got {value!r}")
    return value


def fraction(name: str, value: Any) -> Any:
    """Return ``value`` if it lies in [0, 1]; raise UsageError otherwise."""
    return number(name, value, 0.0, 1.0)


def count(name: str, value: Any, low: int = 1) -> int:
    """Return ``value`` if it is an integer of at least ``low``; raise UsageError otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    if int(value) < low:
        raise UsageError(f"{name} must be at least {low}, got {int(value)}")
    return int(value)


def counts(name: str, values: Any, low: int = 1) -> tuple[int, ...]:
    """Return ``values`` as a tuple if they are integers of at least ``low``; raise UsageError otherwise."""
    if not isinstance(values, tuple | list):
        raise UsageError(f"{name} must be a tuple of whole numbers, such as ({values!r},), got {values!r}")
    return tuple(count(name, value, low) for value in values)


def seed(name: str, value: Any) -> int:
    """Return ``value`` if it is an integer in [0, 2^63), what ``jax.random.key`` takes; raise UsageError otherwise."""
    if count(name, value, 0) >= 2**63:
        raise UsageError(f"{name} must be below 2**63, got {int(value)}")
    return int(value)


def fold(name: str) -> str:
    """The form in which names are compared: lower case, with _ for - and spaces."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """Return the option that ``name`` means (any case, - or _); raise UsageError with the nearest names otherwise."""
    options = list(options)
    by_fold = {fold(option): option for option in options}
    if isinstance(name, str) and fold(name) in by_fold:
        return by_fold[fold(name)]
    near = difflib.get_close_matches(fold(str(name)), by_fold, n=3, cutoff=0.4)
    if near:
        hint = "did you mean " + " or ".join(repr(by_fold[n]) for n in near) + "?"
    else:
        hint = "known: " + ", ".join(sorted(options)[:12]) + (", ..." if len(options) > 12 else "")
    raise UsageError(f"unknown {kind} {name!r}; {hint}")
