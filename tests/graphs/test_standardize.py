"""standardize: what is dropped, what is kept, and that it says so; the published sizes of the real graphs."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from jaxkit.check import UsageError
from jaxkit.data import CARDS, load, loading
from jaxkit.graphs.standardize import standardize


def graph(edges, size, *, weights=None, nodes=None, y=None, **more):
    ends = np.asarray(edges, np.int32).reshape(-1, 2)
    x = {
        "nodes": np.eye(size, dtype=np.float32) if nodes is None else nodes,
        "senders": ends[:, 0],
        "receivers": ends[:, 1],
        "weights": np.ones(len(ends), np.float32) if weights is None else np.asarray(weights, np.float32),
    }
    return {"x": x, "y": np.zeros(size, np.int32) if y is None else np.asarray(y, np.int32), **more}


def edges_of(arrays):
    return list(zip(arrays["x"]["senders"].tolist(), arrays["x"]["receivers"].tolist()))


def test_each_thing_that_is_done_is_done_and_said():
    #       0-1 twice, 1-2 both ways, 2-3 with a weight, a loop at 3, 4 isolated, 5-6 apart, an edge 0-5 of weight 0
    edges = [(1, 0), (1, 0), (1, 2), (2, 1), (3, 2), (3, 3), (5, 6), (0, 5)]
    nodes = np.array([[1, 3], [0, 0], [-2, 2], [5, 0], [1, 1], [1, 1], [1, 1]], np.float32)
    split = np.arange(7, dtype=np.int32) % 3
    given_arrays = graph(edges, 7, weights=[1, 1, 1, 1, 7, 1, 1, 0], nodes=nodes, y=[0, 1, -1, 1, 0, 0, 0], split=split)
    arrays, kept, notes = standardize(given_arrays)
    assert edges_of(arrays) == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]
    assert (arrays["x"]["weights"] == 1).all()
    np.testing.assert_array_equal(kept, [0, 1, 2, 3])
    np.testing.assert_array_equal(arrays["x"]["nodes"], [[0.25, 0.75], [0, 0], [-0.5, 0.5], [1, 0]])
    np.testing.assert_array_equal(arrays["y"], [0, 1, -1, 1])
    np.testing.assert_array_equal(arrays["split"], [0, 1, 2, 0])
    assert notes == (
        "1 edge of weight 0 left out",
        "1 self loop left out",
        "weights other than 1 in 1 edge were dropped",
        "1 repeated edge merged with the first of the kind",
        "3 edges had one direction only and got the other",
        "3 nodes outside the largest connected component left out (of them 1 isolated)",
        "1 feature row is all zero and stays so",
        "1 node has no label: features pass through, and no split has any of them",
    )
    dtypes = {key: arrays["x"][key].dtype.name for key in ("nodes", "senders", "receivers", "weights")}
    assert dtypes == {"nodes": "float32", "senders": "int32", "receivers": "int32", "weights": "float32"}
    assert kept.dtype == np.int64 and arrays["y"].dtype == arrays["split"].dtype == np.int32
    assert (given_arrays["x"]["nodes"] == nodes).all()  # what was given is not written on


def test_nothing_to_do_is_nothing_said():
    once = standardize(graph([(0, 1), (1, 0), (1, 2), (2, 1)], 3))
    assert once.notes == ()
    twice = standardize(once.arrays)
    assert twice.notes == () and edges_of(twice.arrays) == edges_of(once.arrays)


def test_options_leave_features_and_nodes_as_they_are():
    nodes = np.array([[2, 2], [4, 0], [0, 0], [1, 0]], np.float32)
    arrays, kept, notes = standardize(graph([(0, 1)], 4, nodes=nodes), l1_features=False, largest_component=False)
    np.testing.assert_array_equal(arrays["x"]["nodes"], nodes)
    np.testing.assert_array_equal(kept, np.arange(4))
    assert edges_of(arrays) == [(0, 1), (1, 0)] and not any("component" in note for note in notes)


def test_of_equal_components_that_of_the_smallest_node_stays():
    _, kept, _ = standardize(graph([(5, 1), (0, 4), (2, 3)], 6))
    np.testing.assert_array_equal(kept, [0, 4])


def sparse_form(matrix):
    coo = scipy.sparse.csr_matrix(matrix).tocoo()
    return {
        "values": coo.data.astype(np.float32),
        "rows": coo.row.astype(np.int32),
        "columns": coo.col.astype(np.int32),
        "shape": np.asarray(coo.shape, np.int64),
    }


def dense_form(nodes):
    entries = (nodes["values"], (nodes["rows"], nodes["columns"]))
    return scipy.sparse.coo_matrix(entries, tuple(nodes["shape"])).toarray()


@given(
    size=st.integers(2, 12),
    edges=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
)
def test_against_networkx(size, edges, seed):
    """The simple graph, its largest component and its induced edges by networkx; sparse features as dense ones."""
    edges = [(a % size, b % size) for a, b in edges]
    if all(a == b for a, b in edges):
        return
    features = np.random.default_rng(seed).integers(-2, 3, (size, 4)).astype(np.float32)
    dense = standardize(graph(edges, size, nodes=features))
    expected = networkx.Graph()
    expected.add_nodes_from(range(size))
    expected.add_edges_from((a, b) for a, b in edges if a != b)
    largest = max(networkx.connected_components(expected), key=lambda nodes: (len(nodes), -min(nodes)))
    kept = sorted(largest)
    np.testing.assert_array_equal(dense.kept, kept)
    named = sorted((kept[a], kept[b]) for a, b in edges_of(dense.arrays))
    inside = expected.subgraph(largest).edges
    assert named == sorted([*inside, *((b, a) for a, b in inside)])
    norm = np.abs(features[kept]).sum(1, keepdims=True)
    np.testing.assert_allclose(dense.arrays["x"]["nodes"], features[kept] / np.maximum(norm, 1e-12), rtol=1e-6)
    sparse = standardize(graph(edges, size, nodes=sparse_form(features)))
    np.testing.assert_array_equal(dense_form(sparse.arrays["x"]["nodes"]), dense.arrays["x"]["nodes"])
    assert sparse.notes == dense.notes and edges_of(sparse.arrays) == edges_of(dense.arrays)


def missing(name):
    arrays = graph([(0, 1)], 2)
    del arrays["x"][name]
    return arrays


def unsorted():
    nodes = sparse_form(np.eye(2))
    return graph([(0, 1)], 2, nodes={**nodes, "rows": nodes["rows"][::-1].copy()})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (lambda: graph([], 3), "no edge between two different nodes"),
        (lambda: graph([(1, 1)], 3), "no edge between two different nodes"),
        (lambda: graph([(0, 1), (1, 3)], 3), r"edge 1 joins 1 and 3, but the nodes are 0..2 \(1 such edge\)"),
        (lambda: graph([(0, -1)], 3), "edge 0 joins 0 and -1"),
        (lambda: graph([(0, 1)], 2, weights=[-1]), "weight of edge 0 is -1; weights must be finite and 0 or more"),
        (lambda: graph([(0, 1)], 2, weights=[np.nan]), "weight of edge 0 is nan"),
        (lambda: graph([(0, 1)], 2, weights=[1, 1]), r"vectors of one length, got \[1\], \[1\], \[2\]"),
        (lambda: graph([(0, 1)], 2, nodes=np.array([[1.0], [np.nan]])), "features of 1 node have NaN or .* node 1"),
        (lambda: graph([(0, 1)], 2, nodes=sparse_form([[1, np.inf], [0, 1]])), "the first is node 0"),
        (lambda: graph([(0, 1)], 2, nodes=np.ones(2)), r"features \[nodes, features\], got shape \[2\]"),
        (unsorted, "sorted by"),
        (lambda: graph([(0, 1)], 2, y=[-1, -1]), "the graph has no labelled node"),
        (lambda: graph([(0, 1)], 3, y=[-1, -1, 0]), "the largest connected component has no labelled node"),
        (lambda: graph([(0, 1)], 2, y=[0, 1, 0]), r"'y' must have one entry for each of the 2 nodes, got shape \[3\]"),
        (lambda: graph([(0, 1)], 2, split=np.zeros(3)), "'split' must have one entry for each of the 2 nodes"),
        (lambda: missing("nodes"), "needs the array 'nodes', it has receivers, senders, weights"),
        (lambda: {"x": np.ones(3), "y": np.ones(3)}, "x must be a dict with the arrays nodes, senders"),
        (lambda: {"x": {}}, "needs 'x' and 'y', it has x"),
    ],
)
def test_bad_graphs_are_one_line(arrays, message):
    with pytest.raises(UsageError, match=message) as caught:
        standardize(arrays())
    assert "\n" not in str(caught.value)


def test_weights_may_be_left_out():
    assert edges_of(standardize(missing("weights")).arrays) == [(0, 1), (1, 0)]


def test_karate_and_digits_are_connected():
    karate = standardize(load("karate")[0])
    assert len(karate.arrays["x"]["senders"]) == 2 * 78 and len(karate.kept) == 34  # Zachary 1977
    digits = standardize(load("digits_knn")[0], largest_component=False)
    np.testing.assert_allclose(digits.arrays["x"]["nodes"].sum(1), 1, rtol=1e-6)
    assert 5 * 1797 / 2 <= len(digits.arrays["x"]["senders"]) / 2 <= 5 * 1797


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "classes"),
    [
        ("citeseer", 2110, 3668, 3703, 6),  # Gasteiger et al. 2019, table 1
        ("cora_ml", 2810, 7981, 2879, 7),
        ("pubmed", 19717, 44324, 500, 3),
        ("ms_academic", 18333, 81894, 6805, 15),
        ("cora", 2485, 5069, 1433, 7),  # Shchur et al. 2018, table 1
        ("planetoid_cora", 2485, 5069, 1433, 7),
    ],
)
def test_the_published_sizes(name, nodes, edges, features, classes, data_folder, monkeypatch):
    monkeypatch.setenv("JAXKIT_DATA", str(data_folder))
    if loading.missing(CARDS[name]):
        pytest.skip(f"{name} is not in the data folder")
    raw = load(name, download=False)[0]
    arrays, kept, notes = standardize(raw)
    x = arrays["x"]
    assert len(arrays["y"]) == len(kept) == nodes and len(x["senders"]) == 2 * edges
    assert tuple(x["nodes"]["shape"]) == (nodes, features) and arrays["y"].max() + 1 == classes
    adjacency = scipy.sparse.coo_matrix((x["weights"], (x["senders"], x["receivers"])), (nodes, nodes)).tocsr()
    assert (adjacency != adjacency.T).nnz == 0 and adjacency.diagonal().sum() == 0 and adjacency.max() == 1
    norms = np.bincount(x["nodes"]["rows"], np.abs(x["nodes"]["values"]), nodes)
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
    np.testing.assert_array_equal(arrays["y"], raw["y"][kept])
    left_out = len(raw["y"]) - nodes
    assert any(f"{left_out:,} nodes outside" in note for note in notes) == (left_out > 0)
