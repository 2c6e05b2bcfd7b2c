"""L2P: which prompts are chosen, what they give, and what is trained."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_digits

from jaxkit.check import UsageError
from jaxkit.class_incremental import make_stream
from jaxkit.class_incremental.prompted import l2p, prompted, selected, transformer
from jaxkit.learner import starting_from
from jaxkit.networks import mlp, vit

CLASSES, POOL, LENGTH, TOP, WIDTH = 4, 5, 3, 2, 8
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
NETWORK = vit(CLASSES, patch=4, width=WIDTH, depth=1, heads=2)


@functools.lru_cache
def digits():
    x, y = load_digits(return_X_y=True)
    kept = y[:400] < CLASSES
    images = (x[:400][kept] / 16.0).reshape(-1, 8, 8, 1)
    return {"x": jnp.asarray(images, jnp.float32), "y": jnp.asarray(y[:400][kept], jnp.int32)}


STREAM = make_stream(digits()["y"], increment=2)
BATCHES = [{"x": digits()["x"][:32], "y": 2 * task + digits()["y"][:32] % 2} for task in range(2)]


def plan(network=NETWORK, **settings):
    settings = {"pool": POOL, "length": LENGTH, "top_k": TOP, "stream": STREAM, "batch_size": 32, **settings}
    return l2p(network, optax.adam(0.01), **settings)


def updated(stage, state, batch):
    """(the state when the stage begins, the state and the metrics after one update)."""
    state = jax.jit(stage.begin)(state, digits(), jax.random.key(1))
    return state, *jax.jit(stage.learner.update)(state, batch, jax.random.key(2))


@functools.lru_cache
def run():
    """For the first task and the second: the state when it begins, and what one update gives."""
    stages = plan(strength=0.7)
    first = updated(stages[0], None, BATCHES[0])
    return first, updated(stages[1], first[1], BATCHES[1])


@functools.lru_cache
def made(batchwise=True):
    network = prompted(NETWORK, POOL, LENGTH, TOP, batchwise)
    params, variables = network.init(jax.random.key(3), digits()["x"])
    # Prompts as large as other tokens, and keys in all directions, so that each counts.
    draw = lambda name, seed: jax.random.normal(jax.random.key(seed), params[name].shape)
    return network, {**params, "prompts": draw("prompts", 4), "keys": draw("keys", 5)}, variables


QUERY = jax.jit(NETWORK.apply)


def cosines(params, variables, x):
    query = np.asarray(QUERY(params, variables, x)[0]["features"], np.float64)
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    return unit(query) @ unit(np.asarray(params["keys"], np.float64)).T


def vote(similarity, top, valid):
    """The keys that most valid rows have among their ``top``, of equally many the first."""
    counts = np.zeros(similarity.shape[1], int)
    for row in similarity[valid]:
        counts[np.argsort(-row)[:top]] += 1
    return np.argsort(-counts, kind="stable")[:top]


@pytest.mark.parametrize("seed", range(3))
def test_the_most_similar_keys_are_selected(seed):
    similarity = np.random.default_rng(seed).normal(size=(9, 6)).astype(np.float32)
    own = selected(jnp.asarray(similarity), 3, batchwise=False)
    np.testing.assert_array_equal(own, np.argsort(-similarity, axis=1)[:, :3])
    valid = np.arange(9) < 5
    for mask in (None, valid):
        got = selected(jnp.asarray(similarity), 3, valid=None if mask is None else jnp.asarray(mask))
        want = vote(similarity, 3, np.ones(9, bool) if mask is None else mask)
        np.testing.assert_array_equal(got, np.broadcast_to(want, (9, 3)))


@pytest.mark.parametrize("batchwise", [True, False])
def test_the_head_reads_the_mean_over_the_selected_prompts(batchwise):
    network, params, variables = made(batchwise)
    x = digits()["x"][:6]
    outputs, _ = jax.jit(network.apply)(params, variables, x)
    similarity = cosines(params, variables, x)
    everyone = np.broadcast_to(vote(similarity, TOP, np.ones(6, bool)), (6, TOP))
    chosen = everyone if batchwise else np.argsort(-similarity, axis=1)[:, :TOP]
    np.testing.assert_allclose(outputs["pull"], np.take_along_axis(similarity, chosen, axis=1).sum(1), **CLOSE)
    prompts = params["prompts"][chosen].reshape(6, TOP * LENGTH, WIDTH)
    tokens, _ = NETWORK.apply(params, variables, x, prompts=prompts, pool="tokens")
    features = np.asarray(tokens["features"])[:, : TOP * LENGTH].mean(1)
    np.testing.assert_allclose(outputs["features"], features, **CLOSE)
    np.testing.assert_allclose(outputs["logits"], features @ params["head"]["kernel"] + params["head"]["bias"], **CLOSE)


def test_rows_that_are_not_valid_have_no_vote():
    network, params, variables = made()
    x, valid = digits()["x"][:9], jnp.arange(9) < 6
    apply = jax.jit(network.apply)
    for junk in (x.at[6:].set(jnp.nan), x.at[6:].set(1e6)):
        padded, _ = apply(params, variables, junk, valid=valid)
        alone, _ = apply(params, variables, x[:6])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:6], b, **CLOSE), padded, alone)


def test_the_query_has_no_gradient_and_what_is_not_selected_none():
    network, params, variables = made()
    x = digits()["x"][:6]
    outputs = lambda params: network.apply(params, variables, x, train=True)[0]
    pulled = jax.jit(jax.grad(lambda params: outputs(params)["pull"].sum()))(params)
    assert all(not leaf.any() for leaf in jax.tree.leaves((pulled["backbone"], pulled["head"], pulled["prompts"])))
    read = jax.jit(jax.grad(lambda params: jnp.square(outputs(params)["logits"]).sum()))(params)
    chosen = set(vote(cosines(params, variables, x), TOP, np.ones(6, bool)).tolist())
    for grads, name in ((pulled, "keys"), (read, "prompts")):
        assert {i for i in range(POOL) if np.asarray(grads[name][i]).any()} == chosen
    assert not read["keys"].any()


def test_the_loss_is_masked_and_pulls():
    begun, _, metrics = run()[1]
    params, variables, x = begun.params, begun.variables, BATCHES[1]["x"]
    similarity = cosines(params, variables, x)
    chosen = vote(similarity, TOP, np.ones(32, bool))
    pull = similarity[:, chosen].sum(1).mean()
    outputs = prompted(NETWORK, POOL, LENGTH, TOP, True).apply(params, variables, x)[0]
    log_p = log_softmax(np.asarray(outputs["logits"], np.float64)[:, 2:4], axis=1)
    want = -log_p[np.arange(32), np.asarray(BATCHES[1]["y"]) - 2].mean() - 0.7 * pull
    np.testing.assert_allclose(metrics["loss"], want, **CLOSE)
    np.testing.assert_allclose(metrics["pull"], pull, **CLOSE)


def test_later_tasks_train_prompts_keys_and_the_new_columns():
    (fresh, first, _), (begun, after, _) = run()
    moved = lambda a, b: [
        not np.array_equal(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    assert any(moved(fresh.params["backbone"], first.params["backbone"]))
    assert not any(moved(first.params["backbone"], after.params["backbone"]))
    assert moved(begun.params["prompts"], after.params["prompts"]) == [True]
    assert moved(begun.params["keys"], after.params["keys"]) == [True]
    old, new = np.asarray(begun.params["head"]["kernel"]), np.asarray(after.params["head"]["kernel"])
    np.testing.assert_array_equal(old[:, :2], new[:, :2])
    assert (old[:, 2:4] != new[:, 2:4]).all()


def test_a_given_backbone_stays_from_the_first_task_on():
    params, variables = NETWORK.init(jax.random.key(7), digits()["x"])
    stages = plan(starting_from(NETWORK, params, variables), pretrained=True)
    assert len({stage.learner for stage in stages}) == 1
    _, state, _ = updated(stages[0], None, BATCHES[0])
    for given, kept in zip(jax.tree.leaves(params["backbone"]), jax.tree.leaves(state.params["backbone"]), strict=True):
        np.testing.assert_array_equal(given, kept)
    assert not np.array_equal(params["head"]["kernel"], state.params["head"]["kernel"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(top_k=6), "top_k is at most the pool of 5 prompts, got 6"),
        (lambda: plan(length=0), "length must be at least 1"),
        (lambda: plan(strength=-1.0), "strength must lie in"),
        (lambda: plan(mlp(CLASSES))[0].begin(None, digits(), jax.random.key(0)), "l2p needs a transformer"),
        (lambda: transformer("l2p", mlp(CLASSES)).apply({}, {}, digits()["x"], pool="tokens"), "jaxkit.networks.vit"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
