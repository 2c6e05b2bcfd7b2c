"""Shifts as functions of (data, key): long tails, class streams, coloured and rotated environments, noisy labels,
missing values.

Shifts that choose rows (``long_tail``, ``class_stream``) change shapes: they run on the host, on NumPy arrays, before
training. The others keep shapes and may run inside jit. Which rows, colours or labels are drawn is a function of the
key alone.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.data.checks import rows
from jaxkit.learner import Data, Key

PROFILES = ("exponential", "step", "pareto")
"""The profiles of ``long_tail_counts``."""


def long_tail_counts(
    num_classes: int, largest: int, imbalance: float, profile: str = "exponential", *, power: float = 6.0
) -> np.ndarray:
    """Rows of each class on a long tail, rounded down; rho = n_max / n_min >= 1.

    * ``exponential``: n_c = n_max rho^(-c / (C - 1)), the CIFAR-LT sets (Cui et al. 2019; Cao et al. 2019).
    * ``step``: n_max for the first half of the classes (rounded up), n_max / rho for the others (Buda et al. 2018).
    * ``pareto``: n_c = n_max (1 + (rho^(1/alpha) - 1) c / (C - 1))^(-alpha), the tail of a Pareto law of type II from
      n_max to n_max / rho; the exponential profile as alpha grows. Liu et al. 2019 sample ImageNet-LT and Places-LT by
      "the Pareto distribution with the power value alpha = 6" and publish lists of files, not a formula: this one with
      ImageNet-LT's 1280 to 5 images a class gives 166,769 images, the list has 115,846.

    Args:
      num_classes: C.
      largest: n_max, the rows of class 0.
      imbalance: rho.
      profile: one of ``PROFILES``.
      power: alpha of ``pareto``.

    Returns:
      int, [C]; never less than 1.

    Raises:
      UsageError: a number out of range, or an unknown profile.
    """
    num_classes, largest = check.count("num_classes", num_classes), check.count("largest", largest)
    check.number("imbalance", imbalance, 1.0)
    profile = check.choose("profile", profile, PROFILES)
    check.positive("power", power)
    rho, alpha = float(imbalance), float(power)
    place = np.arange(num_classes) / max(num_classes - 1, 1)
    if profile == "exponential":
        share = rho**-place
    elif profile == "step":
        share = np.where(np.arange(num_classes) < num_classes - num_classes // 2, 1.0, 1.0 / rho)
    else:
        share = (1.0 + (rho ** (1.0 / alpha) - 1.0) * place) ** -alpha
    # 1e-9 guards a whole number that comes out a rounding error below itself.
    return np.maximum(np.floor(largest * share + 1e-9), 1).astype(np.int64)


def balanced_counts(class_counts: Int[np.ndarray, " classes"]) -> np.ndarray:
    """The balanced twin of a long tail: floor(N / C) rows of every class, N = sum_c n_c; at most C - 1 rows fewer."""
    class_counts = np.asarray(class_counts)
    share = int(class_counts.sum()) // class_counts.size
    if share < 1:
        raise check.UsageError(
            f"balanced_counts: {int(class_counts.sum())} rows give none to each of {class_counts.size} classes"
        )
    return np.full(class_counts.shape, share, np.int64)


def select(data: Data, chosen: np.ndarray) -> Data:
    """The rows ``chosen`` (indices or a mask) of every leaf, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[np.asarray(chosen)], data)


def draw_classes(data: Data, key: Key, class_counts: Int[np.ndarray, " classes"]) -> Data:
    """``class_counts[c]`` rows of each class c, drawn without replacement; their order is kept.

    With one key, fewer rows of a class are among its more rows, whatever the counts of the other classes.

    Args:
      data: with labels ``y``.
      key: chooses the rows.
      class_counts: how many, [C]; 0 leaves a class out.

    Raises:
      UsageError: a class has fewer rows than asked for, or labels lie beyond C.
    """
    y, wanted = np.asarray(data["y"]), np.asarray(class_counts)
    num_classes = wanted.size
    if y.min() < 0 or y.max() >= num_classes:
        raise check.UsageError(f"draw_classes: labels must lie in 0..{num_classes - 1}, got {y.min()}..{y.max()}")
    have = np.bincount(y, minlength=num_classes)
    short = np.flatnonzero(have < wanted)
    if short.size:
        c = int(short[0])
        raise check.UsageError(
            f"draw_classes: class {c} has {have[c]} rows, the profile asks for {wanted[c]}; lower largest"
        )
    kept = []
    for c in range(num_classes):
        members = np.flatnonzero(y == c)
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, c), len(members)))
        kept.append(members[order[: wanted[c]]])
    return select(data, np.sort(np.concatenate(kept)))


def long_tail(
    data: Data,
    key: Key,
    *,
    num_classes: int,
    imbalance: float,
    largest: int | None = None,
    profile: str = "exponential",
    power: float = 6.0,
    order: Int[np.ndarray, " ranks"] | None = None,
) -> Data:
    """Cut the classes to a profile.

    Args:
      data: with labels ``y``.
      key: chooses the rows that stay in each class; their order is kept.
      num_classes: C.
      imbalance: rho, the largest class over the smallest.
      largest: n_max; None: the rows of the smallest class of ``data``, so that every class can follow the profile.
      profile: of ``long_tail_counts``, as is ``power``.
      order: the classes from the largest to the smallest; None: 0..C-1.

    Raises:
      UsageError: a class has fewer rows than the profile asks for, labels beyond C, or an unknown profile.
    """
    if largest is None:
        largest = int(np.bincount(np.asarray(data["y"]), minlength=num_classes).min())
    by_rank = long_tail_counts(num_classes, largest, imbalance, profile, power=power)
    return draw_classes(data, key, in_order(by_rank, order))


def in_order(by_rank: Int[np.ndarray, " classes"], order: Int[np.ndarray, " ranks"] | None) -> np.ndarray:
    """Counts by class from counts by rank: class ``order[r]`` gets ``by_rank[r]``; None is 0..C-1.

    Raises:
      UsageError: ``order`` is no permutation of the classes.
    """
    if order is None:
        return by_rank
    order = np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(by_rank.size)):
        raise check.UsageError(f"order must hold each of 0..{by_rank.size - 1} once, got {order.tolist()}")
    counts = np.empty_like(by_rank)
    counts[order] = by_rank
    return counts


class Stream(NamedTuple):
    """A class-incremental stream.

    Attributes:
      order: the classes in the order in which they come, [C].
      tasks: the classes of each task, by their old labels.
      data: the rows of each task; ``y`` counts classes in the order of the stream, so task t holds the labels that
        follow those of the tasks before it.
    """

    order: np.ndarray
    tasks: tuple[tuple[int, ...], ...]
    data: tuple[Data, ...]


def class_stream(
    data: Data, key: Key | None, *, num_classes: int, increment: int, initial: int | None = None
) -> Stream:
    """Split the classes into tasks: ``initial`` classes, then ``increment`` at a time. (Zhou et al. 2024: B-m, Inc-n.)

    Args:
      data: with labels ``y``.
      key: shuffles the classes; None: their own order. Training and test rows take the same key.
      num_classes: C.
      increment: classes of each task after the first.
      initial: classes of the first task; None: ``increment``.

    Raises:
      UsageError: the classes do not divide into the tasks.
    """
    num_classes, increment = check.count("num_classes", num_classes), check.count("increment", increment)
    initial = increment if initial is None else check.count("initial", initial)
    if initial > num_classes or (num_classes - initial) % increment:
        raise check.UsageError(
            f"class_stream: {num_classes} classes do not divide into {initial} and then {increment} at a time"
        )
    order = np.arange(num_classes) if key is None else np.asarray(jax.random.permutation(key, num_classes))
    y = np.asarray(data["y"])
    if y.min() < 0 or y.max() >= num_classes:
        raise check.UsageError(f"class_stream: labels must lie in 0..{num_classes - 1}, got {y.min()}..{y.max()}")
    place = np.argsort(order).astype(np.int32)[y]  # the position of each row's class in the stream
    bounds = [0, *range(initial, num_classes + 1, increment)]
    parts, tasks = [], []
    for low, high in itertools.pairwise(bounds):
        parts.append(select({**data, "y": place}, (place >= low) & (place < high)))
        tasks.append(tuple(int(c) for c in order[low:high]))
    return Stream(order, tuple(tasks), tuple(parts))


def label_noise(data: Data, key: Key, *, num_classes: int, rate: float | Array) -> Data:
    """Symmetric label noise: with probability ``rate`` a label becomes another one, uniformly. ``clean`` keeps the true
    labels.

    P(y' = k | y) = 1 - rate for k = y and rate / (C - 1) for each other k. (Patrini et al. 2017.)
    """
    if check.count("num_classes", num_classes) < 2:
        raise check.UsageError("label_noise needs at least two classes")
    check.fraction("rate", rate)
    y = jnp.asarray(data["y"], jnp.int32)
    flip_key, other_key = jax.random.split(key)
    flipped = jax.random.bernoulli(flip_key, rate, y.shape)
    other = (y + jax.random.randint(other_key, y.shape, 1, num_classes)) % num_classes
    return {**data, "y": jnp.where(flipped, other, y), "clean": y}


def missing(data: Data, key: Key, *, rate: float | Array, fill: float = 0.0) -> Data:
    """Missing completely at random: every element of ``x`` is lost with probability ``rate`` and becomes ``fill``.

    ``observed`` (bool, the shape of x) is False where it was lost.
    """
    check.fraction("rate", rate)
    x = jnp.asarray(data["x"])
    observed: Bool[Array, "..."] = ~jax.random.bernoulli(key, rate, x.shape)
    return {**data, "x": jnp.where(observed, x, jnp.asarray(fill, x.dtype)), "observed": observed}


def environments(size: int, num_envs: int) -> Int[Array, " rows"]:
    """Row i belongs to environment i mod E, as in the published code of ColoredMNIST."""
    return jnp.arange(size, dtype=jnp.int32) % check.count("num_envs", num_envs)


def coloured(
    data: Data,
    key: Key,
    *,
    disagreement: tuple[float, ...] = (0.2, 0.1),
    flip: float = 0.25,
    num_classes: int = 10,
) -> Data:
    """ColoredMNIST: a binary label, noisy, and a colour that predicts it better than the shape, by an amount that
    differs per environment.

    The label is 1 for the upper half of the classes, then flipped with probability ``flip``; the colour (``attribute``)
    is the label flipped with probability e of the environment. A grey image [rows, h, w, 1] becomes [rows, h, w, 2]
    with the pixels in the channel of its colour. The published training environments are e = 0.2 and 0.1, the test
    environment e = 0.9.

    Args:
      data: grey images ``x`` and labels ``y``.
      key: of flips and colours.
      disagreement: e of each environment; rows go to environments in turn.
      flip: the label noise.
      num_classes: of ``y``.

    Source: Arjovsky et al. 2019, section 5.2. There red is channel 0 (attribute 0).
    """
    for e in (*disagreement, flip):
        check.fraction("disagreement and flip", e)
    x = jnp.asarray(data["x"])
    if x.ndim != 4 or x.shape[-1] != 1:
        raise check.UsageError(f"coloured needs grey images [rows, height, width, 1], got {list(x.shape)}")
    label_key, colour_key = jax.random.split(key)
    env = environments(rows(data), len(disagreement))
    shape = (x.shape[0],)
    y = (jnp.asarray(data["y"]) >= num_classes // 2) ^ jax.random.bernoulli(label_key, flip, shape)
    colour = y ^ jax.random.bernoulli(colour_key, jnp.asarray(disagreement, jnp.float32)[env], shape)
    channel = jax.nn.one_hot(colour.astype(jnp.int32), 2, dtype=x.dtype)[:, None, None, :]
    return {**data, "x": x * channel, "y": y.astype(jnp.int32), "env": env, "attribute": colour.astype(jnp.int32)}


def rotate(x: Float[Array, "height width channels"], degrees: float | Array) -> Float[Array, "height width channels"]:
    """An image rotated counter-clockwise about its centre, bilinear, zeros outside."""
    height, width = x.shape[:2]
    turn = jnp.asarray(degrees, jnp.float32) * (np.pi / 180)
    down, right = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2,
        jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2,
        indexing="ij",
    )
    source = (
        jnp.cos(turn) * down + jnp.sin(turn) * right + (height - 1) / 2,
        jnp.cos(turn) * right - jnp.sin(turn) * down + (width - 1) / 2,
    )
    sample = lambda channel: jax.scipy.ndimage.map_coordinates(channel, source, order=1, mode="constant")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(x)


def rotated(data: Data, *, degrees: tuple[float, ...] = (0.0, 15.0, 30.0, 45.0, 60.0, 75.0)) -> Data:
    """RotatedMNIST: rows go to environments in turn, and environment e is rotated by ``degrees[e]``. (Ghifary et al.
    2015.)"""
    x = jnp.asarray(data["x"], jnp.float32)
    if x.ndim != 4:
        raise check.UsageError(f"rotated needs images [rows, height, width, channels], got {list(x.shape)}")
    env = environments(rows(data), len(degrees))
    return {**data, "x": jax.vmap(rotate)(x, jnp.asarray(degrees, jnp.float32)[env]), "env": env}
