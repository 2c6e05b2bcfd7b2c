"""The data of the long-tailed study: long tails, balanced twins and test rows of every seed, from cards or the user.

The classes of every seed are numbered from the largest to the smallest, so that all seeds have the same class counts:
then all seeds of a method are one compiled program, and seed i of every method sees the same rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.runner import Skip
from jaxkit import check, data, fetch, long_tailed, networks
from jaxkit.data.shifts import select
from jaxkit.networks.features import features
from jaxkit.networks.vision import efficientnet

KEY = 2023
HELD_OUT = 50  # digits of each class
LARGEST_IMAGE = 64
FEATURE_SIZE = 128  # pixels a side that EfficientNet sees
NORM = 4.0  # of features, so that one learning rate serves all settings
FEATURE_ROWS = {"train": 500, "test": 100}  # rows of a class, the first of the file
FEATURE_CHUNK = 5000  # pictures that are held at that size at once


class Task(NamedTuple):
    """The data of a setting for all its seeds.

    Attributes:
      train: the long tail, x [seeds, rows, ...] and y [seeds, rows].
      twin: the balanced twin, or None where there is none (own data).
      test: likewise; x without the axis of seeds where all have the same rows.
      counts: training rows of each class, from the largest to the smallest; and of the twin.
      digests: of the training rows of each seed.
      names: of the classes in the order of ``counts``; empty where each seed has an order of its own.
      source: where the rows come from, in words.
    """

    train: dict[str, np.ndarray]
    twin: dict[str, np.ndarray] | None
    test: dict[str, np.ndarray]
    counts: np.ndarray
    twin_counts: np.ndarray | None
    digests: tuple[str, ...]
    names: tuple[str, ...]
    source: str

    @property
    def shared(self) -> bool:
        """Whether all seeds have the same test rows."""
        return self.test["x"].ndim == self.train["x"].ndim - 1


Part = dict[str, np.ndarray]


def _digits() -> tuple[Part, None, str]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[..., None] / 16).astype(np.float32)
    return (
        {"x": x, "y": digits.target.astype(np.int32)},
        None,
        f"{HELD_OUT} rows of each class held out, drawn for each seed",
    )


def _loaded(name: str, said: str) -> tuple[Part, Part, str]:
    train, test = (data.load(name, split)[0] for split in ("train", "test"))
    return train, test, said


def _features(rows: dict[str, int] | None = None) -> tuple[Part, Part, str]:
    """Features of CIFAR-10, of ``rows[split]`` rows of each class (the first of the file) or of all; computed once,
    and kept in the data folder chunk by chunk, so that what was computed outlives a kill."""
    params, variables = efficientnet.imagenet_weights()
    name = "cifar10" if fetch.find("cifar10/cifar-10-python.tar.gz") else "cifar10_jpeg"
    network, parts, store = networks.efficientnet_lite0(1000), [], fetch.store_folder() / "features"
    for split in ("train", "test"):
        arrays = data.load(name, split)[0]
        each = None if rows is None else rows[split]
        kept = np.concatenate([np.flatnonzero(arrays["y"] == c)[:each] for c in range(10)])
        chunks = []
        for start in range(0, len(kept), FEATURE_CHUNK):
            x = np.asarray(_resized(arrays["x"][kept[start : start + FEATURE_CHUNK]]))
            chunks.append(features(network, params, variables, x, batch_size=50, cache=store))
        parts.append({"x": np.concatenate(chunks), "y": arrays["y"][kept]})
    scale = np.float32(NORM / np.sqrt((parts[0]["x"] ** 2).sum(1).mean()))
    parts = [{**part, "x": part["x"] * scale} for part in parts]
    held = f"{len(parts[1]['y']) // 10:,} test rows a class"
    return parts[0], parts[1], f"EfficientNet-Lite0 features of {name} at {FEATURE_SIZE} pixels, {held}"


def _resized(x: np.ndarray) -> np.ndarray:
    shape = (50, FEATURE_SIZE, FEATURE_SIZE, 3)
    grow = jax.jit(lambda rows: (jax.image.resize(rows, shape, "cubic") - efficientnet.MEAN) / efficientnet.STD)
    return np.concatenate([np.asarray(grow(x[start : start + 50])) for start in range(0, len(x), 50)])


READERS: dict[str, Callable[[], tuple[Part, Part | None, str]]] = {
    "digits": _digits,
    "mnist5k": lambda: _loaded("mnist5k", "every fifth row of each class held out"),
    "fashion_mnist": lambda: _loaded("fashion_mnist", "the official test rows"),
    "features": functools.partial(_features, FEATURE_ROWS),
    "cifar10_features": _features,
    "cifar10_lt": lambda: _loaded("cifar10", "the official test rows"),
}
ELSEWHERE = {
    "cifar100_lt": "no card of jaxkit.data has CIFAR-100; as x and y in an .npz file it is --data FILE",
    "imagenet_lt": "ImageNet-LT is not here: 115,846 images of ImageNet, for a GPU and a folder of your own",
}


@functools.lru_cache(maxsize=2)
def _pool(name: str) -> tuple[Part, Part | None, str] | str:
    """The rows of a data set, or why they cannot be had (kept, so that a machine without a network is asked once)."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    try:
        return READERS[name]()
    except check.UsageError as error:
        return str(error)


def _split(rows: Part, random: np.random.Generator, held: np.ndarray) -> tuple[Part, Part]:
    """(held out, the others): ``held[c]`` rows of each class c, drawn without replacement."""
    drawn = [random.permutation(np.flatnonzero(rows["y"] == c))[:number] for c, number in enumerate(held)]
    mask = np.zeros(len(rows["y"]), bool)
    mask[np.concatenate(drawn)] = True
    return select(rows, mask), select(rows, ~mask)


@functools.lru_cache(maxsize=2)
def task_of(name: str, seeds: int, largest: int, imbalance: float, tail: str, shuffle: bool) -> Task:
    """The long tails, twins and test rows of a data set; Skip says why it is not here."""
    found = _pool(name)
    if isinstance(found, str):
        raise Skip(found)
    rows, held, source = found
    made = []
    for seed in range(seeds):
        key, pool, test = jax.random.fold_in(jax.random.key(KEY), seed), rows, held
        if held is None:
            test, pool = _split(rows, np.random.default_rng(seed), np.full(int(rows["y"].max()) + 1, HELD_OUT))
        classes = int(rows["y"].max()) + 1
        cut = long_tailed.long_tailed_task(
            pool, key, num_classes=classes, imbalance=imbalance, largest=largest, profile=tail,
            shuffle_classes=shuffle,
        )  # fmt: skip
        place = np.argsort(cut.order).astype(np.int32)
        made.append((cut, *({**part, "y": place[part["y"]]} for part in (cut.train, cut.twin, test))))
    stacked = lambda i, *names: {name: np.stack([one[i][name] for one in made]) for name in names}
    test = stacked(3, "x", "y") if held is None else {"x": held["x"], **stacked(3, "y")}
    first = made[0][0]
    counts = first.class_counts[first.order]
    twin_counts = np.full_like(counts, counts.sum() // counts.size)
    digests = tuple(one[0].digest for one in made)
    return Task(stacked(1, "x", "y"), stacked(2, "x", "y"), test, counts, twin_counts, digests, (), source)


@functools.lru_cache(maxsize=1)
def own_rows(path: Path, checksum: str) -> tuple[Part, tuple[str, ...]]:
    """The user's rows (x, y) with classes from the largest to the smallest, and their names.

    Raises:
      UsageError: no classes, one class, a class of one row, or pictures that are too large.
    """
    options: dict[str, Any] = {"size": (32, 32)} if path.is_dir() else {}
    arrays, card = data.from_file(path, **options)
    if card.task != "classification":
        why = "has no labels" if card.task == "none" else "the targets are floats"
        raise check.UsageError(f"--data {path}: {why}; this study needs classes")
    x, y, names = arrays["x"], np.asarray(arrays["y"]), card.classes
    counts = np.bincount(y)
    names = names or tuple(str(number) for number in range(counts.size))
    if (counts == 0).any():
        raise check.UsageError(f"--data {path}: class {names[int(np.argmin(counts))]!r} has no rows; number classes "
                               "0, 1, ..., or give their names")  # fmt: skip
    if counts.size < 2:
        raise check.UsageError(f"--data {path}: there is one class ({names[0]!r}); this study needs two or more")
    few = [names[c] for c in np.flatnonzero(counts < 2)]
    if few:
        raise check.UsageError(
            f"--data {path}: {len(few)} class{'es' * (len(few) > 1)} with one row, of which none can be held out: "
            f"{', '.join(few[:8])}{', ...' * (len(few) > 8)}; give more rows of them, or drop them"
        )
    if x.ndim > 2 and max(x.shape[1:3]) > LARGEST_IMAGE:
        raise check.UsageError(
            f"--data {path}: pictures of {x.shape[1]}x{x.shape[2]} are too large for the small network of this study; "
            f"resize them to {LARGEST_IMAGE} at most, or give features of a pretrained network"
        )
    order = np.argsort(-counts, kind="stable")
    place = np.argsort(order).astype(np.int32)
    return {"x": x[..., None] if x.ndim == 3 else x, "y": place[y]}, tuple(names[c] for c in order)


@functools.lru_cache(maxsize=2)
def own_task(path: Path, checksum: str, seeds: int) -> Task:
    """The user's data, a fifth of each class held out for each seed; features in units of their standard deviation."""
    rows, names = own_rows(path, checksum)
    counts = np.bincount(rows["y"])
    held = np.maximum(1, np.round(counts / 5).astype(int))
    parts: tuple[list[Part], list[Part]] = ([], [])
    for seed in range(seeds):
        test, train = _split(rows, np.random.default_rng(seed), held)
        if train["x"].ndim == 2:
            centre, spread = train["x"].mean(0), train["x"].std(0)
            spread = np.where(spread > 0, spread, 1).astype(np.float32)
            train, test = ({**part, "x": (part["x"] - centre) / spread} for part in (train, test))
        parts[0].append(train), parts[1].append(test)
    train, test = ({name: np.stack([one[name] for one in part]) for name in ("x", "y")} for part in parts)
    said = "a fifth of each class held out, drawn for each seed" + ("; 32x32 pixels" if path.is_dir() else "")
    return Task(train, None, test, counts - held, None, (), names, said)
