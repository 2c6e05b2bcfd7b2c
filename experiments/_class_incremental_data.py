"""The data of the class-incremental study: of every order of the classes its training rows and its test rows.

Order i draws which class comes when, which rows are held out where a data set has no test rows, and which class is
large on a long tail. All methods see the same orders, so that their differences are paired.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _long_tailed_data as pools
from experiments.runner import Skip
from jaxkit import check
from jaxkit import class_incremental as cil
from jaxkit.class_incremental.stream import SURVEY_SEED
from jaxkit.data.shifts import draw_classes, long_tail_counts, select

KEY = 1993
HELD_OUT = 50  # digits of each class
TEST_ROWS = 300  # of each class, the first of the official ones
ELSEWHERE = {
    "cifar100": "no card of jaxkit.data has CIFAR-100; as x and y in an .npz file it is --data FILE --increment 10",
}
CARDS = {"cifar10": "cifar10_lt"}
"""Settings that read the pool of another name."""

Part = dict[str, np.ndarray]


class Task(NamedTuple):
    """The data of a setting for all its orders.

    Attributes:
      train, test: x [orders, rows, ...] and y [orders, rows], the places of the classes in the stream.
      stream: which places come with which task.
      orders: [orders, classes], the class at each place.
      storage: of exemplars, a byte a value where all values lie in [0, 1].
      names: of the classes; empty where they are numbers.
      source: where the test rows come from, in words.
    """

    train: Part
    test: Part
    stream: cil.Stream
    orders: np.ndarray
    storage: str
    names: tuple[str, ...]
    source: str


@functools.lru_cache(maxsize=1)
def pool_of(name: str) -> tuple[Part, Part | None, str] | str:
    """The rows of a data set (training rows, test rows or None, in words), or why they cannot be had."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    try:
        train, test, said = pools.READERS[CARDS.get(name, name)]()
    except check.UsageError as error:
        return str(error)
    if test is not None and len(test["y"]) > 10 * TEST_ROWS and name == "fashion_mnist":
        chosen = np.concatenate([np.flatnonzero(test["y"] == c)[:TEST_ROWS] for c in range(10)])
        return train, select(test, chosen), f"the first {TEST_ROWS} official test rows of each class"
    return train, test, said


@functools.lru_cache(maxsize=1)
def task_of(
    name: str, orders: int, rows: int | None, increment: int, base: int, imbalance: float | None, share: int = HELD_OUT
) -> Task:
    """The task of a data set.

    Args:
      name: of the setting.
      orders: how many.
      rows: of each class at most; None: all.
      increment, base: of the stream.
      imbalance: of a long tail of the classes; None: as they are.
      share: rows of each class that are held out, where a data set has no test rows.

    Raises:
      Skip: the data is not here.
    """
    found = pool_of(name)
    if isinstance(found, str):
        raise Skip(found)
    pool, held, source = found
    parts, chosen = [], []
    for number in range(orders):
        train, test = (pool, held) if held is not None else split(pool, np.random.default_rng(number), share)
        train = cut(train, number, rows, imbalance)
        order = cil.class_order(int(pool["y"].max()) + 1, SURVEY_SEED + number)
        parts.append((cil.in_order(train, order), cil.in_order(test, order)))
        chosen.append(order)
    return stacked(parts, chosen, increment, base, (), source)


def split(rows: Part, random: np.random.Generator, number: int) -> tuple[Part, Part]:
    """(the others, held out): ``number`` rows of each class, drawn without replacement."""
    classes = range(int(rows["y"].max()) + 1)
    drawn = np.concatenate([random.permutation(np.flatnonzero(rows["y"] == c))[:number] for c in classes])
    mask = np.zeros(len(rows["y"]), bool)
    mask[drawn] = True
    return select(rows, ~mask), select(rows, mask)


def cut(train: Part, number: int, rows: int | None, imbalance: float | None) -> Part:
    """At most ``rows`` of each class; or a long tail from so many on, whose classes' ranks the order draws."""
    if rows is None and imbalance is None:
        return train
    have = np.bincount(train["y"])
    largest = int(have.min()) if rows is None else min(rows, int(have.min()))
    counts = long_tail_counts(have.size, largest, imbalance or 1.0)
    rank = np.random.default_rng(number).permutation(have.size)
    return draw_classes(train, jax.random.fold_in(jax.random.key(KEY), number), counts[rank])


def stacked(
    parts: list[tuple[Part, Part]], orders: list[np.ndarray], increment: int, base: int, names: Any, source: str
) -> Task:
    """The orders side by side; the stream has room for the largest class of any."""
    streams = [cil.make_stream(train["y"], increment, base) for train, _ in parts]
    stream = streams[0]._replace(most_rows=max(one.most_rows for one in streams))
    each = lambda side: {key: np.stack([np.asarray(one[side][key]) for one in parts]) for key in ("x", "y")}
    train, test = each(0), each(1)
    storage = "uint8" if 0.0 <= train["x"].min() and train["x"].max() <= 1.0 else "float32"
    return Task(train, test, stream, np.stack(orders), storage, tuple(names), source)


@functools.lru_cache(maxsize=1)
def own_task(path: Path, checksum: str, orders: int, increment: int, base: int) -> Task:
    """The user's rows, a fifth of each class held out for each order; bad data is said as by the long-tailed study."""
    found = pools.own_task(path, checksum, orders)
    classes = found.counts.size
    cil.bounds_of(classes, increment, base)
    parts, chosen = [], []
    for number in range(orders):
        order = cil.class_order(classes, SURVEY_SEED + number)
        pick = lambda part: {key: part[key][number] for key in ("x", "y")}
        parts.append((cil.in_order(pick(found.train), order), cil.in_order(pick(found.test), order)))
        chosen.append(order)
    return stacked(parts, chosen, increment, base, found.names, found.source)
