"""The vision transformer against a transcription in NumPy; its stages, its prompts, and attention of task tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxkit.check import UsageError
from jaxkit.networks import make, part_of, vit
from jaxkit.networks.vision.vit import TaskAttention

KEY = jax.random.key(0)
ROWS, SIZE, CHANNELS, PATCH, WIDTH, HEADS, CLASSES = 4, 8, 2, 4, 8, 2, 5
X = jax.random.normal(jax.random.key(1), (ROWS, SIZE, SIZE, CHANNELS))
PROMPTS = jax.random.normal(jax.random.key(2), (ROWS, 3, WIDTH))
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@functools.lru_cache
def built(pool="class_token", depth=2):
    """A small network, with parameters that are all different from 0 and 1."""
    network = vit(CLASSES, PATCH, WIDTH, depth, HEADS, pool=pool)
    params, variables = network.init(KEY, X)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return network, structure.unflatten(moved), variables


@functools.partial(jax.jit, static_argnames=("made", "pool", "train"))
def applied(params, x, prompts=None, made="class_token", pool=None, train=False):
    network, _, variables = built(made)
    return network.apply(params, variables, x, prompts=prompts, pool=pool, train=train)[0]


def layer_norm(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def mlp(p, x):
    h = x @ p["dense_1"]["kernel"] + p["dense_1"]["bias"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ p["dense_2"]["kernel"] + p["dense_2"]["bias"]


def attention(p, x):
    """One image [tokens, width], one head after the other."""
    out = np.zeros_like(x) + p["out"]["bias"]
    for h in range(HEADS):
        q, k, v = (x @ p[name]["kernel"][:, h] + p[name]["bias"][h] for name in ("query", "key", "value"))
        out = out + softmax(q @ k.T / np.sqrt(WIDTH // HEADS), axis=1) @ v @ p["out"]["kernel"][h]
    return out


def transcribed(params, image, prompts, class_token, depth):
    """All tokens of one image after the last normalisation."""
    p = params["backbone"]
    sides = range(0, SIZE, PATCH)
    patches = np.stack([image[i : i + PATCH, j : j + PATCH].ravel() for i in sides for j in sides])
    x = patches @ p["patch"]["kernel"] + p["patch"]["bias"]
    x = np.concatenate([p["class_token"][0], x]) if class_token else x
    x = np.concatenate([prompts, x + p["positions"][0]])
    for i in range(depth):
        block = p[f"block_{i}"]
        x = x + attention(block["attention"], layer_norm(block["norm_1"], x))
        x = x + mlp(block["mlp"], layer_norm(block["norm_2"], x))
    return layer_norm(p["norm"], x)


def wanted(pool, prompts):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), built(pool)[1])
    x, prompts = np.asarray(X, np.float64), np.asarray(prompts, np.float64)
    tokens = [transcribed(params, x[i], prompts[i], pool == "class_token", 2) for i in range(ROWS)]
    return np.stack(tokens), params["head"]


@pytest.mark.parametrize(
    ("pool", "length", "reads"),
    [("class_token", 0, ("tokens", None)), ("class_token", 3, (None, "mean", "prompts")), ("mean", 3, (None,))],
)
def test_the_network_is_its_formula(pool, length, reads):
    prompts = PROMPTS[:, :length]
    tokens, head = wanted(pool, prompts)
    first = length + (pool == "class_token")
    features = {"tokens": tokens, "class_token": tokens[:, length], "mean": tokens[:, first:].mean(1)}
    features["prompts"] = tokens[:, : max(length, 1)].mean(1)
    for read in reads:
        outputs = applied(built(pool)[1], X, prompts if length else None, pool, read)
        want = features[read or pool]
        np.testing.assert_allclose(outputs["features"], want, **CLOSE)
        assert ("logits" in outputs) == (read != "tokens")
        if "logits" in outputs:
            np.testing.assert_allclose(outputs["logits"], want @ head["kernel"] + head["bias"], **CLOSE)


@pytest.mark.parametrize(
    ("patch", "side", "channels", "pool"), [(7, 28, 1, "class_token"), (4, 28, 1, "mean"), (2, 8, 3, "class_token")]
)
def test_parameters(patch, side, channels, pool):
    width, depth, classes, extra = 12, 3, 7, pool == "class_token"
    network = make("vit", classes, patch=patch, width=width, depth=depth, heads=3, pool=pool)
    x = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    params, variables = jax.eval_shape(network.init, KEY, x)
    tokens = (side // patch) ** 2 + extra
    before = patch * patch * channels * width + width + tokens * width + extra * width
    want = before + depth * (12 * width**2 + 13 * width) + 2 * width + width * classes + classes
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == want
    assert set(params) == {"backbone", "head"} and variables == {}


def test_without_positions_the_order_of_the_patches_is_nothing():
    params = built("mean")[1]
    blind = {**params, "backbone": {**params["backbone"], "positions": jnp.zeros_like(params["backbone"]["positions"])}}
    moved = jnp.concatenate([X[:, PATCH:], X[:, :PATCH]], axis=1)  # the two rows of patches change places
    logits = lambda params, x: applied(params, x, made="mean")["logits"]
    np.testing.assert_allclose(logits(blind, moved), logits(blind, X), **CLOSE)
    assert not np.allclose(logits(params, moved), logits(params, X), atol=1e-3)


@pytest.mark.parametrize("pool", ["class_token", "mean"])
def test_the_stages_one_after_the_other_are_the_whole(pool):
    network, params, variables = built(pool)
    assert network.stages == 2
    whole = applied(params, X, made=pool)["features"]
    lower, upper = part_of(network, 0, 1), part_of(network, 1)
    run = lambda part, x: jax.jit(part.apply)(params, variables, x)[0]["features"]
    tokens = run(lower, X)
    assert tokens.shape == (ROWS, 4 + (pool == "class_token"), WIDTH)
    np.testing.assert_allclose(run(upper, tokens), whole, **CLOSE)
    np.testing.assert_allclose(run(part_of(network), X), whole, **CLOSE)
    shapes = lambda network, x: jax.eval_shape(network.init, KEY, x)[0]["backbone"]
    below, above = shapes(lower, X), shapes(upper, tokens)
    assert set(below) == set(params["backbone"]) - {"block_1", "norm"} and set(above) == {"block_1", "norm"}


def test_padding_changes_nothing():
    params = built()[1]
    expected, outputs = (applied(params, x, PROMPTS, pool="prompts", train=True) for x in (X, X.at[2:].set(jnp.nan)))
    for name in ("logits", "features"):
        np.testing.assert_array_equal(outputs[name][:2], expected[name][:2])


def test_precision():
    _, params, variables = built()
    half = vit(CLASSES, PATCH, WIDTH, 2, HEADS, precision="bfloat16")
    exact, rough = applied(params, X), jax.jit(half.apply)(params, variables, X)[0]
    made = jax.eval_shape(half.init, KEY, X)
    assert {leaf.dtype for leaf in jax.tree.leaves((made, rough))} == {jnp.dtype(jnp.float32)}
    # Eight bits of mantissa, through two blocks.
    np.testing.assert_allclose(rough["logits"], exact["logits"], atol=0.1 * float(jnp.abs(exact["logits"]).max()))


def test_dropout():
    _, params, variables = built()
    noisy = vit(CLASSES, PATCH, WIDTH, 2, HEADS, dropout=0.5)
    train = jax.jit(lambda key: noisy.apply(params, variables, X, train=True, key=key)[0]["logits"])
    assert not np.allclose(train(jax.random.key(1)), train(jax.random.key(2)))
    calm = jax.jit(noisy.apply)(params, variables, X)[0]["logits"]
    np.testing.assert_allclose(calm, applied(params, X)["logits"], **CLOSE)
    with pytest.raises(UsageError, match="pass key="):
        noisy.apply(params, variables, X, train=True)


def test_each_task_token_asks_the_image_alone():
    module = TaskAttention(HEADS)
    tokens, image = jax.random.normal(KEY, (3, WIDTH)), jax.random.normal(jax.random.key(4), (ROWS, 6, WIDTH))
    params = jax.jit(module.init)(jax.random.key(5), tokens, image)["params"]
    got = jax.jit(module.apply)({"params": params}, tokens, image)
    tokens, image = np.asarray(tokens, np.float64), np.asarray(image, np.float64)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for b in range(ROWS):
        for t in range(3):
            z = layer_norm(p["norm_1"], np.concatenate([tokens[t : t + 1], image[b]]))
            mixed = p["out"]["bias"].copy()
            for h in range(HEADS):
                q, k, v = (z @ p[name]["kernel"][:, h] for name in "qkv")
                mixed += softmax(q[0] @ k.T / np.sqrt(WIDTH // HEADS)) @ v @ p["out"]["kernel"][h]
            token = tokens[t] + mixed
            np.testing.assert_allclose(got[b, t], token + mlp(p["mlp"], layer_norm(p["norm_2"], token)), **CLOSE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vit(3, heads=3), "heads must divide the width 64, got 3"),
        (lambda: vit(3, pool="max"), "unknown pool 'max'"),
        (lambda: vit(3, patch=3).init(KEY, X), "8x8 are not divisible into patches of 3x3"),
        (lambda: vit(3).init(KEY, X[..., 0]), r"x\[..., None\]"),
        (lambda: applied(built()[1], X, pool="prompts"), "needs prompts"),
        (lambda: applied(built()[1], X, pool="tokns"), "did you mean 'tokens'"),
        (lambda: applied(built("mean")[1], X, made="mean", pool="class_token"), "this one has pool='mean'"),
        (lambda: applied(built()[1], X, PROMPTS[:2]), r"prompts must be \[batch, length, width\] = \[4, length, 8\]"),
        (lambda: part_of(built()[0], 0, 1).apply(*built()[1:], X, prompts=PROMPTS), "all stages"),
        (lambda: applied(built()[1], jnp.zeros((1, 12, 12, CHANNELS))), "the network was made for 5"),
    ],
)
def test_one_clear_line(call, message):
    with pytest.raises(UsageError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
