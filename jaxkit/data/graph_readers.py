"""Readers of graphs, from bytes to arrays in the form of the cards; each checks what it reads.

A graph is ``{"nodes", "senders", "receivers", "weights"}``: ``nodes`` float32 [N, F], or of sparse features a dict
``{"values" float32 [nnz], "rows" int32 [nnz], "columns" int32 [nnz], "shape" int64 [2]}`` sorted by (row, column);
senders and receivers int32 [E] and weights float32 [E], the edges as they are stored, in one direction or both.
"""

from __future__ import annotations

import collections
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from jaxkit import check
from jaxkit.data.readers import restricted_unpickle
from jaxkit.data.records import Arrays

NEIGHBOURS = 5  # of each digit in digits_knn
VALIDATION = 500  # nodes after the training nodes, in Planetoid's split
_MATRIX = ("data", "indices", "indptr", "shape")


def _csr(parts: Mapping[str, Any], name: str) -> scipy.sparse.csr_matrix:
    """A sparse matrix from its parts, checked: an index outside the shape would be read as another node later."""
    try:
        shape = tuple(int(size) for size in parts["shape"])
        matrix = scipy.sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
        matrix.check_format(full_check=True)
    except (KeyError, TypeError, ValueError) as error:
        raise check.UsageError(f"{name} is not a sparse matrix in compressed rows: {error}") from None
    return matrix


def sparse_nodes(matrix: Any) -> Arrays:
    """Features in the sparse form of the cards from any SciPy matrix; entries at one place are added, zeros dropped."""
    csr = scipy.sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    csr.sort_indices()
    coo = csr.tocoo()
    return {
        "values": coo.data,
        "rows": coo.row.astype(np.int32),
        "columns": coo.col.astype(np.int32),
        "shape": np.asarray(csr.shape, np.int64),
    }


def graph_npz(content: bytes, name: str) -> tuple[Arrays, np.ndarray]:
    """(graph, labels) of an npz file as PPNP, gnn-benchmark and Deep Gaussian Embedding store theirs.

    The adjacency and the features are matrices in compressed rows, ``adj_matrix.data`` and so on (also ``adj.data`` or
    ``adj_data``, ``attr`` likewise); entry (i, j) is an edge from i to j. Members are read one by one, so that those
    with Python objects (metadata) are never unpickled.

    Raises:
      UsageError: not an npz file, a member is missing or pickled, or the sizes do not agree.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            members = set(archive.files)

            def matrix(wanted: str) -> scipy.sparse.csr_matrix:
                for prefix in (f"{wanted}_matrix.", f"{wanted}.", f"{wanted}_"):
                    if all(prefix + part in members for part in _MATRIX):
                        parts = {part: archive[prefix + part] for part in _MATRIX}
                        return _csr(parts, f"{name}: {prefix.rstrip('._')}")
                raise check.UsageError(
                    f"{name} has no matrix {wanted!r} in compressed rows; it has {', '.join(sorted(members)[:12])}"
                )

            adjacency, attributes = matrix("adj").tocoo(), matrix("attr")
            if "labels" not in members:
                raise check.UsageError(f"{name} has no labels; it has {', '.join(sorted(members)[:12])}")
            labels = archive["labels"]
    except check.UsageError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise errors of their own
        why = "it is damaged, another kind of file, or holds Python objects" if "allow_pickle" in str(error) else error
        raise check.UsageError(f"{name} cannot be read as an npz file of plain arrays: {why}") from None
    nodes = len(labels)
    if adjacency.shape != (nodes, nodes) or attributes.shape[0] != nodes or labels.ndim != 1:
        raise check.UsageError(
            f"{name} has {nodes} labels, an adjacency of {adjacency.shape} and features of {attributes.shape}; "
            "expected one row of each for each node"
        )
    graph = {
        "nodes": sparse_nodes(attributes),
        "senders": adjacency.row.astype(np.int32),
        "receivers": adjacency.col.astype(np.int32),
        "weights": adjacency.data.astype(np.float32),
    }
    return graph, labels.astype(np.int32)


class _Rows:
    """Stands in for scipy.sparse.csr.csr_matrix in a pickle: it keeps the state and runs no code of SciPy."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state)

    def matrix(self, name: str) -> scipy.sparse.csr_matrix:
        named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in self.state.items()}
        return _csr({"shape": named.get("_shape"), **named}, name)


_PLANETOID: dict[tuple[str, str], Callable[..., Any]] = {
    ("scipy.sparse.csr", "csr_matrix"): _Rows,
    ("scipy.sparse._csr", "csr_matrix"): _Rows,
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}


def planetoid(files: Mapping[str, bytes], name: str) -> tuple[Arrays, np.ndarray, Arrays]:
    """(graph, labels, ``{"split"}``) of Planetoid's files (Yang, Cohen and Salakhutdinov 2016; as in Kipf and Welling's
    gcn).

    ``allx`` and ``ally`` are the first nodes, ``x`` and ``y`` the first of those: the training nodes; the 500 after
    them are for validation. Row i of ``tx`` and ``ty`` is the node ``test.index``[i]. A node of that range without a
    row (Citeseer has 15) has no features and the label -1. The edges are those of ``graph``, which lists the
    neighbours of each node, repeated ones included.

    Args:
      files: the content by the last part of the name (``x``, ..., ``test.index``).
      name: for error messages.

    Returns:
      split: int32 [N], 0 train, 1 validation, 2 test, -1 none.

    Raises:
      UsageError: a pickle that asks for anything but arrays, sparse matrices and lists; sizes that do not agree.
    """
    read = {part: restricted_unpickle(content, _PLANETOID) for part, content in files.items() if part != "test.index"}
    for part, kind in {"tx": _Rows, "allx": _Rows, "y": np.ndarray, "ty": np.ndarray, "ally": np.ndarray}.items():
        if not isinstance(read[part], kind):
            raise check.UsageError(
                f"{name}.{part} holds a {type(read[part]).__name__}, which is not what Planetoid's has"
            )
    index = _indices(files["test.index"], name)
    features, tested = read["allx"].matrix(f"{name}.allx"), read["tx"].matrix(f"{name}.tx")
    first, nodes = features.shape[0], int(index.max()) + 1
    train = len(read["y"])
    agrees = (
        index.min() == first == len(read["ally"])
        and len(index) == len(read["ty"]) == tested.shape[0]
        and tested.shape[1] == features.shape[1]
        and train + VALIDATION <= first
        and np.array_equal(read["y"], read["ally"][:train])
    )
    if not agrees:
        raise check.UsageError(f"the sizes of {name}.* do not agree; the files are not of one data set")

    tested = tested.tocoo()
    where = index[tested.row]
    tail = scipy.sparse.coo_matrix((tested.data, (where - first, tested.col)), (nodes - first, features.shape[1]))
    y = np.full(nodes, -1, np.int32)
    y[:first], y[index] = _classes(read["ally"]), _classes(read["ty"])
    split = np.full(nodes, -1, np.int32)
    split[:train], split[train : train + VALIDATION], split[index] = 0, 1, 2
    senders, receivers = _edges(read["graph"], nodes, name)
    graph = {
        "nodes": sparse_nodes(scipy.sparse.vstack([features, tail])),
        "senders": senders,
        "receivers": receivers,
        "weights": np.ones(len(senders), np.float32),
    }
    return graph, y, {"split": split}


def _indices(content: bytes, name: str) -> np.ndarray:
    try:
        index = np.asarray([int(line) for line in content.split()], np.int64)
    except ValueError as error:
        raise check.UsageError(f"{name}.test.index must hold one whole number in each line: {error}") from None
    if not index.size or index.min() < 0 or len(np.unique(index)) < len(index):
        raise check.UsageError(f"{name}.test.index must hold different numbers from 0, and at least one")
    return index


def _classes(one_hot: np.ndarray) -> np.ndarray:
    """The class of each row; -1 for a row of zeros."""
    return np.where(one_hot.any(1), one_hot.argmax(1), -1).astype(np.int32)


def _edges(neighbours: Any, nodes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(senders, receivers) of a dict of neighbours, by sender, each node's neighbours in their order."""
    try:
        if not isinstance(neighbours, dict):
            raise TypeError
        pairs = [(int(node), int(other)) for node in sorted(neighbours) for other in neighbours[node]]
    except (TypeError, ValueError):
        raise check.UsageError(f"{name}.graph must be a dict from each node to its neighbours") from None
    ends = np.asarray(pairs, np.int64).reshape(-1, 2)
    outside = ends[(ends < 0) | (ends >= nodes)]
    if outside.size:
        raise check.UsageError(f"{name}.graph has an edge to node {outside[0]}; there are {nodes} nodes")
    return ends[:, 0].astype(np.int32), ends[:, 1].astype(np.int32)


def digits_knn() -> tuple[Arrays, np.ndarray]:
    """(graph, labels): each of scikit-learn's 1,797 digits with an edge to its 5 nearest others.

    Nearest by the Euclidean distance of the 64 pixels. Squared distances are computed in whole numbers (pixels count
    0..16) and are exact, and of equally near digits the one with the smaller row comes first, so that the graph is the
    same with every library version; 34 digits have such a tie at the fifth place.
    """
    from sklearn.datasets import load_digits

    read = load_digits()
    pixels = read.data.astype(np.int64)
    squares = (pixels**2).sum(1)
    distances = squares[:, None] + squares - 2 * (pixels @ pixels.T)
    np.fill_diagonal(distances, np.iinfo(np.int64).max)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    graph = {
        "nodes": (read.data / 16.0).astype(np.float32),
        "senders": np.repeat(np.arange(len(pixels), dtype=np.int32), NEIGHBOURS),
        "receivers": nearest.astype(np.int32).ravel(),
        "weights": np.ones(nearest.size, np.float32),
    }
    return graph, read.target.astype(np.int32)
