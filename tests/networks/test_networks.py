"""The protocol of Network, on every small network: shapes, types, padding, precision, names; and what heads promise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit import networks
from jaxkit.check import UsageError
from jaxkit.learner import from_example_loss
from jaxkit.networks import heads, layers

KEY = jax.random.key(0)
SMALL = {
    "mlp": {"name": "mlp", "hidden": (16, 8)},
    "mlp, batch norm": {"name": "mlp", "hidden": (16, 8), "norm": "batch"},
    "mlp, layer norm, cosine": {"name": "mlp", "hidden": (16, 8), "norm": "layer", "head": "cosine"},
    "convnet": {"name": "convnet", "width": 4},
    "convnet, batch norm, cosine": {"name": "convnet", "width": 4, "norm": "batch", "head": "cosine"},
}
X = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))


def build(case, **more):
    options = {**SMALL[case], **more}
    return networks.make(options.pop("name"), options.pop("num_classes", 5), **options)


@pytest.fixture(params=SMALL)
def case(request):
    return request.param


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_protocol(case, precision):
    network = build(case, precision=precision)
    params, variables = network.init(KEY, X)
    assert set(params) == {"backbone", "head"}
    outputs, after = network.apply(params, variables, X, train=True, key=KEY)
    assert outputs["logits"].shape == (6, 5) and outputs["features"].ndim == 2 and len(outputs["features"]) == 6
    avals = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)
    assert avals(after) == avals(variables)
    for leaf in jax.tree.leaves((params, variables, outputs, after)):
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 and not leaf.weak_type
    chex.assert_tree_all_finite((params, outputs, after))
    assert network.apply(params, variables, X)[1] is variables
    if precision == "bfloat16":
        exact = build(case).apply(params, variables, X)[0]["logits"]
        np.testing.assert_allclose(
            network.apply(params, variables, X)[0]["logits"], exact, atol=0.05 * float(jnp.abs(exact).max())
        )


def test_init_reads_shapes_alone(case):
    network = build(case)
    chex.assert_trees_all_equal(network.init(KEY, X), network.init(KEY, jnp.full_like(X, jnp.nan)))
    chex.assert_trees_all_equal(jax.jit(network.init)(KEY, X), network.init(KEY, np.asarray(X)))


@pytest.fixture(scope="module")
def normed():
    network = build("convnet, batch norm, cosine")
    params, variables = network.init(KEY, X)
    return variables, jax.jit(lambda x, valid: network.apply(params, variables, x, train=True, valid=valid))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), count=st.integers(0, 6), order=st.permutations(range(6)))
def test_padding_changes_nothing(normed, seed, count, order):
    """Rows that are not valid change no output of a valid row and no statistic."""
    variables, apply = normed
    valid = np.isin(np.arange(6), order[:count])
    junk = 100.0 * jax.random.normal(jax.random.key(seed), X.shape)
    outputs, after = apply(jnp.where(valid[:, None, None, None], X, junk), valid)
    if count == 0:
        chex.assert_trees_all_equal(after, variables)
        return
    expected, statistics = apply(X[valid], None)  # the valid rows by themselves
    rows = jax.tree.map(lambda leaf: leaf[valid], outputs)
    chex.assert_trees_all_close(rows, expected, rtol=2e-4, atol=2e-4)
    chex.assert_trees_all_close(after, statistics, rtol=2e-4, atol=2e-5)


def test_batch_norm_against_numpy():
    network = build("mlp, batch norm", hidden=(3,))
    params, variables = network.init(KEY, X)
    outputs, after = network.apply(params, variables, X, train=True)
    dense = params["backbone"]["dense_0"]
    assert set(dense) == {"kernel"}  # a bias before batch normalisation would be taken away again
    z = np.asarray(X).reshape(6, -1) @ np.asarray(dense["kernel"])
    expected = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), 0.0)
    np.testing.assert_allclose(outputs["features"], expected, atol=1e-4)
    statistics = after["batch_stats"]["backbone"]["norm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * z.mean(0), atol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * z.var(0), atol=1e-5)


def test_learns_with_a_frozen_backbone():
    network = build("mlp, batch norm")
    labels = jnp.arange(6) % 5
    loss = lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["y"])
    learner = from_example_loss(network, loss, optax.adam(0.05), freeze="backbone")
    batch = {"x": X, "y": labels}
    first = state = learner.init(KEY, batch)
    update, losses = jax.jit(learner.update), []
    for _ in range(60):
        state, metrics = update(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    chex.assert_trees_all_equal(state.params["backbone"], first.params["backbone"])
    chex.assert_trees_all_equal(state.variables, first.variables)


def test_dropout():
    network = build("mlp", dropout=0.5)
    params, variables = network.init(KEY, X)
    with pytest.raises(UsageError, match="key="):
        network.apply(params, variables, X, train=True)
    one, two = (network.apply(params, variables, X, train=True, key=jax.random.key(i))[0]["features"] for i in (1, 2))
    assert not np.array_equal(one, two)
    chex.assert_trees_all_equal(network.apply(params, variables, X), network.apply(params, variables, X, key=KEY))


def test_linear_model_and_regression():
    network = networks.mlp(3, hidden=(), output="mean")
    params, variables = network.init(KEY, X)
    outputs, _ = network.apply(params, variables, X)
    flat = np.asarray(X).reshape(6, -1)
    np.testing.assert_allclose(outputs["mean"], flat @ np.asarray(params["head"]["kernel"]), atol=1e-5)
    np.testing.assert_array_equal(outputs["features"], flat)


def test_convnet_parameters():
    """9*1*32 + 32, 9*32*64 + 64, 7*7*64*128 + 128, 128*10 + 10."""
    params, variables = networks.convnet(10).init(KEY, jnp.zeros((1, 28, 28, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 320 + 18496 + 401536 + 1290
    assert variables == {}


# heads


def test_cosine_head_is_the_cosine():
    network = networks.mlp(4, hidden=(), head=heads.cosine(scale=7.0, learn_scale=False))
    params, variables = network.init(KEY, X)
    assert set(params["head"]) == {"kernel"}
    logits = network.apply(params, variables, X)[0]["logits"]
    f, w = np.asarray(X).reshape(6, -1), np.asarray(params["head"]["kernel"])
    expected = 7.0 * (f @ w) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(network.apply(params, variables, 9.0 * X)[0]["logits"], logits, atol=1e-5)


def test_cosine_head_at_zero_features():
    network = networks.mlp(4, hidden=(), head="cosine")
    params, variables = network.init(KEY, X)
    value = lambda params, x: network.apply(params, variables, x)[0]["logits"].sum()
    chex.assert_tree_all_finite(jax.grad(value, (0, 1))(params, jnp.zeros_like(X)))


@pytest.mark.parametrize("head", ["linear", "cosine", heads.linear(bias=False)])
def test_grown_head_keeps_old_classes(head):
    params, variables = networks.mlp(3, (8,), head).init(KEY, X)
    grown = heads.grow_head(params, 7, jax.random.key(2))
    assert networks.num_classes_of(grown) == 7
    before = networks.mlp(3, (8,), head).apply(params, variables, X)[0]
    after = networks.mlp(7, (8,), head).apply(grown, variables, X)[0]
    np.testing.assert_array_equal(grown["head"]["kernel"][:, :3], params["head"]["kernel"])
    chex.assert_trees_all_equal(grown["backbone"], params["backbone"])
    np.testing.assert_allclose(after["logits"][:, :3], before["logits"], rtol=1e-6)
    assert float(jnp.std(grown["head"]["kernel"][:, 3:])) > 0
    chex.assert_trees_all_equal(heads.grow_head(params, 3, KEY), params)
    with pytest.raises(UsageError, match="at least 3"):
        heads.grow_head(params, 2, KEY)
    with pytest.raises(UsageError, match="head/kernel"):
        heads.grow_head({"layer": {}}, 5, KEY)


# convolution


@pytest.mark.parametrize("shape", [(3, 9), (8, 7)])
@pytest.mark.parametrize("size, stride, padding", [(3, 2, None), (3, 1, 1), (4, 2, None), (1, 2, 0), (2, 3, 2)])
def test_convolution_forms_agree(shape, size, stride, padding):
    padding = layers.same_padding(shape, size, stride) if padding is None else ((padding,) * 2,) * 2
    x = jax.random.normal(KEY, (2, *shape, 3))
    for groups, outputs in ((1, 5), (3, 3)):
        kernel = jax.random.normal(jax.random.key(1), (size, size, 3 // groups, outputs))
        form = lambda method: layers.convolve(x, kernel, stride, padding, groups=groups, method=method)
        np.testing.assert_allclose(form("lax"), form("slices"), rtol=1e-5, atol=2e-5)


def test_same_padding_is_xlas():
    x, kernel = jax.random.normal(KEY, (2, 7, 8, 3)), jax.random.normal(KEY, (3, 3, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)
    given = layers.convolve(x, kernel, 2, layers.same_padding((7, 8), 3, 2), method="lax")
    np.testing.assert_array_equal(given, expected)


# what a user gets wrong


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: networks.make("convnt", 10), "did you mean 'convnet'"),
        (lambda: networks.make("MLP", 10, hiden=(3,)), "did you mean 'hidden'"),
        (lambda: networks.make("mlp", 10, head="cosin"), "did you mean 'cosine'"),
        (lambda: networks.make("mlp", 10, precision="float16"), "unknown precision 'float16'"),
        (lambda: networks.make("mlp", 0), "num_classes must be at least 1"),
        (lambda: networks.make("mlp", 3, hidden=(0,)), "hidden must be at least 1"),
        (lambda: networks.make("mlp", 3, dropout=1.0), "dropout must lie in"),
        (lambda: networks.make("convnet", 3).init(KEY, X[..., 0]), r"x\[..., None\]"),
        (lambda: heads.cosine(scale=0.0), "scale must be"),
    ],
)
def test_one_clear_line(wrong, message):
    with pytest.raises(UsageError, match=message) as error:
        wrong()
    assert "\n" not in str(error.value)
