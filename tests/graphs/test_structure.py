"""A-hat, hops and features against their dense definitions; nodes have no order; bad graphs are said in one line."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.graphs import Nodes, Sparse, build, dense_nodes, hops, node_data, propagate, with_pagerank
from jaxkit.graphs.structure import matrix
from tests.graphs import toy


def test_edges_are_the_normalised_adjacency():
    dense = np.zeros((toy.NODES, toy.NODES))
    graph = toy.graph()
    dense[np.asarray(graph.receivers), np.asarray(graph.senders)] = graph.edges
    np.testing.assert_allclose(dense, toy.adjacency(), atol=1e-6)
    np.testing.assert_allclose(matrix(graph).toarray(), toy.adjacency(), atol=1e-6)
    assert int(graph.n_edge[0]) == len(graph.edges) == len(toy.arrays()["x"]["senders"]) + toy.NODES


def test_a_node_without_an_edge_keeps_its_own_features():
    x = toy.arrays()["x"]
    alone = {**x, "nodes": np.concatenate([x["nodes"], np.full((1, toy.FEATURES), 0.5, np.float32)])}
    graph = build(alone)
    np.testing.assert_allclose(propagate(graph, dense_nodes(graph))[-1], 0.5, rtol=1e-6)


def test_hops_are_powers_of_the_adjacency():
    expected = [np.linalg.matrix_power(toy.adjacency(), power) @ toy.arrays()["x"]["nodes"] for power in range(4)]
    rows = np.array([3, 50, 7])
    np.testing.assert_allclose(hops(toy.graph(), 4), expected, atol=1e-6)
    np.testing.assert_allclose(hops(toy.graph(), 4, rows), np.stack(expected)[:, rows], atol=1e-6)
    signal = dense_nodes(toy.graph())
    for power in range(1, 4):
        signal = jax.jit(propagate)(toy.graph(), signal)
        np.testing.assert_allclose(signal, expected[power], atol=1e-6)


def test_sparse_features_are_dense_ones():
    random = np.random.default_rng(0)
    dense = np.where(random.random((9, 5)) < 0.3, random.random((9, 5)), 0).astype(np.float32)
    rows, columns = np.nonzero(dense)
    sparse = Sparse(jnp.asarray(dense[rows, columns]), jnp.asarray(rows), jnp.asarray(columns), dense.shape)
    kernel = jnp.asarray(random.normal(size=(5, 4)), jnp.float32)
    np.testing.assert_array_equal(sparse.dense(), dense)
    np.testing.assert_allclose(jax.jit(lambda s, k: s @ k)(sparse, kernel), dense @ kernel, atol=1e-6)
    one, two = (jax.grad(lambda k: jnp.sum(jnp.sin(x @ k)))(kernel) for x in (sparse, jnp.asarray(dense)))
    np.testing.assert_allclose(one, two, atol=1e-6)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf, sparse), sparse)
    nodes = {"values": dense[rows, columns], "rows": rows, "columns": columns, "shape": np.array(dense.shape)}
    edges = {"senders": np.array([0, 1]), "receivers": np.array([1, 0]), "weights": np.ones(2)}
    graph = build({"nodes": nodes, **edges})
    np.testing.assert_array_equal(dense_nodes(graph), dense)
    np.testing.assert_allclose(hops(graph, 2)[1], matrix(graph) @ dense, atol=1e-6)


def test_renumbering_the_nodes_renumbers_their_hops():
    order = np.random.default_rng(1).permutation(toy.NODES)
    place = np.argsort(order)  # node i of the old graph is node place[i] of the new
    x = toy.arrays()["x"]
    moved = {**x, "nodes": x["nodes"][order], "senders": place[x["senders"]], "receivers": place[x["receivers"]]}
    np.testing.assert_allclose(hops(build(moved), 4), hops(toy.graph(), 4)[:, order], atol=1e-6)


def test_pagerank_is_the_inverse():
    alpha = 0.1
    expected = alpha * np.linalg.inv(np.eye(toy.NODES) - (1 - alpha) * toy.adjacency())
    np.testing.assert_allclose(with_pagerank(toy.graph(), alpha).globals, expected, atol=1e-6)
    with pytest.raises(UsageError, match="take appnp here"):
        with_pagerank(toy.graph(), most_nodes=10)
    with pytest.raises(UsageError, match="alpha must lie in"):
        with_pagerank(toy.graph(), 0.0)


def test_node_data_has_the_labels_of_its_rows():
    train, stopping, _ = toy.split()
    data = node_data(toy.graph(), toy.arrays()["y"], train, stopping)
    assert isinstance(data["x"], Nodes) and jax.tree.leaves(data["x"])[0].shape == train.shape
    np.testing.assert_array_equal(data["y"], toy.arrays()["y"][train])
    np.testing.assert_array_equal(data["stopping"]["y"], toy.arrays()["y"][stopping])


def changed(**arrays):
    return lambda: build({**toy.arrays()["x"], **arrays})


def asked(y=None, rows=(0, 1), stopping=(2,)):
    return lambda: node_data(toy.graph(), toy.arrays()["y"] if y is None else y, np.array(rows), np.array(stopping))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed(senders=toy.arrays()["x"]["receivers"][::-1]), "one direction only; call standardize"),
        (changed(weights=1.0 + np.arange(len(toy.arrays()["x"]["weights"]))), "one direction only; call standardize"),
        (changed(weights=-toy.arrays()["x"]["weights"]), "finite numbers above 0"),
        (changed(weights=toy.arrays()["x"]["weights"] * np.nan), "finite numbers above 0"),
        (changed(weights=np.ones(3)), "three vectors of one length"),
        (changed(nodes=np.full((toy.NODES, 2), np.nan)), "NaN or infinity"),
        (changed(nodes=np.ones((toy.NODES, 0))), "nodes has no features"),
        (changed(nodes={"values": np.ones(1)}), "sparse features need 'rows'"),
        (
            lambda: build({"nodes": np.eye(2), "senders": [0], "receivers": [0], "weights": [1.0]}),
            "self loops",
        ),
        (changed(receivers=toy.arrays()["x"]["receivers"] + 1), "an edge joins nodes outside 0..71"),
        (lambda: build({"nodes": np.eye(2)}), "needs the array 'senders', it has nodes"),
        (asked(rows=(0, 72)), "rows must lie in 0..71, got 0..72"),
        (asked(rows=()), "rows must be a vector of node numbers"),
        (asked(rows=(0.5,)), "rows must be a vector of node numbers"),
        (asked(stopping=(1,)), "1 nodes are both in rows and in stopping, the first is 1"),
        (asked(y=np.full(toy.NODES, -1)), "rows holds 2 nodes without a label"),
        (asked(rows=(3, 3)), "rows names 1 nodes twice"),
        (asked(y=np.zeros(toy.NODES)), "y must hold whole numbers"),
        (asked(y=np.zeros(3, int)), "one label for each of the 72 nodes"),
        (lambda: hops(toy.graph(), 0), "hops must be at least 1"),
    ],
)
def test_a_bad_graph_is_said_in_one_line(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
