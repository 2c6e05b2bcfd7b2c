"""DyTox: its losses and heads against NumPy, and which parameters each phase trains."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_softmax
from sklearn.datasets import load_digits

from jaxkit.check import UsageError
from jaxkit.class_incremental import make_stream
from jaxkit.class_incremental.tokens import binary_among, dytox, layer_norm, with_task_tokens
from jaxkit.networks import convnet, vit
from jaxkit.networks.vision.vit import TaskAttention

CLASSES, WIDTH, HEADS, OLD, SEEN = 6, 8, 2, 2, 4
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
NETWORK = vit(CLASSES, patch=4, width=WIDTH, depth=1, heads=2, pool="mean")


@functools.lru_cache
def digits():
    x, y = load_digits(return_X_y=True)
    kept = y[:400] < CLASSES
    images = (x[:400][kept] / 16.0).reshape(-1, 8, 8, 1)
    return {"x": jnp.asarray(images, jnp.float32), "y": jnp.asarray(y[:400][kept], jnp.int32)}


STREAM = make_stream(digits()["y"], increment=2)
GROWN = with_task_tokens(NETWORK, STREAM, HEADS)
BATCH = {"x": digits()["x"][:32], "y": digits()["y"][:32] % SEEN}


def plan(network=NETWORK, **settings):
    settings = {"heads": HEADS, "memory": 9, "stream": STREAM, "batch_size": 32, **settings}
    return dytox(network, optax.adam(0.01), strength=0.3, temperature=2.0, **settings)


def updated(stage, state, seed):
    """(the state when the stage begins, the state and the metrics after one update)."""
    state = jax.jit(stage.begin)(state, digits(), jax.random.key(seed))
    return state, *jax.jit(stage.learner.update)(state, BATCH, jax.random.key(2))


@functools.lru_cache
def run():
    """For the first task, the second and its finetuning: the state when it begins, and what one update gives."""
    stages = plan()
    first = updated(stages[0], None, 1)
    train = updated(stages[1], first[1], 3)
    return first, train, updated(stages[2], train[1], 4)


apply = jax.jit(lambda params, variables, x: GROWN.apply(params, variables, x)[0])


def bce(z, target):
    target = np.asarray(target, float)
    return -target * np.log(expit(z)) - (1 - target) * np.log(expit(-z))


def by_task(state, x):
    """The outputs of each task's token [batch, tasks, width], by the layers of the whole."""
    image = NETWORK.apply(state.params, {}, x, pool="tokens")[0]["features"]
    attention = {"params": state.params["task_attention"]}
    return np.asarray(TaskAttention(HEADS).apply(attention, state.params["tokens"], image), np.float64)


def normed(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def changed(before, after, name):
    """For each leaf, the rows (tokens, norms) or columns (heads) that differ."""
    pairs = zip(jax.tree.leaves(before.params[name]), jax.tree.leaves(after.params[name]), strict=True)
    rows = name in ("tokens", "norms")
    return [set(np.argwhere(np.asarray(a) != np.asarray(b))[:, 0 if rows else -1].tolist()) for a, b in pairs]


def test_binary_cross_entropy_among_some_classes():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 5)).astype(np.float32), rng.integers(0, 5, 7)
    member = jnp.arange(5) < 3
    want = bce(logits, np.eye(5)[labels])[:, :3].mean(1)
    got = binary_among(jnp.asarray(logits), jnp.asarray(labels, jnp.int32), member)
    np.testing.assert_allclose(got, want, **CLOSE)
    away = jnp.where(member, logits, -1e30)
    value, grads = jax.value_and_grad(lambda z: binary_among(z, jnp.asarray(labels, jnp.int32), member).sum())(away)
    np.testing.assert_allclose(value, want.sum(), rtol=1e-5)
    assert jnp.isfinite(grads).all() and not grads[:, 3:].any()


def test_layer_norm():
    rng = np.random.default_rng(1)
    x, scale, bias = rng.normal(size=(4, 3, 8)), rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    got = layer_norm(*(jnp.asarray(a, jnp.float32) for a in (x, scale, bias)))
    np.testing.assert_allclose(got, normed({"scale": scale, "bias": bias}, x), **CLOSE)


def test_each_class_is_read_from_its_own_tasks_token():
    state = run()[1][1]
    outputs, tokens = apply(state.params, state.variables, BATCH["x"]), by_task(state, BATCH["x"])
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    for c, t in enumerate(STREAM.task_of()):
        norm = {name: leaf[t] for name, leaf in params["norms"].items()}
        want = normed(norm, tokens[:, t]) @ params["head"]["kernel"][:, c] + params["head"]["bias"][c]
        np.testing.assert_allclose(outputs["logits"][:, c], want, **CLOSE)
    np.testing.assert_allclose(outputs["features"], tokens[:, 1], **CLOSE)
    head = params["divergence"]
    want = normed(head["norm"], tokens[:, 1]) @ head["linear"]["kernel"] + head["linear"]["bias"]
    np.testing.assert_allclose(outputs["logits_div"], want, **CLOSE)


def test_the_loss_of_a_later_task():
    state, _, metrics = run()[1]
    teacher = state.extra.teacher
    y = np.asarray(BATCH["y"])
    now = {k: np.asarray(v, np.float64) for k, v in apply(state.params, state.variables, BATCH["x"]).items()}
    before = np.asarray(apply(*teacher, BATCH["x"])["logits"], np.float64)[:, :OLD]
    classified = bce(now["logits"][:, :SEEN], np.eye(SEEN)[y]).mean()
    p, q = log_softmax(before / 2.0, axis=1), log_softmax(now["logits"][:, :OLD] / 2.0, axis=1)
    distilled = 4.0 * (np.exp(p) * (p - q)).sum(1).mean() / OLD
    # Of the divergence head the new classes and the last column, "an old class", take part.
    part = [*range(OLD, SEEN), CLASSES]
    target = np.stack([np.where(y < OLD, CLASSES, y) == c for c in part], axis=1)
    apart = bce(now["logits_div"][:, part], target).mean()
    np.testing.assert_allclose(metrics["distillation"], distilled, **CLOSE)
    np.testing.assert_allclose(metrics["divergence"], apart, **CLOSE)
    share = OLD / SEEN
    np.testing.assert_allclose(metrics["loss"], (1 - share) * classified + share * distilled + 0.3 * apart, **CLOSE)


def test_the_loss_of_the_first_task_and_of_the_finetuning_is_binary_alone():
    y = np.asarray(BATCH["y"])
    for (state, _, metrics), seen in ((run()[0], OLD), (run()[2], SEEN)):
        z = np.asarray(apply(state.params, state.variables, BATCH["x"])["logits"], np.float64)
        np.testing.assert_allclose(metrics["loss"], bce(z[:, :seen], y[:, None] == np.arange(seen)).mean(), **CLOSE)
    assert run()[0][2]["distillation"] == run()[0][2]["divergence"] == 0


def test_a_task_begins_with_its_own_token_and_columns():
    (_, first, _), (begun, _, _), _ = run()
    assert changed(first, begun, "tokens") == [{1}]
    assert changed(first, begun, "head")[-1] == {2, 3}  # the kernel; biases are zero at the start
    assert changed(first, begun, "task_attention") == [set()] * len(jax.tree.leaves(first.params["task_attention"]))
    assert (int(begun.variables["number"]), int(begun.variables["held"])) == (1, 1)


def test_what_each_phase_trains():
    _, (begun, trained, _), (released, tuned, _) = run()
    # In training the token, norms and columns of the new task, and what the tasks share.
    assert changed(begun, trained, "tokens") == [{1}]
    assert changed(begun, trained, "norms") == [{1}, {1}]
    assert changed(begun, trained, "head") == [{2, 3}, {2, 3}]
    moved = lambda a, b, name: [bool(columns) for columns in changed(a, b, name)]
    assert any(moved(begun, trained, "backbone")) and any(moved(begun, trained, "divergence"))
    # In the finetuning all tokens, norms and columns of the classes seen, and not the backbone.
    assert changed(released, tuned, "tokens") == [{0, 1}]
    assert changed(released, tuned, "norms") == [{0, 1}, {0, 1}]
    assert changed(released, tuned, "head") == [{0, 1, 2, 3}, {0, 1, 2, 3}]
    assert not any(moved(released, tuned, "backbone")) and not any(moved(released, tuned, "divergence"))
    assert any(moved(released, tuned, "task_attention"))


def test_the_phases_of_a_plan():
    stages = plan()
    assert [stage.name for stage in stages] == [
        "task 1: train",
        "task 2: train",
        "task 2: finetune",
        "task 3: train",
        "task 3: finetune",
    ]
    assert len({stage.learner for stage in stages}) == 2
    # Nine exemplars: two of each of four classes, then one of each of six.
    assert [round(stages[i].share, 9) for i in (2, 4)] == [0.32, 0.24]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(heads=3)[0].begin(None, digits(), jax.random.key(0)), "heads must divide the width 8"),
        (lambda: plan(convnet(CLASSES))[0].begin(None, digits(), jax.random.key(0)), "dytox needs a transformer"),
        (lambda: plan(memory=3), "less than one for each of 6 classes"),
        (lambda: dytox(NETWORK, optax.adam(0.1), temperature=0.0, stream=STREAM), "temperature must be"),
        (lambda: dytox(NETWORK, optax.adam(0.1), strength=-1.0, stream=STREAM), "strength must lie in"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
