"""Closed forms against NumPy: the head after any task is that of all rows seen so far; FeTrIL's features."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxkit.check import UsageError
from jaxkit.class_incremental import analytic, frozen, make_stream, steps_of, translated
from jaxkit.class_incremental.readout import AWAY
from jaxkit.networks import mlp
from jaxkit.training import fit, optimizer, predict_all

CLASSES, WIDTH = 6, 48
RIDGES = (0.1, 1.0, 10.0, 100.0)


@functools.lru_cache
def digits():
    x, y = load_digits(return_X_y=True)
    kept = y[:500] < CLASSES
    return {"x": jnp.asarray(x[:500][kept] / 16.0, jnp.float32), "y": jnp.asarray(y[:500][kept], jnp.int32)}


STREAM = make_stream(digits()["y"], increment=2)
SETTINGS = {"simplecil": {}, "ranpac": {"width": WIDTH, "ridges": RIDGES}, "acil": {"width": WIDTH, "ridge": 0.5}}


def plan(name, **settings):
    make = getattr(analytic, name)
    settings = {"stream": STREAM, **SETTINGS[name], **settings}
    return make(mlp(CLASSES, hidden=()), optimizer("momentum", 0.1), **settings)


PLANS = {name: plan(name) for name in SETTINGS}


@functools.lru_cache
def after(name, tasks=3):
    stages = PLANS[name]
    return stages, fit(stages[:tasks], digits(), key=0, steps=tasks, progress=False)


def rows_seen(tasks):
    """(x, y as unit vectors) of the classes of the first tasks, in float64."""
    x, y = np.asarray(digits()["x"], np.float64), np.asarray(digits()["y"])
    kept = y < 2 * tasks
    return x[kept], np.eye(CLASSES)[y[kept]]


def expanded(state, x):
    return np.maximum(x @ np.asarray(state.variables["fixed"], np.float64), 0.0)


def ridge_regression(h, y, ridge):
    return np.linalg.solve(h.T @ h + ridge * np.eye(h.shape[1]), h.T @ y)


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_recursion_is_ridge_regression_on_all_rows_seen(tasks):
    stages, fitted = after("acil", tasks)
    x, y = rows_seen(tasks)
    want = ridge_regression(expanded(fitted.state, x), y, 0.5)
    got = np.asarray(fitted.state.params["head"]["kernel"])
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
    assert (got[:, 2 * tasks :] == 0).all()
    h, root = expanded(fitted.state, x), np.asarray(fitted.state.extra.own, np.float64)
    inverse = np.linalg.inv(h.T @ h + 0.5 * np.eye(WIDTH))
    np.testing.assert_allclose(root @ root.T, inverse, atol=2e-4 * np.abs(inverse).max())
    logits = predict_all(stages[0].learner.predict, fitted.state, digits()["x"])["logits"]
    all_x = np.asarray(digits()["x"], np.float64)
    np.testing.assert_allclose(
        logits[:, : 2 * tasks], (expanded(fitted.state, all_x) @ want)[:, : 2 * tasks], atol=1e-3
    )
    assert (np.asarray(logits[:, 2 * tasks :]) == np.float32(AWAY)).all()


def test_the_recursion_does_not_depend_on_the_blocks():
    rng = np.random.default_rng(0)
    h, y = rng.normal(size=(30, 8)).astype(np.float32), rng.normal(size=(30, 3)).astype(np.float32)
    want, step = ridge_regression(h.astype(np.float64), y, 0.3), jax.jit(analytic.recursion)
    for size in (1, 10):
        root, kernel = jnp.eye(8) / np.sqrt(np.float32(0.3)), jnp.zeros((8, 3))
        for start in range(0, 30, size):
            rows = slice(start, start + size)
            root, kernel = step(root, kernel, jnp.asarray(h[rows]), jnp.asarray(y[rows]))
        np.testing.assert_allclose(kernel, want, atol=1e-5)


def test_the_root_holds_where_the_plain_recursion_does_not():
    """Features with a large common part, as a ReLU expansion has them: (largest eigenvalue + ridge) / ridge is 1e8."""
    rng = np.random.default_rng(1)
    h = (30.0 + 10.0 * rng.normal(size=(384, 64)) * np.logspace(-3, 1, 64)).astype(np.float32)
    y = rng.normal(size=(384, 2)).astype(np.float32)
    root, kernel = jnp.eye(64) / np.sqrt(np.float32(0.1)), jnp.zeros((64, 2))
    R, K = np.eye(64, dtype=np.float32) / np.float32(0.1), np.zeros((64, 2), np.float32)
    step = jax.jit(analytic.recursion)
    for H, Y in zip(np.split(h, 12), np.split(y, 12), strict=True):
        root, kernel = step(root, kernel, jnp.asarray(H), jnp.asarray(Y))
        with np.errstate(all="ignore"):
            R = R - R @ H.T @ np.linalg.inv(np.eye(32, dtype=np.float32) + H @ R @ H.T) @ H @ R
            K = K + R @ H.T @ (Y - H @ K)
    exact = h.astype(np.float64)
    want = ridge_regression(exact, y, 0.1)
    off = lambda kernel: np.abs(exact @ (np.asarray(kernel, np.float64) - want)).max()
    condition = np.linalg.norm(exact, 2) ** 2 / 0.1
    tolerance = 10 * np.sqrt(condition) * np.finfo(np.float32).eps * np.abs(y).max()
    assert off(kernel) < tolerance < 0.1
    assert not off(K) < 100 * tolerance  # NaN too


@pytest.mark.parametrize(("tasks", "width"), [(1, WIDTH), (3, WIDTH), (3, 160)])
def test_ranpac_is_ridge_regression_with_the_lambda_of_the_newest_rows(tasks, width):
    """With fewer features than the task has rows, and with more."""
    assert (2 * STREAM.most_rows <= width) == (width == 160)
    if width == WIDTH:
        fitted = after("ranpac", tasks)[1]
    else:
        fitted = fit(plan("ranpac", width=width)[:tasks], digits(), key=0, steps=tasks, progress=False)
    x, y = rows_seen(tasks)
    h = expanded(fitted.state, x)
    own = fitted.state.extra.own
    np.testing.assert_allclose(own.gram, h.T @ h, rtol=1e-4, atol=1e-6 * np.abs(h.T @ h).max())
    np.testing.assert_allclose(own.cross, h.T @ y, rtol=1e-4, atol=1e-4)
    newest, held = y[:, 2 * (tasks - 1) :].any(1), np.zeros(len(y), bool)
    for c in (2 * tasks - 2, 2 * tasks - 1):
        rows = np.flatnonzero(y[:, c])
        held[rows[len(rows) - int(0.2 * len(rows)) :]] = True
    chosen = lambda ridge: ridge_regression(h[newest & ~held], y[newest & ~held], ridge)
    errors = [np.square(h[newest & held] @ chosen(ridge) - y[newest & held]).sum() for ridge in RIDGES]
    ridge = RIDGES[int(np.argmin(errors))]
    assert fitted.history.metrics["ridge"][-1] == np.float32(ridge)
    want = ridge_regression(h, y, ridge)
    np.testing.assert_allclose(fitted.state.params["head"]["kernel"], want, atol=1e-3 * np.abs(want).max())


def test_the_errors_by_rows_are_those_by_features():
    rng = np.random.default_rng(2)
    h, y, held = np.maximum(rng.normal(size=(24, 40)), 0), np.eye(3)[rng.integers(0, 3, 24)], np.arange(24) % 4 == 3
    h[20:], y[20:], held[20:] = 0.0, 0.0, False  # not valid
    want = []
    for ridge in RIDGES:
        kernel = ridge_regression(h[~held], y[~held], ridge)
        want.append(np.square(h[held] @ kernel - y[held]).sum())
    args = (jnp.asarray(h, jnp.float32), jnp.asarray(y, jnp.float32), jnp.asarray(held))
    np.testing.assert_allclose(jax.jit(analytic.errors_by_rows)(*args, jnp.asarray(RIDGES)), want, rtol=1e-4)


def test_a_ridge_that_float32_cannot_tell_from_zero_takes_no_part():
    stages = plan("ranpac", width=400, ridges=(1e-8, 1e-6, 10.0))
    fitted = fit(stages, digits(), key=0, steps=3, progress=False)
    assert (fitted.history.metrics["ridge"] == 10.0).all()  # 6 of 10 classes have fewer rows than the 400 features
    assert (fitted.history.metrics["loss"] < 0.5).all()


def test_prototypes_are_the_means_of_the_features_and_the_cosine_decides():
    stages, fitted = after("simplecil")
    x, y = rows_seen(3)
    means = (y.T @ x) / y.sum(0)[:, None]
    np.testing.assert_allclose(fitted.state.params["head"]["kernel"], means.T, rtol=1e-5, atol=1e-6)
    outputs = predict_all(stages[0].learner.predict, fitted.state, digits()["x"])
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["logits"], unit(np.asarray(digits()["x"])) @ unit(means).T, atol=1e-5)
    inside = np.take_along_axis(unit(x) @ unit(means).T, y.argmax(1)[:, None], 1)[np.argmax(y, 1) >= 4]
    np.testing.assert_allclose(fitted.history.metrics["loss"][-1], 1 - inside.mean(), atol=1e-5)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_closed_form_takes_a_step_for_each_task_and_learns(name):
    stages, fitted = after(name)
    assert steps_of(stages, 40, 32) == len(stages) == 3
    assert len({stage.learner for stage in stages}) == len({stage.source for stage in stages}) == 1
    outputs = predict_all(stages[0].learner.predict, fitted.state, digits()["x"])
    for read_out in ("logits", "logits_ncm"):
        assert (np.asarray(outputs[read_out].argmax(-1)) == np.asarray(digits()["y"])).mean() > 0.85  # chance is 1/6


def test_a_run_goes_on_where_it_stopped_between_two_tasks(tmp_path):
    class Stopped(Exception):
        pass

    def stop(event):
        if event.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit(PLANS["acil"], digits(), key=0, steps=3, progress=False, workdir=tmp_path, callbacks=(stop,))
    resumed = fit(PLANS["acil"], digits(), key=0, steps=3, progress=False, workdir=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, after("acil")[1].state)


def test_the_rows_go_through_in_blocks():
    batch = {"x": jnp.arange(10.0), "y": jnp.arange(10)}
    sizes = []

    def add(total, part):
        sizes.append(part["x"].shape)
        return total + jnp.where(part["valid"], part["x"], 0.0).sum()

    assert frozen.in_blocks(add, jnp.zeros(()), batch, 4) == 45
    assert set(sizes) == {(4,)}


def test_what_the_caller_can_mend():
    with pytest.raises(UsageError, match="ridges must hold"):
        plan("ranpac", ridges=())
    with pytest.raises(UsageError, match="ridges must be a finite number above 0"):
        plan("ranpac", ridges=(0.0,))
    with pytest.raises(UsageError, match="width must be at least 1"):
        plan("acil", width=0)
    with pytest.raises(UsageError, match="the network has 4 classes, the stream 6"):
        fit(analytic.simplecil(mlp(4), optimizer("sgd", 0.1), stream=STREAM), digits(), key=0, steps=3, progress=False)
    with pytest.raises(UsageError, match="fetril needs a linear head"):
        network = mlp(CLASSES, hidden=(8,), head="cosine")
        fit(translated.fetril(network, optimizer("sgd", 0.1), stream=STREAM), digits(), key=0, steps=9, progress=False)


NETWORK = mlp(CLASSES, hidden=(16,))
FETRIL = translated.fetril(NETWORK, optimizer("momentum", 0.1), stream=STREAM, batch_size=32)


@functools.lru_cache
def after_fetril(tasks):
    """The state after one task, or after two."""
    before = None if tasks == 1 else after_fetril(1)
    return fit(FETRIL[tasks - 1 : tasks], digits(), key=0, steps=40, state=before, progress=False).state


def test_the_features_stay_and_their_means_are_kept():
    first, state = after_fetril(1), after_fetril(2)
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], first.params["backbone"])
    assert not np.array_equal(state.params["head"]["kernel"], first.params["head"]["kernel"])
    phi = np.asarray(predict_all(FETRIL[0].learner.predict, state, digits()["x"])["features"])
    y, mean = np.asarray(digits()["y"]), np.asarray(state.extra.own.mean)
    want = np.stack([phi[y == c].mean(0) for c in range(4)])
    np.testing.assert_allclose(mean[:4], want, atol=1e-5)
    distance = np.linalg.norm(want[:2, None] - want[None, 2:], axis=-1)
    assert state.extra.own.nearest.tolist() == [*(2 + distance.argmin(1)).tolist(), 2, 3, 4, 5]


def test_rows_and_classes_are_drawn_alike_and_the_loss_is_that_of_moved_features():
    state = after_fetril(2)
    source, own = FETRIL[1].source, state.extra.own
    groups = source.init(digits(), jax.random.key(0))
    draw = jax.jit(lambda step: source.next(digits(), groups, state, step, jax.random.key(3))[1])
    batches = [draw(step) for step in range(60)]
    label, row = (np.concatenate([batch[name] for batch in batches]) for name in ("y", "index"))
    y = np.asarray(digits()["y"])
    np.testing.assert_array_equal(y[row], np.asarray(own.nearest)[label])
    shares = np.bincount(label, minlength=4) / label.size
    np.testing.assert_allclose(shares, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / label.size))
    for c in range(4):
        assert len(set(row[label == c].tolist())) > 0.9 * (y == int(own.nearest[c])).sum()
    batch = batches[0]
    loss = jax.jit(FETRIL[1].learner.update)(state, batch, jax.random.key(0))[1]["loss"]
    phi = np.asarray(NETWORK.apply(state.params, state.variables, batch["x"])[0]["features"], np.float64)
    mean, target = np.asarray(own.mean, np.float64), np.asarray(batch["y"])
    moved = phi - mean[np.asarray(own.nearest)[target]] + mean[target]
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["head"])
    logits = (moved @ head["kernel"] + head["bias"])[:, :4]
    want = np.log(np.exp(logits).sum(1)) - np.take_along_axis(logits, target[:, None], 1)[:, 0]
    np.testing.assert_allclose(loss, want.mean(), rtol=1e-5)
