"""LFME: experts of the groups, self-paced distillation and curriculum against NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit.check import UsageError
from jaxkit.long_tailed import ensembles as e
from jaxkit.long_tailed.ensembles.lfme import label_confidence, of_own_expert
from jaxkit.networks import mlp
from tests.long_tailed.ensembles_toy import (
    CLASSES,
    COUNTS,
    DATA,
    KEY,
    ONE_HOT,
    RNG,
    X,
    Y,
    bias_gradients,
    cross_entropy,
    log_softmax,
    logits_of,
    make,
    softmax,
    start,
    step,
)

GROUPS = np.array([0, 0, 1, 2])  # thirds of COUNTS by rank
OF_ROW = GROUPS[Y]
ALONE = ("expert_0",)


@functools.lru_cache
def plan():
    return make("lfme", by="rank", total_steps=10, batch_size=16, threshold=0.3, temperature=2.0)


@functools.lru_cache
def taught():
    """(a state of the experts' stage, the state with which the student begins)."""
    experts, student = plan()
    state, update = start(experts.learner), jax.jit(experts.learner.update)
    for _ in range(3):
        state, _ = update(state, DATA, KEY)
    return state, jax.jit(student.begin)(state, DATA, KEY)


def test_distillation_fades_as_the_student_catches_up():
    student = np.array([0.0, 0.2, 0.44, 0.8, 0.9, 0.5], np.float32)
    expert = np.array([0.8, 0.8, 0.8, 0.8, 0.8, 0.0], np.float32)
    # Up to 0.3 * 0.8 = 0.24 all of it; then (1 - 0.44 / 0.8) / 0.7; none where the student is as good.
    np.testing.assert_allclose(
        e.distillation_weights(student, expert, 0.3), [1, 1, 0.45 / 0.7, 0, 0, 0], rtol=1e-5, atol=1e-6
    )


def test_the_curriculum_starts_with_easy_rows_and_few_shot_classes():
    start_at, h = np.array([0.1, 0.1, 1.0], np.float32), np.array([0.0, 1.0, 0.0], np.float32)
    np.testing.assert_allclose(e.curriculum_weights(h, start_at, 0.0), [0.1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(e.curriculum_weights(h, start_at, 0.5), [0.55, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(e.curriculum_weights(h, start_at, 3.0), 1, rtol=1e-6)


def test_an_expert_is_asked_among_the_classes_of_its_group():
    z = RNG.normal(size=(len(Y), 3, CLASSES)).astype(np.float32)
    np.testing.assert_array_equal(of_own_expert(jnp.asarray(z), jnp.asarray(GROUPS)), z[:, GROUPS, np.arange(CLASSES)])
    sure, right = label_confidence(jnp.asarray(z), Y, jnp.asarray(GROUPS))
    for row in range(len(Y)):
        classes = np.flatnonzero(GROUPS == OF_ROW[row])
        p = softmax(z[row, OF_ROW[row], classes])
        np.testing.assert_allclose(sure[row], p[classes == Y[row]][0], rtol=1e-4)
        assert right[row] == (classes[p.argmax()] == Y[row])


def test_a_step_of_the_experts_is_a_training_on_each_group():
    learner = plan()[0].learner
    state = start(learner)
    metrics, gradient = step(learner, state)
    z = logits_of(state.params)
    loss, of_bias = 0.0, np.zeros((3, CLASSES))
    for group in range(3):
        classes, inside = np.flatnonzero(GROUPS == group), OF_ROW == group
        own, labels = z[inside][:, group][:, classes], np.searchsorted(classes, Y[inside])
        loss += cross_entropy(own, labels).mean()
        of_bias[group, classes] = (softmax(own) - np.eye(len(classes))[labels]).mean(0)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(bias_gradients(gradient), of_bias, rtol=1e-3, atol=1e-6)


def test_the_statistics_of_an_expert_are_of_its_own_rows():
    """The rows of the other groups, whatever stands in them, leave an expert's batch normalisation alone."""
    network = mlp(CLASSES, hidden=(4,), norm="batch")
    stages = e.lfme(network, optax.sgd(0.1), class_counts=COUNTS, by="rank", total_steps=5)
    learner = stages[0].learner
    state, update = start(learner), jax.jit(learner.update)
    other = {**DATA, "x": jnp.where((OF_ROW == 0)[:, None], DATA["x"], 100.0)}
    one, two = (update(state, batch, KEY)[0] for batch in (DATA, other))
    for name, same in (("expert_0", True), ("expert_1", False)):
        pairs = zip(jax.tree.leaves(one.variables[name]), jax.tree.leaves(two.variables[name]))
        assert all(np.array_equal(a, b) for a, b in pairs) == same


def test_the_student_begins_with_what_the_experts_know_of_the_training_rows():
    before, began = taught()
    z = logits_of(before.params)
    sure, right = np.zeros(len(Y)), np.zeros(len(Y), bool)
    for row in range(len(Y)):
        classes = np.flatnonzero(GROUPS == OF_ROW[row])
        p = softmax(z[row, OF_ROW[row], classes])
        sure[row], right[row] = p[classes == Y[row]][0], classes[p.argmax()] == Y[row]
    known = began.extra
    np.testing.assert_allclose(known.accuracy, [right[OF_ROW == g].mean() for g in range(3)], rtol=1e-5)
    np.testing.assert_allclose(known.low, [sure[Y == c].min() for c in range(CLASSES)], rtol=1e-4)
    np.testing.assert_allclose(known.high, [sure[Y == c].max() for c in range(CLASSES)], rtol=1e-4)
    assert not known.right.any() and not known.seen.any() and int(began.step) == 0
    assert "expert_0" not in began.params  # the student is a network like any other


@pytest.mark.parametrize("at", [0, 2, 7])
def test_a_step_of_the_student_is_the_formula(at):
    before, began = taught()
    learner = plan()[1].learner
    # A student that is right in 60 % of the many-shot rows, in 1 of 4, and in none.
    known = began.extra._replace(
        accuracy=jnp.asarray([0.9, 0.8, 1.0]), right=jnp.asarray([6.0, 1.0, 0.0]), seen=jnp.asarray([10.0, 4.0, 2.0])
    )
    state = began._replace(extra=known, step=jnp.int32(at))
    metrics, gradient = step(learner, state)

    teacher = logits_of(before.params)
    head = {name: np.asarray(leaf, np.float64) for name, leaf in state.params["head"].items()}
    z = X @ head["kernel"] + head["bias"]
    sure = np.array([np.exp(log_softmax(np.where(GROUPS == g, t[g], -1e9))[y]) for t, g, y in zip(teacher, OF_ROW, Y)])
    low, high = (np.array([pick(sure[Y == c]) for c in range(CLASSES)])[Y] for pick in (np.min, np.max))
    easiness = np.where(high > low, (sure - low) / np.where(high > low, high - low, 1), 1)
    mean_counts = np.array([16, 4, 2])  # of the groups {24, 8}, {4}, {2}
    u = 2 / mean_counts[OF_ROW]
    u = u + (1 - u) * easiness
    v = u + (1 - u) * min(at / 5, 1)  # of 10 steps, all rows count alike in the second half
    w = np.clip((1 - np.array([0.6, 0.25, 0.0]) / np.array([0.9, 0.8, 1.0])) / 0.7, 0, 1)
    loss, of_z = (v * cross_entropy(z)).mean(), v[:, None] * (softmax(z) - ONE_HOT) / len(Y)
    for group in range(3):
        classes = np.flatnonzero(GROUPS == group)
        log_p, log_q = (log_softmax(logits[:, classes] / 2.0) for logits in (teacher[:, group], z))
        loss += w[group] * (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
        of_z[:, classes] += w[group] * (np.exp(log_q) - np.exp(log_p)) / 2.0 / len(Y)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["distillation"], w.mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient["head"]["bias"], of_z.sum(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradient["head"]["kernel"], X.T @ of_z, rtol=1e-3, atol=1e-6)

    after = jax.jit(learner.update)(state, DATA, KEY)[0].extra
    hits = np.array([(z.argmax(1) == Y)[OF_ROW == g].sum() for g in range(3)])
    np.testing.assert_allclose(after.right, 0.9 * np.array([6, 1, 0]) + hits, rtol=1e-5)
    np.testing.assert_allclose(after.seen, 0.9 * np.array([10, 4, 2]) + np.bincount(OF_ROW), rtol=1e-5)


def test_no_gradient_and_no_step_reaches_the_experts():
    before, began = taught()
    after = jax.jit(plan()[1].learner.update)(began, DATA, KEY)[0]
    for one, two in ((before.params, began.extra.params), (before.params, after.extra.params)):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, two)))


def test_each_expert_sees_a_third_of_the_rows_of_a_step():
    stage = make("lfme", by="rank", total_steps=10, batch_size=600)[0]
    batch = jax.jit(lambda: stage.source.next(DATA, stage.source.init(DATA, KEY), None, 0, KEY)[1])()
    labels = np.bincount(batch["y"], minlength=CLASSES)
    share = np.array([24 / 32, 8 / 32, 1, 1]) / 3  # within a group every row alike
    # 4.9 standard deviations are passed once in 10^6.
    assert (np.abs(labels - 600 * share) < 4.9 * np.sqrt(600 * share * (1 - share))).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "no class is many-shot by shots"),
        ({"by": "rank", "total_steps": 0}, "total_steps must be at least 1"),
        ({"by": "rank", "temperature": 0.0}, "temperature must be"),
        ({"by": "rank", "threshold": 1.0}, "threshold must lie in"),
        ({"by": "rank", "experts_share": 1.0}, "experts_share must lie between 0 and 1"),
        ({"by": "rank", "class_counts": np.array([3, 0, 1, 1])}, "class 1 has no rows"),
    ],
)
def test_bad_input_is_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        make("lfme", **{"total_steps": 10, **settings})
    assert "\n" not in str(caught.value)
