"""The plan of a class-incremental run: which rows a task sees, what is masked, what a task's begin and end do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxkit.check import UsageError
from jaxkit.class_incremental import METHODS, Keep, among, make_stream, steps_of
from jaxkit.class_incremental import memory as memories
from jaxkit.class_incremental.readout import AWAY, class_means
from jaxkit.class_incremental.task import pool_source
from jaxkit.networks import mlp
from jaxkit.training import fit, optimizer, predict_all

CLASSES, MEMORY = 6, 9


@functools.lru_cache
def digits():
    x, y = load_digits(return_X_y=True)
    kept = y[:500] < CLASSES
    return {"x": jnp.asarray(x[:500][kept] / 16.0, jnp.float32), "y": jnp.asarray(y[:500][kept], jnp.int32)}


STREAM = make_stream(digits()["y"], increment=2)


def plan(name="icarl", **settings):
    network = mlp(CLASSES, hidden=(16,))
    settings = {"memory": MEMORY, "batch_size": 32, "stream": STREAM, **settings}
    if name in ("finetune", "joint"):
        del settings["memory"]
    return METHODS[name].make(network, optimizer("momentum", 0.1), **settings)


@functools.lru_cache
def after(tasks, name="icarl"):
    """The state of a run after some tasks."""
    stages = plan(name)
    return stages, fit(stages[:tasks], digits(), key=0, steps=40 * tasks, progress=False).state


def state_at(task, old, seen):
    return after(1)[1]._replace(extra=task._replace(old=jnp.int32(old), seen=jnp.int32(seen)))


def drawn(pool, state, steps=40, batch_size=32, held=0.0):
    """(labels, indices) of some batches."""
    source = pool_source(pool, batch_size, STREAM, Keep(MEMORY), held=held)
    groups = source.init(digits(), jax.random.key(1))
    draw = jax.jit(lambda step: source.next(digits(), groups, state, step, jax.random.key(1))[1])
    batches = [draw(step) for step in range(steps)]
    return np.concatenate([b["y"] for b in batches]), np.concatenate([b["index"] for b in batches]), batches


@pytest.mark.parametrize(
    ("pool", "classes"), [("new", {2, 3}), ("replay", {0, 1, 2, 3}), ("exemplars", {0, 1}), ("all", {0, 1, 2, 3})]
)
def test_a_pool_has_every_row_of_its_classes_once_an_epoch(pool, classes):
    task = after(1)[1].extra
    state = state_at(task, 2, 4)
    x, y, rows = np.asarray(digits()["x"]), np.asarray(digits()["y"]), len(digits()["y"])
    labels, index, batches = drawn(pool, state)
    assert set(labels.tolist()) == classes
    for batch in batches[:3]:
        slots = np.asarray(batch["index"]) - rows
        of_data, of_memory = slots < 0, slots >= 0
        np.testing.assert_array_equal(batch["x"][of_data], x[batch["index"][of_data]])
        np.testing.assert_array_equal(batch["y"][of_data], y[batch["index"][of_data]])
        np.testing.assert_allclose(batch["x"][of_memory], task.memory.x[slots[of_memory]] / 255.0, atol=1e-7)
    total = {
        "new": np.isin(y, [2, 3]).sum(),
        "replay": np.isin(y, [2, 3]).sum() + 8,
        "exemplars": 8,
        "all": (y < 4).sum(),
    }[pool]
    if total >= 32:
        epoch = index[: total // 32 * 32]
        assert len(set(epoch.tolist())) == len(epoch)
    assert len(set(index.tolist())) == total


def test_validation_rows_are_left_out_of_training():
    state = state_at(after(1)[1].extra, 2, 4)
    train, valid = (set(drawn(pool, state, held=0.25)[1].tolist()) for pool in ("replay", "validation"))
    assert not train & valid
    assert len(train | valid) == np.isin(digits()["y"], [2, 3]).sum() + 8
    labels = drawn("validation", state, held=0.25)[0]
    assert {c: len(set(drawn("validation", state, held=0.25)[1][labels == c].tolist())) for c in range(4)} == {
        0: 1,
        1: 1,
        2: 1,
        3: 1,
    }


def test_the_tasks_share_their_programs():
    stages = plan()
    assert len({stage.learner for stage in stages}) == len({stage.source for stage in stages}) == 1
    assert stages[1].begin is stages[2].begin
    assert stages[0].end is stages[2].end
    traces = []

    def counted(state, batch, key):
        traces.append(1)
        return stages[0].learner.update(state, batch, key)

    learner = stages[0].learner._replace(update=counted)
    fit([stage._replace(learner=learner) for stage in stages], digits(), key=0, steps=30, progress=False)
    alone = len(traces)
    fit([stage._replace(learner=learner) for stage in stages[:1]], digits(), key=0, steps=10, progress=False)
    assert alone == len(traces) > 0  # the first task alone takes nothing more, and all three took what it takes


def test_a_class_not_yet_seen_takes_no_part():
    stages, state = after(2)
    outputs = predict_all(stages[0].learner.predict, state, digits()["x"])
    for read_out in ("logits", "logits_ncm"):
        assert (np.asarray(outputs[read_out][:, 4:]) == np.float32(AWAY)).all()
        assert set(np.asarray(outputs[read_out].argmax(-1)).tolist()) <= set(range(4))
    logits = jnp.arange(12.0).reshape(2, 6)
    grads = jax.grad(lambda z: jax.nn.log_softmax(among(z, 2, 4))[:, 2].sum())(logits)
    assert (grads[:, [0, 1, 4, 5]] == 0).all()


def test_exemplars_are_those_of_herding_and_of_every_class_alike():
    stages, state = after(2)
    task = state.extra
    assert task.memory.counts.tolist() == [2, 2, 2, 2, 0, 0]
    label, taken = memories.labels(task.memory)
    stored = memories.read(task.memory, jnp.arange(MEMORY))
    for c in (2, 3):
        rows = np.flatnonzero(digits()["y"] == c)
        outputs = predict_all(stages[0].learner.predict, state, digits()["x"][rows])
        features = np.asarray(outputs["features"], np.float64)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        first = int(np.argmin(np.linalg.norm(unit.mean(0) - unit, axis=1)))
        np.testing.assert_allclose(stored[(label == c) & taken][0], digits()["x"][rows[first]], atol=0.5 / 255)
    features = predict_all(stages[0].learner.predict, state, stored)["features"]
    np.testing.assert_allclose(task.means, class_means(features, label, CLASSES, taken), atol=1e-5)


def test_old_exemplars_are_a_prefix_of_what_they_were():
    _, one = after(1)
    _, two = after(2)
    for c in (0, 1):
        had = np.asarray(one.extra.memory.x)[4 * c : 4 * c + 4]
        np.testing.assert_array_equal(np.asarray(two.extra.memory.x)[2 * c : 2 * c + 2], had[:2])


def test_a_task_begins_with_fresh_columns_and_a_teacher():
    stages, state = after(1)
    begun = jax.jit(stages[1].begin)(state, digits(), jax.random.key(5))
    task = begun.extra
    assert (int(task.number), int(task.old), int(task.seen)) == (1, 2, 4)
    kernel, before = begun.params["head"]["kernel"], state.params["head"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :2], before[:, :2])
    assert not np.allclose(kernel[:, 2:4], before[:, 2:4])
    np.testing.assert_array_equal(kernel[:, 4:], before[:, 4:])
    for taught, learnt in zip(jax.tree.leaves(task.teacher[0]), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(taught, learnt)
    assert int(begun.step) == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(begun.opt_state.inner_state))


def test_epochs_become_steps():
    rows = len(digits()["y"])
    assert steps_of(plan("finetune"), 10, 32) == round(10 * rows / 32)
    # Nine exemplars: four of each of two classes in the second task, two of each of four in the third.
    assert steps_of(plan("replay"), 10, 32) == round(10 * (rows + 8 + 8) / 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(stream=None), "stream must come from"),
        (lambda: plan(memory=5), "less than one for each of 6 classes"),
        (lambda: plan(batchsize=3), "unknown setting 'batchsize'; did you mean 'batch_size'"),
        (lambda: fit(plan(memory=500), digits(), key=0, steps=30, progress=False), "rows, but 250 exemplars"),
        (
            lambda: fit(plan(), {**digits(), "x": 255 * digits()["x"]}, key=0, steps=30, progress=False),
            "stored as uint8",
        ),
        (
            lambda: fit(plan(), {**digits(), "y": digits()["y"] + 1}, key=0, steps=30, progress=False),
            "places in a stream of 6 classes, got 1..6",
        ),
        (
            lambda: fit(
                METHODS["finetune"].make(mlp(5), optimizer("sgd", 0.1), stream=STREAM),
                digits(),
                key=0,
                steps=30,
                progress=False,
            ),
            "the network has 5 classes, the stream 6",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()
