"""A graph as jraph's GraphsTuple whose edges hold the normalised adjacency, and products with it.

In all of ``jaxkit.graphs`` ``edges [E]`` are the entries of A-hat = D~^{-1/2} (A + I) D~^{-1/2} with every self loop an
edge of its own, row by ``receivers`` and column by ``senders``, and ``nodes`` are the features X ``[N, F]``, dense or
``Sparse``. A batch of node classification is ``{"x": Nodes(rows, graph), "y": labels of rows}``: the rows of the batch
are the nodes asked for, and the graph is the world in which they stand.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.graphs.standardize import check_features
from jaxkit.learner import Data

PIECE = 4096  # entries of a sparse product at once: on a CPU, products of all of them (36 MB on Cora-ML) cost thrice


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse:
    """A sparse feature matrix [N, F] as its entries, sorted by row, that is multiplied from the right by dense ones.

    Attributes:
      values: float32 [nnz].
      rows: int32 [nnz].
      columns: int32 [nnz].
      shape: (N, F), static.
    """

    values: Any
    rows: Any
    columns: Any
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def ndim(self) -> int:
        return 2

    def __matmul__(self, dense: Array) -> Array:
        """X W, [N, F] by [F, H], in O(nnz H): a scan over pieces of the entries, whose products stay in the cache."""
        pieces = -(-self.values.shape[0] // PIECE)
        spare = pieces * PIECE - self.values.shape[0]

        def cut(leaf: Array, fill: int = 0) -> Array:
            return jnp.pad(leaf, (0, spare), constant_values=fill).reshape(pieces, PIECE)

        def add(total: Array, piece: tuple[Array, Array, Array]) -> tuple[Array, None]:
            values, rows, columns = piece
            terms = values[:, None] * dense.at[columns].get(mode="promise_in_bounds")
            return total.at[rows].add(terms, mode="promise_in_bounds", indices_are_sorted=True), None

        entries = cut(self.values), cut(self.rows, self.shape[0] - 1), cut(self.columns)
        start = jnp.zeros((self.shape[0], dense.shape[1]), jnp.result_type(self.values, dense))
        return jax.lax.scan(add, start, entries)[0]

    def dense(self) -> Array:
        """The matrix with its zeros."""
        return jnp.zeros(self.shape, jnp.float32).at[self.rows, self.columns].add(self.values)


class Nodes(NamedTuple):
    """The ``x`` of a batch of nodes.

    Attributes:
      rows: int32 [n], the nodes asked for.
      graph: all nodes, with normalised edges.
    """

    rows: Array
    graph: jraph.GraphsTuple


def dense_nodes(graph: jraph.GraphsTuple) -> Float[Array, "nodes features"]:
    """The features of all nodes as a dense array."""
    return graph.nodes.dense() if isinstance(graph.nodes, Sparse) else graph.nodes


def normalized(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """The graph with self loops and edges A-hat = D~^{-1/2} (A + I) D~^{-1/2}, D~_ii = 1 + sum_j A_ij.

    ``edges`` must be the weights [E] of a symmetric A without self loops. Pure; a node without an edge gets A-hat_ii =
    1. Source: Kipf and Welling 2017, section 2.
    """
    size = graph.nodes.shape[0]
    loops = jnp.arange(size, dtype=jnp.int32)
    senders, receivers = jnp.concatenate([graph.senders, loops]), jnp.concatenate([graph.receivers, loops])
    weights = jnp.concatenate([graph.edges, jnp.ones(size, graph.edges.dtype)])
    scale = jax.lax.rsqrt(jraph.segment_sum(weights, receivers, size))
    return graph._replace(
        senders=senders,
        receivers=receivers,
        edges=weights * scale[senders] * scale[receivers],
        n_edge=graph.n_edge + size,
    )


def propagate(graph: jraph.GraphsTuple, signal: Float[Array, "nodes width"]) -> Float[Array, "nodes width"]:
    """One hop, A-hat B: (A-hat B)_i = sum over edges j -> i of A-hat_ij B_j."""
    return jraph.segment_sum(graph.edges[:, None] * signal[graph.senders], graph.receivers, signal.shape[0])


def matrix(graph: jraph.GraphsTuple) -> scipy.sparse.csr_array:
    """A-hat as SciPy's CSR matrix, on the host; for once and for large graphs, where a hop in SciPy is quickest."""
    entries = np.asarray(graph.edges), (np.asarray(graph.receivers), np.asarray(graph.senders))
    return scipy.sparse.csr_array(entries, shape=(graph.nodes.shape[0],) * 2)


def hops(
    graph: jraph.GraphsTuple, count: int, rows: Int[Array | np.ndarray, " rows"] | None = None
) -> Float[np.ndarray, "count rows features"]:
    """X, A-hat X, ..., A-hat^{count-1} X at ``rows`` (all nodes where None), float32, by SciPy on the host.

    Two hops of all nodes are held at a time, so that many hops of few rows need little memory.
    """
    count = check.count("hops", count)
    adjacency = matrix(graph)
    signal = np.asarray(dense_nodes(graph), np.float32)
    chosen = slice(None) if rows is None else np.asarray(rows)
    kept = [signal[chosen]]
    for _ in range(count - 1):
        signal = adjacency @ signal
        kept.append(signal[chosen])
    return np.stack(kept)


def build(x: dict[str, Any]) -> jraph.GraphsTuple:
    """The normalised GraphsTuple of a card's arrays (``nodes``, ``senders``, ``receivers``, ``weights``), standardised
    before.

    Raises:
      UsageError: an array is missing or malformed, or the edges are not those of a symmetric matrix without self loops
        (``standardize`` makes them so).
    """
    for name in ("nodes", "senders", "receivers", "weights"):
        if name not in x:
            raise check.UsageError(f"a graph needs the array {name!r}, it has {', '.join(sorted(x)) or 'nothing'}")
    nodes = x["nodes"]
    check_features(nodes)
    if isinstance(nodes, dict):
        features: Any = Sparse(
            jnp.asarray(nodes["values"], jnp.float32),
            jnp.asarray(nodes["rows"], jnp.int32),
            jnp.asarray(nodes["columns"], jnp.int32),
            (int(nodes["shape"][0]), int(nodes["shape"][1])),
        )
    else:
        features = jnp.asarray(nodes, jnp.float32)
    size = features.shape[0]
    senders, receivers, weights = (np.asarray(x[name]) for name in ("senders", "receivers", "weights"))
    if not senders.shape == receivers.shape == weights.shape or senders.ndim != 1:
        shapes = ", ".join(str(list(part.shape)) for part in (senders, receivers, weights))
        raise check.UsageError(f"senders, receivers and weights must be three vectors of one length, got {shapes}")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise check.UsageError("weights of edges must be finite numbers above 0; call standardize() first")
    if senders.size and (min(senders.min(), receivers.min()) < 0 or max(senders.max(), receivers.max()) >= size):
        raise check.UsageError(f"an edge joins nodes outside 0..{size - 1}")
    adjacency = scipy.sparse.csr_array((weights, (receivers, senders)), shape=(size, size))
    if adjacency.diagonal().any() or abs(adjacency - adjacency.T).sum() > 0:
        raise check.UsageError("the graph has self loops or edges in one direction only; call standardize() first")
    graph = jraph.GraphsTuple(
        nodes=features,
        edges=jnp.asarray(weights, jnp.float32),
        senders=jnp.asarray(senders, jnp.int32),
        receivers=jnp.asarray(receivers, jnp.int32),
        globals=None,
        n_node=jnp.asarray([size], jnp.int32),
        n_edge=jnp.asarray([len(weights)], jnp.int32),
    )
    return normalized(graph)


def with_pagerank(graph: jraph.GraphsTuple, alpha: float = 0.1, *, most_nodes: int = 12_000) -> jraph.GraphsTuple:
    """The graph with Pi = alpha (I - (1 - alpha) A-hat)^{-1} ``[N, N]`` in ``globals``, as PPNP needs it.

    Raises:
      UsageError: alpha outside (0, 1], or more nodes than the dense inverse has room for (APPNP needs none).

    Source: Gasteiger, Bojchevski and Guennemann 2019, eq. 3.
    """
    check.number("alpha", alpha, 0.0, 1.0, open_low=True)
    size = graph.nodes.shape[0]
    if size > most_nodes:
        raise check.UsageError(
            f"PPNP inverts a dense matrix of {size:,} x {size:,}, more than most_nodes={most_nodes:,}; take appnp here"
        )
    dense = np.eye(size) - (1 - alpha) * matrix(graph).toarray().astype(np.float64)
    return graph._replace(globals=jnp.asarray(alpha * np.linalg.inv(dense), jnp.float32))


def node_data(graph: jraph.GraphsTuple, y: Any, rows: Any, stopping: Any = None) -> Data:
    """What ``fit`` takes: the labelled nodes ``rows`` in their graph, and the nodes by which the best state is chosen.

    Returns:
      ``{"x": Nodes(rows, graph), "y": y[rows]}``, and where ``stopping`` is given ``"stopping": {"rows", "y"}``.

    Raises:
      UsageError: a node outside the graph, without a label, or both in ``rows`` and in ``stopping``.
    """
    y, size = np.asarray(y), graph.nodes.shape[0]
    if y.dtype.kind not in "iu":
        raise check.UsageError(f"y must hold whole numbers, -1 where there is no label, got dtype {y.dtype}")
    if y.shape != (size,):
        raise check.UsageError(f"y must hold one label for each of the {size} nodes, got shape {list(y.shape)}")
    parts = {"rows": np.asarray(rows)} | ({} if stopping is None else {"stopping": np.asarray(stopping)})
    for name, part in parts.items():
        if part.ndim != 1 or part.dtype.kind not in "iu" or part.size == 0:
            raise check.UsageError(f"{name} must be a vector of node numbers, got {part.dtype} {list(part.shape)}")
        if part.min() < 0 or part.max() >= size:
            raise check.UsageError(f"{name} must lie in 0..{size - 1}, got {part.min()}..{part.max()}")
        if len(np.unique(part)) < len(part):
            raise check.UsageError(f"{name} names {len(part) - len(np.unique(part))} nodes twice")
        if (y[part] < 0).any():
            raise check.UsageError(f"{name} holds {(y[part] < 0).sum()} nodes without a label; leave them out")
    both = np.intersect1d(*parts.values()) if stopping is not None else np.empty(0)
    if both.size:
        raise check.UsageError(f"{both.size} nodes are both in rows and in stopping, the first is {both[0]}")
    take = lambda part: (jnp.asarray(part, jnp.int32), jnp.asarray(y[part], jnp.int32))
    nodes, labels = take(parts["rows"])
    data: Data = {"x": Nodes(nodes, graph), "y": labels}
    if stopping is not None:
        nodes, labels = take(parts["stopping"])
        data["stopping"] = {"rows": nodes, "y": labels}
    return data
