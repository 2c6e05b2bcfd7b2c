"""A graph as PPNP and AdaGCN use it: simple, undirected, unweighted, connected, with rows of features that sum to 1.

On the host, by NumPy and SciPy, once before anything is compiled. Source: the released code of Gasteiger, Bojchevski
and Günnemann, Predict then Propagate, ICLR 2019 (``SparseGraph.standardize`` and ``normalize_attributes``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Int

from jaxkit import check

SMALLEST_NORM = 1e-12


class Standardized(NamedTuple):
    """What ``standardize`` returns.

    Attributes:
      arrays: in the form of a card; every edge in both directions, sorted by (sender, receiver), all weights 1.
      kept: int64, ascending; node i of ``arrays`` is node ``kept[i]`` of what was given.
      notes: one sentence for each thing that was done or is out of the ordinary, with its count.
    """

    arrays: dict[str, Any]
    kept: Int[np.ndarray, " kept"]
    notes: tuple[str, ...]


def standardize(arrays: dict[str, Any], *, l1_features: bool = True, largest_component: bool = True) -> Standardized:
    """The graph of a card without self loops, weights and directions, its largest component, and its rows normalised.

    Edges of weight 0 and self loops are dropped, edges joined to pairs {i, j} that each stand once in both directions,
    weights set to 1. Of the nodes the largest connected component stays (of equally large ones that with the smallest
    node). Each row of features is divided by max(sum_k |x_ik|, 1e-12).

    Args:
      arrays: ``{"x": {"nodes", "senders", "receivers", "weights"}, "y"}`` as ``jaxkit.data.load`` gives them for a
        graph (``weights`` may be left out); further arrays with one entry per node, such as ``split``, are cut along.
      l1_features: False leaves the features as they are.
      largest_component: False keeps all nodes.

    Raises:
      UsageError: an array is missing or of another length; no edge between two nodes; an edge to a node outside
        0..N-1; negative, NaN or infinite weights; NaN or infinite features; no labelled node (y >= 0).
    """
    x, y = _graph(arrays), np.asarray(arrays["y"])
    size = check_features(x["nodes"])
    further = {name: np.asarray(values) for name, values in arrays.items() if name != "x"}
    for name, values in further.items():
        if values.shape[:1] != (size,):
            raise check.UsageError(
                f"{name!r} must have one entry for each of the {size} nodes, got shape {list(values.shape)}"
            )
    _labelled(y, "the graph")

    notes: list[str] = []
    low, high = _pairs(x, size, notes)
    kept = np.arange(size)
    if largest_component:
        kept = _largest(low, high, size, notes)
        place = np.full(size, -1, np.int64)
        place[kept] = np.arange(len(kept))
        inside = place[low] >= 0
        low, high = place[low[inside]], place[high[inside]]
        _labelled(y[kept], "the largest connected component")
    senders, receivers = np.concatenate([low, high]), np.concatenate([high, low])
    order = np.lexsort((receivers, senders))
    graph = {
        "nodes": _rows(x["nodes"], kept, size, l1_features, notes),
        "senders": senders[order].astype(np.int32),
        "receivers": receivers[order].astype(np.int32),
        "weights": np.ones(len(order), np.float32),
    }
    cut = {name: values[kept] for name, values in further.items()}
    unlabelled = int((cut["y"] < 0).sum())
    if unlabelled:
        have = _count(unlabelled, "node has", "nodes have")
        notes.append(f"{have} no label: features pass through, and no split has any of them")
    return Standardized({"x": graph, **cut}, kept, tuple(notes))


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _graph(arrays: dict[str, Any]) -> dict[str, Any]:
    """The graph in ``arrays``, with its weights; UsageError names what is missing."""
    if "x" not in arrays or "y" not in arrays:
        raise check.UsageError(f"a graph's data needs 'x' and 'y', it has {', '.join(sorted(arrays)) or 'nothing'}")
    x = arrays["x"]
    if not isinstance(x, dict):
        raise check.UsageError(
            f"x must be a dict with the arrays nodes, senders and receivers, got {type(x).__name__}; "
            "jaxkit.data.load('citeseer') gives an example"
        )
    for name in ("nodes", "senders", "receivers"):
        if name not in x:
            raise check.UsageError(f"a graph needs the array {name!r}, it has {', '.join(sorted(x)) or 'nothing'}")
    return {"weights": np.ones(len(x["senders"]), np.float32), **x}


def check_features(nodes: Any) -> int:
    """The number of nodes of features that are well formed.

    Raises:
      UsageError: sparse features without one of their arrays, unsorted or outside their shape; dense ones that are not
        [nodes, features] numbers; NaN or infinity.
    """
    if isinstance(nodes, dict):
        absent = [name for name in ("values", "rows", "columns", "shape") if name not in nodes]
        if absent:
            raise check.UsageError(f"sparse features need {absent[0]!r}, they have {', '.join(sorted(nodes))}")
        size, width = (int(number) for number in nodes["shape"])
        rows, columns, values = (np.asarray(nodes[name]) for name in ("rows", "columns", "values"))
        places = rows.astype(np.int64) * width + columns
        if rows.size and (rows.min() < 0 or rows.max() >= size or columns.min() < 0 or columns.max() >= width):
            raise check.UsageError(f"sparse features have an entry outside their shape [{size}, {width}]")
        if (np.diff(places) <= 0).any():
            raise check.UsageError("sparse features must be sorted by (row, column), each place at most once")
    else:
        values = np.asarray(nodes)
        if values.ndim != 2:
            raise check.UsageError(f"nodes must hold features [nodes, features], got shape {list(values.shape)}")
        if values.shape[1] == 0:
            raise check.UsageError("nodes has no features; give at least one column, for example the degree")
        size = len(values)
        rows = np.arange(size)
    if values.dtype.kind not in "biuf":
        raise check.UsageError(f"features must be numbers, got dtype {values.dtype}")
    bad = np.unique(rows[np.nonzero(~np.isfinite(values))[0]])
    if bad.size:
        raise check.UsageError(
            f"the features of {_count(bad.size, 'node', 'nodes')} have NaN or infinity (the first is node {bad[0]}); "
            "remove or fill them"
        )
    return size


def _labelled(y: np.ndarray, where: str) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise check.UsageError(f"y must hold whole numbers, shape [nodes], got {y.dtype} {list(y.shape)}")
    if not (y >= 0).any():
        raise check.UsageError(f"{where} has no labelled node; y is 0, 1, 2, ... where a label is known, else -1")


def _pairs(x: dict[str, Any], size: int, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), int64: each pair of different nodes that an edge joins, once, low < high, sorted."""
    senders, receivers, weights = (np.asarray(x[name]) for name in ("senders", "receivers", "weights"))
    if not senders.shape == receivers.shape == weights.shape or senders.ndim != 1:
        shapes = ", ".join(str(list(values.shape)) for values in (senders, receivers, weights))
        raise check.UsageError(f"senders, receivers and weights must be vectors of one length, got {shapes}")
    ends = np.stack([senders, receivers]) if senders.size else np.zeros((2, 0), np.int64)
    if ends.dtype.kind not in "iu":
        raise check.UsageError(f"senders and receivers must be whole numbers, got {ends.dtype}")
    outside = np.flatnonzero(((ends < 0) | (ends >= size)).any(0))
    if outside.size:
        edge = outside[0]
        raise check.UsageError(
            f"edge {edge} joins {ends[0, edge]} and {ends[1, edge]}, but the nodes are 0..{size - 1} "
            f"({_count(outside.size, 'such edge', 'such edges')})"
        )
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size:
        raise check.UsageError(
            f"the weight of edge {wrong[0]} is {weights[wrong[0]]:g}; weights must be finite and 0 or more "
            f"({_count(wrong.size, 'such edge', 'such edges')})"
        )
    nothing, loop = weights == 0, ends[0] == ends[1]
    used = ~(nothing | loop)
    if not used.any():
        raise check.UsageError(
            "the graph has no edge between two different nodes; without one there is nothing to pass"
        )
    if nothing.any():
        notes.append(f"{_count(int(nothing.sum()), 'edge', 'edges')} of weight 0 left out")
    if (loop & ~nothing).any():
        notes.append(f"{_count(int((loop & ~nothing).sum()), 'self loop', 'self loops')} left out")
    weighted = int((weights[used] != 1).sum())
    if weighted:
        notes.append(f"weights other than 1 in {_count(weighted, 'edge', 'edges')} were dropped")
    ends = ends[:, used].astype(np.int64)
    directed = np.unique(ends[0] * size + ends[1])
    repeated = ends.shape[1] - len(directed)
    if repeated:
        notes.append(f"{_count(repeated, 'repeated edge', 'repeated edges')} merged with the first of the kind")
    one, two = np.divmod(directed, size)
    pairs = np.unique(np.minimum(one, two) * size + np.maximum(one, two))
    single = 2 * len(pairs) - len(directed)
    if single:
        notes.append(f"{_count(single, 'edge', 'edges')} had one direction only and got the other")
    return np.divmod(pairs, size)


def _largest(low: np.ndarray, high: np.ndarray, size: int, notes: list[str]) -> np.ndarray:
    """The nodes of the largest connected component, ascending."""
    adjacency = scipy.sparse.coo_array((np.ones(len(low), np.int8), (low, high)), shape=(size, size))
    _, component = scipy.sparse.csgraph.connected_components(adjacency, directed=False)
    members = np.bincount(component)[component]  # of each node, how many are in its component
    kept = np.flatnonzero(component == component[members.argmax()])  # argmax: the first of the largest
    left_out = size - len(kept)
    if left_out:
        isolated = int((members == 1).sum())
        notes.append(
            f"{_count(left_out, 'node', 'nodes')} outside the largest connected component left out "
            f"(of them {isolated:,} isolated)"
        )
    return kept


def _rows(nodes: Any, kept: np.ndarray, size: int, l1: bool, notes: list[str]) -> Any:
    """The features of the nodes that stay, in the form in which they came."""
    if isinstance(nodes, dict):
        place = np.full(size, -1, np.int64)
        place[kept] = np.arange(len(kept))
        rows = place[np.asarray(nodes["rows"])]
        stay = rows >= 0
        rows, values = rows[stay], np.asarray(nodes["values"])[stay].astype(np.float64)
        norms = np.bincount(rows, np.abs(values), len(kept))
        per_value = norms[rows]
    else:
        values = np.asarray(nodes)[kept].astype(np.float64)
        norms = np.abs(values).sum(1)
        per_value = norms[:, None]
    zero = int((norms == 0).sum())
    if zero:
        notes.append(f"{_count(zero, 'feature row is all zero and stays', 'feature rows are all zero and stay')} so")
    values = (values / np.maximum(per_value, SMALLEST_NORM) if l1 else values).astype(np.float32)
    if not isinstance(nodes, dict):
        return values
    return {
        "values": values,
        "rows": rows.astype(np.int32),
        "columns": np.asarray(nodes["columns"])[stay].astype(np.int32),
        "shape": np.asarray([len(kept), int(nodes["shape"][1])], np.int64),
    }
