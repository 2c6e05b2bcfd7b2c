"""Which nodes train, stop, validate and test: PPNP's splits, number by number, and Planetoid's fixed ones.

PPNP's protocol (Gasteiger, Bojchevski and Günnemann 2019, released code; AdaGCN reuses it) draws the test nodes once,
with a seed that never changes: the splits differ in the training and stopping nodes only, and an interval over splits
says nothing of the choice of test nodes. It is reproduced with NumPy's legacy generator, whose stream is frozen.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxkit import check
from jaxkit.evaluation import bootstrap_interval
from jaxkit.evaluation.intervals import finite_vector

TEST_SEEDS = (
    2144199730, 794209841, 2985733717, 2282690970, 1901557222, 2009332812, 2266730407, 635625077, 3538425002,
    960893189, 497096336, 3940842554, 3594628340, 948012117, 3305901371, 3644534211, 2297033685, 4092258879,
    2590091101, 1694925034,
)  # fmt: skip
VALIDATION_SEEDS = (
    2413340114, 3258769933, 1789234713, 2222151463, 2813247115, 1920426428, 4272044734, 2092442742, 841404887,
    2188879532, 646784207, 1633698412, 2256863076, 374355442, 289680769, 4281139389, 4263036964, 900418539, 119332950,
    1628837138,
)  # fmt: skip

DEFAULT_KNOWN = 1500
KNOWN = {"ms_academic": 5000, "digits_knn": 1200}
"""Visible nodes (``known``) of the data sets that take another number than 1500; that of digits_knn is ours."""
KNOWN_SEED = 4143496719

Rows = Int[np.ndarray, " rows"]


class Split(NamedTuple):
    """Node numbers, int32.

    Attributes:
      train: by class, 20 of each.
      stopping: for early stopping.
      validation: for choosing hyper-parameters.
      test: for the table, once.
    """

    train: Rows
    stopping: Rows
    validation: Rows
    test: Rows


def ppnp_split(
    y: Int[np.ndarray, " nodes"],
    seed: int,
    *,
    labels_per_class: int = 20,
    stopping: int = 500,
    known: int = DEFAULT_KNOWN,
    known_seed: int = KNOWN_SEED,
) -> Split:
    """A split by PPNP's protocol, bit for bit where every node has a label; else among the labelled nodes.

    With ``known_seed``, ``known`` nodes are drawn without replacement; the others are the test nodes, ascending. With
    ``seed``, ``labels_per_class`` known nodes are drawn of each class in turn, then ``stopping`` of the known nodes
    that are left; what remains of the known nodes, in the order in which they were drawn, is for validation.

    Args:
      y: labels of the standardised graph, -1 where a node has none.
      seed: of the split, one of ``split_seeds``.
      labels_per_class: training nodes of each class.
      stopping: nodes for early stopping.
      known: nodes of which labels may be seen; ``KNOWN`` has those of some data sets.
      known_seed: never changes in the protocol.

    Raises:
      UsageError: labels that are not whole numbers, a class without a node, ``known`` not below the number of labelled
        nodes, a class with too few known nodes, or too few nodes for stopping.
    """
    y = np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise check.UsageError(f"y must hold whole numbers, shape [nodes], got {y.dtype} {list(y.shape)}")
    per_class, stopping = check.count("labels_per_class", labels_per_class), check.count("stopping", stopping)
    known, seed, known_seed = check.count("known", known), _seed("seed", seed), _seed("known_seed", known_seed)
    labelled = np.flatnonzero(y >= 0)
    if known >= len(labelled):
        raise check.UsageError(
            f"known={known} leaves no test node, {len(labelled)} nodes have a label; give known= below that"
        )
    if y[labelled].max() == 0:
        raise check.UsageError("every label is 0; a classifier needs nodes of two classes or more")
    empty = np.flatnonzero(np.bincount(y[labelled]) == 0)
    if empty.size:
        raise check.UsageError(f"class {empty[0]} has no node; number the classes that have nodes 0, 1, 2, ...")

    visible = np.random.RandomState(known_seed).choice(labelled, known, replace=False)
    draw = np.random.RandomState(seed)
    train = []
    for label in range(y[labelled].max() + 1):
        members = visible[y[visible] == label]
        if len(members) < per_class:
            raise check.UsageError(
                f"class {label} has {len(members)} of the {known} known nodes, and labels_per_class={per_class} are to "
                "train on; lower labels_per_class, raise known, or leave the class out (label -1)"
            )
        train.append(draw.choice(members, per_class, replace=False))
    rest = _without(visible, np.concatenate(train))
    if len(rest) < stopping:
        raise check.UsageError(
            f"of {known} known nodes {len(rest)} are left after training, and stopping={stopping} are asked for; "
            "lower stopping or raise known"
        )
    stop = draw.choice(rest, stopping, replace=False)
    parts = np.concatenate(train), stop, _without(rest, stop), _without(labelled, visible)
    return Split(*(part.astype(np.int32) for part in parts))


def planetoid_split(split: Int[np.ndarray, " nodes"]) -> Split:
    """The fixed split of a Planetoid graph from its array ``split`` (0 train, 1 validation, 2 test, -1 none).

    Planetoid has one set of 500 nodes for early stopping and for hyper-parameters: here both ``stopping`` and
    ``validation``.

    Raises:
      UsageError: not an array of -1, 0, 1 and 2, or a part without a node.
    """
    split = np.asarray(split)
    if split.ndim != 1 or split.dtype.kind not in "iu" or not np.isin(split, (-1, 0, 1, 2)).all():
        raise check.UsageError(
            f"split must hold 0 (train), 1 (validation), 2 (test) or -1 (none) for each node, got {split.dtype} "
            f"{list(split.shape)}"
        )
    train, validation, test = (np.flatnonzero(split == part).astype(np.int32) for part in range(3))
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if not part.size:
            raise check.UsageError(f"split has no {name} node; take the array 'split' of a planetoid_ data set")
    return Split(train, validation, validation.copy(), test)


def split_seeds(count: int, *, test: bool = True) -> tuple[int, ...]:
    """The first ``count`` of the protocol's 20 split seeds: those of the tables, or with ``test=False`` those on which
    hyper-parameters are chosen.

    Raises:
      UsageError: count is not 1..20.
    """
    seeds = TEST_SEEDS if test else VALIDATION_SEEDS
    if check.count("count", count) > len(seeds):
        raise check.UsageError(f"the protocol has {len(seeds)} split seeds, got count={count}")
    return seeds[:count]


class HalfWidths(NamedTuple):
    """Two figures that are both printed as "mean +- figure", and are not the same.

    Attributes:
      std: standard deviation, divisor n - 1; how far single runs lie apart. nan for one value.
      bootstrap_half_width: the farther end of the 95 % percentile bootstrap interval of the mean, as its distance from
        the mean (1000 resamples); what PPNP's and AdaGCN's tables print. It falls with the number of runs. nan for one
        value.
    """

    std: float
    bootstrap_half_width: float


def half_widths(values: Any, *, seed: int = 0) -> HalfWidths:
    """Both forms of +- of a set of runs, in the unit of the values.

    Args:
      values: one number per run.
      seed: of the resampling.

    Raises:
      UsageError: a value is not finite, or there is none.
    """
    vector = finite_vector("values", values)
    if vector.size == 1:
        return HalfWidths(math.nan, math.nan)
    interval = bootstrap_interval(vector, method="percentile", level=0.95, resamples=1000, seed=seed)
    half = max(interval.high - interval.value, interval.value - interval.low)
    return HalfWidths(float(vector.std(ddof=1)), half)


def _seed(name: str, value: int) -> int:
    if check.count(name, value, 0) >= 2**32:
        raise check.UsageError(f"{name} must lie in 0..4294967295, got {value}")
    return int(value)


def _without(nodes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """``nodes`` in their order, less ``taken``."""
    return nodes[~np.isin(nodes, taken)]
