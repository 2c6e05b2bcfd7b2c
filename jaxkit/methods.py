"""Every method of every part under one roof: ``find("ood.irm")``, or ``find("irm")`` where only one part has that name.

Parts are imported when they are asked for. Names are accepted in any case, with - or _.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import NamedTuple

from jaxkit import check
from jaxkit.learner import Method

PARTS = (
    "supervised",
    "graphs",
    "long_tailed",
    "class_incremental",
    "ood",
    "quantization",
    "large_scale",
    "reprogramming",
    "extremes",
    "rl",
    "compiler",
)


class Found(NamedTuple):
    """A method with its full name ``part.method``."""

    name: str
    method: Method


def parts() -> tuple[str, ...]:
    """The parts that are installed."""
    return tuple(part for part in PARTS if importlib.util.find_spec(f"jaxkit.{part}") is not None)


def methods_of(part: str) -> dict[str, Method]:
    """The ``METHODS`` of one part; empty for a part whose work is not Learner-shaped.

    Raises:
      UsageError: no such part, or a package that the part needs is not installed.
    """
    part = check.choose("part", part, parts())
    try:
        return getattr(importlib.import_module(f"jaxkit.{part}"), "METHODS", {})
    except ModuleNotFoundError as error:
        raise check.UsageError(f"jaxkit.{part} needs the package {error.name!r}, which is not installed") from None


def names() -> tuple[str, ...]:
    """The full names of all methods of all parts that can be imported."""
    return tuple(f"{part}.{name}" for part, methods in _importable().items() for name in methods)


def find(name: str) -> Found:
    """The method that is meant by ``part.method`` or by a bare name.

    Raises:
      UsageError: an unknown part or method (the nearest names are offered), or a bare name that several parts have.
    """
    if not isinstance(name, str):
        raise check.UsageError(f"a method is given by its name, for example 'supervised.erm', got {name!r}")
    if "." in name:
        part, bare = name.split(".", 1)
        part = check.choose("part", part, parts())
        bare = check.choose(f"method of {part}", bare, methods_of(part))
        return Found(f"{part}.{bare}", methods_of(part)[bare])
    everywhere = _importable()
    homes = {
        f"{part}.{bare}": method
        for part, methods in everywhere.items()
        for bare, method in methods.items()
        if check.fold(bare) == check.fold(name)
    }
    if len(homes) == 1:
        return Found(*next(iter(homes.items())))
    if homes:
        raise check.UsageError(f"several parts have a method {name!r}; take one of {', '.join(homes)}")
    check.choose("method", name, dict.fromkeys(bare for methods in everywhere.values() for bare in methods))
    raise AssertionError("unreachable: choose raises for a name that no part has")


def _importable() -> dict[str, dict[str, Method]]:
    """The methods of each part whose packages are installed; by its full name another part says what it lacks."""
    known = {}
    for part in parts():
        try:
            known[part] = methods_of(part)
        except check.UsageError:
            continue
    return known
