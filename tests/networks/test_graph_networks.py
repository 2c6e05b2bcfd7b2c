"""Graph networks against dense transcriptions of their formulas in NumPy, and what holds for every one of them."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.experimental import sparse

import jaxkit
from jaxkit import networks
from jaxkit.check import UsageError
from jaxkit.learner import from_example_loss
from jaxkit.networks.graph import drop, spread
from jaxkit.networks.graph.attention import edge_softmax
from jaxkit.networks.graph.propagation import PowerIteration

KEY = jax.random.key(0)
N, F, K, ALPHA = 12, 7, 3, 0.2
ALONE = N - 1  # a node whose only neighbour is itself
CASES = {
    "gcn": ("gcn", {"hidden": 5, "depth": 3}),
    "gcn, one layer": ("gcn", {"depth": 1}),
    "gat": ("gat", {"hidden": 4, "heads": 2, "output_heads": 3}),
    "appnp": ("appnp", {"hidden": 5, "alpha": ALPHA, "hops": 4}),
    "ppnp": ("ppnp", {"hidden": 5}),
    "jknet, concat": ("jknet", {"hidden": 5, "depth": 3}),
    "jknet, max": ("jknet", {"hidden": 5, "depth": 3, "jump": "max"}),
    "gcnii": ("gcnii", {"hidden": 5, "depth": 4, "alpha": 0.3, "theta": 0.7}),
    "mixhop": ("mixhop", {"hidden": 4, "powers": (0, 3, 1)}),
}


class Graph(NamedTuple):
    """The fields of a graph that a network reads."""

    nodes: Any
    edges: Any
    senders: Any
    receivers: Any
    globals: Any = None


class Nodes(NamedTuple):
    rows: Any
    graph: Graph


def _adjacency():
    """A directed graph with weights, so that a network that confuses senders and receivers is found out.

    D_r^{-1/2} (A + I) D_c^{-1/2} has the largest singular value 1.
    """
    generator = np.random.default_rng(0)
    weights = generator.uniform(0.5, 1.5, (N, N)) * (generator.random((N, N)) < 0.25)
    weights[ALONE] = weights[:, ALONE] = 0
    np.fill_diagonal(weights, 1.0)
    return weights / np.sqrt(weights.sum(1)[:, None] * weights.sum(0))


M = _adjacency()
X = np.random.default_rng(1).normal(size=(N, F)) * (np.random.default_rng(2).random((N, F)) < 0.5)


def graph_of(matrix, features):
    """The graph of a dense matrix; its edges in random order."""
    receivers, senders = np.nonzero(matrix)
    order = np.random.default_rng(3).permutation(len(senders))
    receivers, senders = receivers[order], senders[order]
    exact = ALPHA * np.linalg.inv(np.eye(N) - (1 - ALPHA) * matrix)
    floats = (jnp.asarray(leaf, jnp.float32) for leaf in (features, matrix[receivers, senders], exact))
    nodes, edges, exact = floats
    return Graph(nodes, edges, jnp.asarray(senders, jnp.int32), jnp.asarray(receivers, jnp.int32), exact)


GRAPH = graph_of(M, X)
EVERY = Nodes(jnp.arange(N), GRAPH)


class Case(NamedTuple):
    name: str
    network: networks.Network
    params: Any
    logits: Any  # (params, x) -> [n, K] without dropout
    train: Any  # (params, key) -> (gradient, logits) in training, at the node alone


@pytest.fixture(scope="module", params=CASES)
def case(request):
    name, options = CASES[request.param]
    network = networks.make(name, K, **options)
    params, variables = network.init(KEY, EVERY)
    assert variables == {}
    leaves, structure = jax.tree.flatten(params)  # moved off the initial values, so that biases count
    generator = np.random.default_rng(4)
    moved = [jnp.asarray(leaf + 0.3 * generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves]

    def training(params, key):
        logits = network.apply(params, {}, Nodes(jnp.array([ALONE]), GRAPH), train=True, key=key)[0]["logits"]
        return (logits**2).sum(), logits

    return Case(
        request.param,
        network,
        jax.tree.unflatten(structure, moved),
        jax.jit(lambda params, x: network.apply(params, {}, x)[0]["logits"]),
        jax.jit(jax.grad(training, has_aux=True)),
    )


# the formulas, dense and in double precision

relu = lambda x: np.maximum(x, 0.0)


def layers_of(params):
    backbone = params.get("backbone", {})
    return [backbone[name] for name in sorted(backbone) if name.startswith("layers_")]


def gcn_by_hand(params):
    hidden = X
    for layer in layers_of(params):
        hidden = relu(M @ hidden @ layer["kernel"])
    return M @ hidden @ params["head"]["kernel"]


def attention_by_hand(hidden, layer, heads):
    outs = []
    for head, kernel in enumerate(np.split(layer["kernel"], heads, axis=1)):
        z = hidden @ kernel
        scores = (z @ layer["receiver"][:, head])[:, None] + (z @ layer["sender"][:, head])[None, :]
        scores = np.where(M != 0, np.where(scores > 0, scores, 0.2 * scores), -np.inf)
        outs.append(scipy.special.softmax(scores, axis=1) @ z)
    return outs


def gat_by_hand(params):
    (layer,) = layers_of(params)
    hidden = np.concatenate(attention_by_hand(X, layer, 2), axis=1) + layer["bias"]
    hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
    return np.mean(attention_by_hand(hidden, params["head"], 3), axis=0) + params["head"]["bias"]


def perceptron_by_hand(params):
    (layer,) = layers_of(params)
    return relu(X @ layer["kernel"]) @ params["head"]["kernel"]


def appnp_by_hand(params):
    start = values = perceptron_by_hand(params)
    for _ in range(4):
        values = (1 - ALPHA) * M @ values + ALPHA * start
    return values


def ppnp_by_hand(params):
    return ALPHA * np.linalg.solve(np.eye(N) - (1 - ALPHA) * M, perceptron_by_hand(params))


def jknet_by_hand(params, jump):
    hidden, seen = X, []
    for layer in layers_of(params):
        hidden = relu(M @ hidden @ layer["kernel"])
        seen.append(hidden)
    return jump(seen) @ params["head"]["kernel"] + params["head"]["bias"]


def gcnii_by_hand(params):
    (layer,) = layers_of(params)
    hidden = first = relu(X @ layer["kernel"] + layer["bias"])
    for l, kernel in enumerate(params["backbone"]["kernels"], 1):
        beta = np.log(0.7 / l + 1)
        mapping = (1 - beta) * np.eye(5) + beta * kernel
        hidden = relu((0.7 * M @ hidden + 0.3 * first) @ mapping)
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def mixhop_by_hand(params):
    powers = [np.linalg.matrix_power(M, power) for power in (0, 3, 1)]
    (layer,) = layers_of(params)
    kernels = np.split(layer["kernel"], 3, axis=1)
    hidden = relu(np.concatenate([power @ X @ kernel for power, kernel in zip(powers, kernels)], axis=1))
    share = np.exp(params["head"]["q"]) / np.exp(params["head"]["q"]).sum()
    kernels = np.split(params["head"]["kernel"], 3, axis=1)
    return sum(s * power @ hidden @ kernel for s, power, kernel in zip(share, powers, kernels))


BY_HAND = {
    "gcn": gcn_by_hand,
    "gcn, one layer": gcn_by_hand,
    "gat": gat_by_hand,
    "appnp": appnp_by_hand,
    "ppnp": ppnp_by_hand,
    "jknet, concat": lambda params: jknet_by_hand(params, lambda seen: np.concatenate(seen, axis=1)),
    "jknet, max": lambda params: jknet_by_hand(params, lambda seen: np.maximum.reduce(seen)),
    "gcnii": gcnii_by_hand,
    "mixhop": mixhop_by_hand,
}


def test_is_its_formula(case):
    expected = BY_HAND[case.name](jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case.params))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(case.logits(case.params, EVERY), expected, rtol=1e-5, atol=1e-5)


def test_order_of_nodes_does_not_matter(case):
    order = np.random.default_rng(5).permutation(N)
    renamed = Nodes(EVERY.rows, graph_of(M[order][:, order], X[order]))
    expected = np.asarray(case.logits(case.params, EVERY))[order]
    np.testing.assert_allclose(case.logits(case.params, renamed), expected, rtol=1e-5, atol=1e-5)


def test_sparse_features_and_asked_rows(case):
    """Sparse features are the dense ones, and the rows asked for are those of the full output."""
    rows = np.array([4, ALONE, 0, 4])
    x = Nodes(jnp.asarray(rows), GRAPH._replace(nodes=sparse.BCOO.fromdense(GRAPH.nodes)))
    expected = np.asarray(case.logits(case.params, EVERY))[rows]
    np.testing.assert_allclose(case.logits(case.params, x), expected, rtol=1e-5, atol=1e-5)


def test_protocol(case):
    """Parameters' shapes come from F, the widths and K alone; outputs are those of the rows asked for."""
    network = case.network
    avals = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)
    shapes = jax.eval_shape(network.init, KEY, Nodes(EVERY.rows[:2], GRAPH._replace(senders=GRAPH.receivers)))
    assert avals(shapes[0]) == avals(case.params)
    assert set(case.params) <= {"backbone", "head"}
    outputs, variables = jax.eval_shape(network.apply, case.params, {}, Nodes(EVERY.rows[:2], GRAPH))
    assert variables == {} and set(outputs) == {"logits", "features"}
    assert outputs["logits"].shape == (2, K) and outputs["features"].shape[0] == 2
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in jax.tree.leaves((outputs, case.params)))


def test_init_reads_no_values():
    network = networks.gcn(K, 4)
    broken = EVERY._replace(graph=GRAPH._replace(nodes=jnp.full((N, F), jnp.nan)))
    chex.assert_trees_all_equal(network.init(KEY, EVERY), network.init(KEY, broken))


def test_dropout_and_gradient_at_a_node_alone(case):
    (one, first), (_, again), (_, other) = (case.train(case.params, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    chex.assert_tree_all_finite((one, first, other))
    with pytest.raises(UsageError, match="key="):
        jax.eval_shape(lambda: case.network.apply(case.params, {}, EVERY, train=True))


def test_many_hops_of_appnp_are_ppnp():
    """The error of k steps is at most (1 - alpha)^k times the start's; 0.8^200 is 4e-20."""
    exact, steps = networks.ppnp(K, 5), networks.appnp(K, 5, alpha=ALPHA, hops=200)
    params, _ = exact.init(KEY, EVERY)
    logits = [jax.jit(network.apply)(params, {}, EVERY)[0]["logits"] for network in (exact, steps)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


# the pieces


def test_spread_is_the_matrix_product():
    product = jax.jit(spread)
    np.testing.assert_allclose(product(GRAPH.nodes, GRAPH), M @ X, atol=1e-6)
    np.testing.assert_allclose(product(GRAPH.nodes, GRAPH, 2 * GRAPH.edges), 2 * M @ X, atol=1e-6)


def test_drop_is_dropout_of_the_dense_matrix():
    """Values are 0 or x / (1 - rate), the share of zeros is the rate (4,000 draws: 5 deviations are 0.034), and what a
    sparse matrix does not store stays 0."""
    thinning = jax.jit(drop, static_argnums=1)
    values, matrix = jnp.arange(1.0, 4001.0), sparse.BCOO.fromdense(GRAPH.nodes)
    dropped = np.asarray(thinning(values, 0.25, KEY))
    assert abs((dropped == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], np.asarray(values)[kept] / 0.75, rtol=1e-6)
    thinned = thinning(matrix, 0.5, KEY)
    np.testing.assert_array_equal(thinned.indices, matrix.indices)
    assert set((np.asarray(thinned.data) / np.asarray(matrix.data)).tolist()) == {0.0, 2.0}


def test_power_iteration_drops_edges_anew_in_every_step():
    """Then, and only then, the mean over dropout is the product without: the draws of a product are independent."""
    head = PowerIteration(2, 0.5, ALPHA, 3)
    nodes = jax.random.normal(KEY, (N, 4))
    params = head.init({"params": KEY}, nodes, GRAPH, None, False)
    draw = lambda key: head.apply(params, nodes, GRAPH, None, True, rngs={"dropout": key})
    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(6), 4000)), np.float64)
    deviation = draws.std(0) / np.sqrt(len(draws))
    exact = np.asarray(head.apply(params, nodes, GRAPH, None, False))
    assert np.abs((draws.mean(0) - exact) / deviation).max() < 5  # 24 values


def test_edge_softmax_of_large_scores():
    """Over the edges into one node: a logistic function of the difference of two scores, 1 for a single one."""
    scores, receivers = jnp.array([[3e4], [-3e4], [2.0], [1.0], [-5e4]]), jnp.array([0, 0, 2, 2, 1])
    softmax = jax.jit(lambda scores: edge_softmax(scores, receivers, 3)[:, 0])
    high, low = scipy.special.expit([1, -1])
    np.testing.assert_allclose(softmax(scores), [1, 0, high, low, 1], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda scores: softmax(scores)[2]))(scores)
    np.testing.assert_allclose(gradient[:, 0], [0, 0, high * low, -high * low, 0], atol=1e-6)


# as a user meets them


@pytest.mark.parametrize(
    "name, options, count",
    [
        ("GCN", {"hidden": 16}, 1433 * 16 + 16 * 7),
        ("gat", {}, 1433 * 64 + 2 * 64 + 64 + 64 * 7 + 2 * 7 + 7),  # kernel, both vectors and bias of each layer
        ("GCNII", {"depth": 64}, 1433 * 64 + 64 + 64 * 64 * 64 + 64 * 7 + 7),
        ("mix-hop", {}, None),
    ],
)
def test_parameters_on_cora_by_name(name, options, count):
    """Cora has 1,433 features and 7 classes."""
    if count is None:
        with pytest.raises(UsageError, match="did you mean 'mixhop'"):
            networks.make(name, 7)
        return
    x = Nodes(jnp.zeros(1, jnp.int32), GRAPH._replace(nodes=jax.ShapeDtypeStruct((2708, 1433), jnp.float32)))
    params, _ = jax.eval_shape(networks.make(name, 7, **options).init, KEY, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_learns_from_a_few_labels():
    """Features that say nothing, and two groups joined within alone: two labels are enough for the other ten nodes."""
    group = np.arange(N) // 6
    matrix = (group[:, None] == group) / 6.0
    x = Nodes(jnp.array([0, 6]), graph_of(matrix, np.eye(N)))
    loss = lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["y"])
    learner = from_example_loss(networks.gcn(2, 8), loss, optax.adam(0.05))
    batch = {"x": x, "y": jnp.array([0, 1])}
    state, update = learner.init(KEY, batch), jax.jit(learner.update)
    for step in range(60):
        state, metrics = update(state, batch, jax.random.key(step))
    assert metrics["finite"] == 1
    predicted = learner.predict(state, {"x": x._replace(rows=jnp.arange(N))})["logits"].argmax(-1)
    np.testing.assert_array_equal(predicted, group)


def lacking(part):
    return Nodes(EVERY.rows, GRAPH._replace(**{part: None}))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: networks.gcn(K, depth=0), "depth must be at least 1"),
        (lambda: networks.gcn(0), "num_classes must be at least 1"),
        (lambda: networks.gat(K, heads=0), "heads must be at least 1"),
        (lambda: networks.gat(K, output_heads=0), "output_heads must be at least 1"),
        (lambda: networks.gat(K, dropout=1.0), "dropout must lie in"),
        (lambda: networks.appnp(K, alpha=1.5), "alpha must lie in"),
        (lambda: networks.appnp(K, hops=-1), "hops must be at least 0"),
        (lambda: networks.ppnp(K, hidden=0), "hidden must be at least 1"),
        (lambda: networks.jknet(K, jump="maxi"), "did you mean 'max'"),
        (lambda: networks.gcnii(K, theta=0.0), "theta must be"),
        (lambda: networks.mixhop(K, powers=(0, 1, 1)), "different whole numbers"),
        (lambda: networks.mixhop(K, powers=()), "different whole numbers"),
        (lambda: networks.mixhop(K, powers=(-1,)), "powers must be at least 0"),
        (lambda: networks.make("gat", K, head=3), "did you mean 'heads'"),
        (lambda: networks.gcn(K).init(KEY, np.zeros((3, 2))), "an array of shape .3, 2.; for plain rows take"),
        (lambda: networks.jknet(K).init(KEY, {"nodes": np.zeros(3)}), "takes x = Nodes.rows, graph., got a dict"),
        (lambda: networks.gcnii(K).init(KEY, lacking("edges")), "it has no edges"),
        (lambda: networks.gat(K).init(KEY, lacking("senders")), "it has no senders"),
        (lambda: networks.ppnp(K).init(KEY, lacking("globals")), "got nothing; jaxkit.graphs' with_pagerank"),
        (lambda: networks.gcn(K).init(KEY, EVERY._replace(rows=jnp.zeros((2, 2)))), "x.rows .n., got the shapes"),
        (lambda: networks.gcn(K).init(KEY, Nodes(EVERY.rows, GRAPH._replace(edges=jnp.ones(3)))), "must all be .E."),
        (lambda: jaxkit.train(data=(X, np.arange(N) % 2), network="gcn", progress=False), "a network such as 'mlp'"),
    ],
)
def test_one_clear_line(wrong, message):
    with pytest.raises(UsageError, match=message) as error:
        wrong()
    assert "\n" not in str(error.value)
