import functools

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import sklearn.metrics

from jaxkit import evaluation as ev
from jaxkit.check import UsageError

N, C = 300, 5
WRONG = (UsageError, jaxtyping.TypeCheckError)  # the annotations may speak before the function does


def example(seed=0, n=N, classes=C):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1))).astype(np.int32)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
    return p / p.sum(-1, keepdims=True)


def numpy_ece(confidence, correct, num_bins):
    """Equations 2 and 3 of Guo et al. 2017, bin by bin."""
    total = 0.0
    for m in range(num_bins):
        inside = (confidence > m / num_bins) & (confidence <= (m + 1) / num_bins)
        if inside.any():
            total += inside.sum() / len(confidence) * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_against_scikit_learn():
    logits, labels = example()
    predicted, p = logits.argmax(-1), softmax(logits)
    ours = jax.jit(
        lambda o, y: {
            "accuracy": ev.accuracy(o, y),
            "macro": ev.macro_accuracy(o, y),
            "recall": ev.per_class_accuracy(o, y),
            "top 2": ev.top_k(o, y, 2),
            "nll": ev.negative_log_likelihood(o, y),
            "confusion": ev.confusion_matrix(o, y),
            "brier": ev.brier_score(o, y),
        }
    )
    theirs = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "macro": sklearn.metrics.balanced_accuracy_score(labels, predicted),
        "recall": sklearn.metrics.recall_score(labels, predicted, average=None),
        "top 2": sklearn.metrics.top_k_accuracy_score(labels, logits, k=2),
        "nll": sklearn.metrics.log_loss(labels, p),
        "confusion": sklearn.metrics.confusion_matrix(labels, predicted),
        "brier": np.mean(np.sum((p - np.eye(C)[labels]) ** 2, -1)),
    }
    chex.assert_trees_all_close(jax.device_get(ours(logits, labels)), theirs, rtol=1e-5)
    two, y = example(1, classes=2)
    brier = 2 * sklearn.metrics.brier_score_loss(y, softmax(two)[:, 1])
    np.testing.assert_allclose(ev.brier_score(two, y), brier, rtol=1e-5)


def test_regression_against_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.normal(3.0, 2.0, size=(50, 2)).astype(np.float32)
    mean = y + rng.normal(size=y.shape).astype(np.float32)
    for predictions, targets in ((mean, y), (mean[:, 0], y[:, 0])):
        measured = jax.jit(ev.regression)({"mean": predictions}, {"y": targets})
        np.testing.assert_allclose(measured["mse"], sklearn.metrics.mean_squared_error(targets, predictions), rtol=1e-5)
        np.testing.assert_allclose(measured["r2"], sklearn.metrics.r2_score(targets, predictions), rtol=1e-5)
    assert np.isnan(ev.r2(mean[:, 0], np.full(50, 2.0, np.float32)))
    with pytest.raises(WRONG, match=r"one shape"):
        ev.mean_squared_error(mean[:, :1], y[:, 0])


@pytest.mark.parametrize("num_bins", [1, 15])
def test_calibration_against_a_transcription(num_bins):
    logits, labels = example()
    p = softmax(logits)
    confidence, correct = p.max(-1), p.argmax(-1) == labels
    expected = numpy_ece(confidence, correct, num_bins)
    ece, classwise, adaptive = (
        jax.jit(error, static_argnums=2)
        for error in (ev.expected_calibration_error, ev.classwise_calibration_error, ev.adaptive_calibration_error)
    )
    np.testing.assert_allclose(ece(logits, labels, num_bins), expected, atol=1e-5)
    by_class = np.mean([numpy_ece(p[:, k], labels == k, num_bins) for k in range(C)])
    np.testing.assert_allclose(classwise(logits, labels, num_bins), by_class, atol=1e-5)
    order = np.argsort(confidence)
    chunks = [order[np.arange(N) * num_bins // N == m] for m in range(num_bins)]
    mass = sum(len(c) / N * abs(correct[c].mean() - confidence[c].mean()) for c in chunks)
    np.testing.assert_allclose(adaptive(logits, labels, num_bins), mass, atol=1e-5)


def test_calibration_identities():
    logits, labels = example()
    # One bin: |accuracy - mean confidence|, whichever the cut.
    gap = abs(float(ev.accuracy(logits, labels)) - softmax(logits).max(-1).mean())
    for error in (ev.expected_calibration_error, ev.adaptive_calibration_error):
        np.testing.assert_allclose(error(logits, labels, 1), gap, atol=1e-5)
    # Certain and right is 0; certain and wrong is 1.
    certain = 1e3 * np.eye(C, dtype=np.float32)[labels]
    np.testing.assert_allclose(ev.expected_calibration_error(certain, labels), 0.0, atol=1e-6)
    np.testing.assert_allclose(ev.expected_calibration_error(certain, (labels + 1) % C), 1.0, atol=1e-6)
    bins = ev.reliability(logits, labels, 10)
    np.testing.assert_allclose(bins.share.sum(), 1.0, rtol=1e-6)
    assert np.isnan(bins.accuracy[0])  # of five classes the largest probability is at least 0.2


def test_confidence_on_an_edge_belongs_to_the_lower_bin():
    # Two classes at p = 0.5 exactly: with two bins the row lies in (0, 0.5].
    bins = ev.reliability(jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32), 2)
    np.testing.assert_array_equal(bins.share, [1.0, 0.0])


def test_absent_classes_and_groups_are_nan_and_do_not_count():
    labels = np.array([0, 0, 2, 2], np.int32)
    predicted = np.array([0, 1, 2, 2], np.int32)
    np.testing.assert_array_equal(ev.per_class_accuracy(predicted, labels, num_classes=4), [0.5, np.nan, 1.0, np.nan])
    assert ev.macro_accuracy(predicted, labels, num_classes=4) == 0.75
    groups = np.array([3, 3, 1, 1], np.int32)
    np.testing.assert_array_equal(ev.group_accuracy(predicted, labels, groups, 4), [np.nan, 1.0, np.nan, 0.5])
    assert ev.worst_group_accuracy(predicted, labels, groups, 4) == 0.5
    nobody = np.zeros(4, bool)
    assert np.isnan(ev.accuracy(predicted, labels, nobody))
    assert np.isnan(ev.worst_group_accuracy(predicted, labels, groups, 4, nobody))


def test_ties_go_to_the_first_class_and_nan_is_not_right():
    labels = np.array([0, 1], np.int32)
    assert ev.accuracy(jnp.zeros((2, 3)), labels) == 0.5
    assert ev.top_k(jnp.zeros((2, 3)), labels, 1) == 0.5 and ev.top_k(jnp.zeros((2, 3)), labels, 2) == 1.0
    assert np.isnan(ev.negative_log_likelihood(jnp.full((2, 3), jnp.nan), labels))


METRICS = {
    "accuracy": lambda o, y, v, g: ev.accuracy(o, y, v),
    "top_k": lambda o, y, v, g: ev.top_k(o, y, 3, v),
    "per_class": lambda o, y, v, g: ev.per_class_accuracy(o, y, v),
    "macro": lambda o, y, v, g: ev.macro_accuracy(o, y, v),
    "group": lambda o, y, v, g: ev.group_accuracy(o, y, g, 3, v),
    "worst": lambda o, y, v, g: ev.worst_group_accuracy(o, y, g, 3, v),
    "confusion": lambda o, y, v, g: ev.confusion_matrix(o, y, v),
    "nll": lambda o, y, v, g: ev.negative_log_likelihood(o, y, v),
    "brier": lambda o, y, v, g: ev.brier_score(o, y, v),
    "ece": lambda o, y, v, g: ev.expected_calibration_error(o, y, valid=v),
    "adaptive": lambda o, y, v, g: ev.adaptive_calibration_error(o, y, valid=v),
    "classwise": lambda o, y, v, g: ev.classwise_calibration_error(o, y, valid=v),
    "mse": lambda o, y, v, g: ev.mean_squared_error(o[:, 0], y.astype(jnp.float32), v),
    "r2": lambda o, y, v, g: ev.r2(o[:, 0], y.astype(jnp.float32), v),
}


@pytest.mark.parametrize("name", METRICS)
def test_padding_changes_nothing(name):
    metric = METRICS[name]
    logits, labels = example(n=40)
    groups = (np.arange(40) % 3).astype(np.int32)
    plain = jax.jit(lambda *args: metric(*args[:2], None, args[2]))(logits, labels, groups)
    # Padding in the middle, with labels and groups out of range and logits that are not numbers.
    at = np.full(6, 17)
    padded = (
        np.insert(logits, at, np.nan, axis=0),
        np.insert(labels, at, -1),
        np.insert(np.ones(40, bool), at, False),
        np.insert(groups, at, 99),
    )
    chex.assert_trees_all_close(jax.jit(metric)(*padded), plain, rtol=1e-6, atol=1e-6)
    if name in ("macro", "ece"):
        chex.assert_trees_all_close(metric(*padded), plain, rtol=1e-6, atol=1e-6)


def test_seeds_by_vmap():
    logits = jnp.stack([example(s)[0] for s in range(3)])
    labels = jnp.stack([example(s)[1] for s in range(3)])
    measure = lambda o, y: ev.classification({"logits": o}, {"y": y})
    mapped, single = jax.jit(jax.vmap(measure))(logits, labels), jax.jit(measure)
    for s in range(3):
        alone = single(logits[s], labels[s])
        chex.assert_trees_all_close(jax.tree.map(lambda v, s=s: v[s], mapped), alone, rtol=1e-5)


def test_time_axis_counts_like_rows():
    logits, labels = example(n=60)
    valid = np.arange(60) % 4 != 0
    for metric in map(jax.jit, (ev.accuracy, ev.negative_log_likelihood, ev.macro_accuracy)):
        flat = metric(logits, labels, valid)
        chex.assert_trees_all_close(
            metric(logits.reshape(6, 10, C), labels.reshape(6, 10), valid.reshape(6, 10)), flat, rtol=1e-6
        )


def test_classification_is_a_measure():
    logits, labels = example()
    attribute, env = (np.arange(N) % 2).astype(np.int32), (np.arange(N) % 3).astype(np.int32)
    data = {"x": logits, "y": labels, "attribute": attribute, "env": env}
    measured = ev.classification({"logits": logits}, data)
    assert set(measured) == {"accuracy", "macro_accuracy", "nll", "ece"}
    chex.assert_tree_shape_prefix(measured, ())
    assert all(v.dtype == jnp.float32 and v.shape == () for v in measured.values())
    full = jax.jit(functools.partial(ev.classification, num_attributes=2, num_envs=3))({"logits": logits}, data)
    assert set(full) == set(measured) | {"worst_group_accuracy", "worst_env_accuracy"}
    right = logits.argmax(-1) == labels
    groups = [right[(labels == k) & (attribute == a)].mean() for k in range(C) for a in range(2)]
    np.testing.assert_allclose(full["worst_group_accuracy"], min(groups), rtol=1e-6)
    np.testing.assert_allclose(full["worst_env_accuracy"], min(right[env == e].mean() for e in range(3)), rtol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda o, y: ev.accuracy(o, y + 1), r"labels must lie in 0\.\.4"),
        (lambda o, y: ev.accuracy(o, y - 1), r"labels must lie in 0\.\.4"),
        (lambda o, y: ev.top_k(o, y, 6), "k must be at most"),
        (lambda o, y: ev.top_k(o, y, 0), "k must be at least 1"),
        (lambda o, y: ev.per_class_accuracy(o.argmax(-1), y), "need num_classes"),
        (lambda o, y: ev.per_class_accuracy(o, y, num_classes=4), "num_classes=4"),
        (lambda o, y: ev.group_accuracy(o, y, y, 3), r"groups must lie in 0\.\.2"),
        (lambda o, y: ev.expected_calibration_error(o, y, 0), "num_bins must be at least 1"),
        (lambda o, y: ev.classification({"mean": o}, {"y": y}), "outputs has no 'logits'"),
        (lambda o, y: ev.classification({"logits": o}, {"x": o}), "data has no 'y'"),
        (lambda o, y: ev.classification({"logits": o}, {"y": y}, num_envs=2), "data has no 'env'"),
        (
            lambda o, y: ev.classification({"logits": o}, {"y": y, "attribute": y}, num_attributes=2),
            "attribute must lie",
        ),
    ],
)
def test_mistakes(call, words):
    with pytest.raises(UsageError, match=words):
        call(*example())


@pytest.mark.parametrize("cut", [lambda o, y: (o, y[:-1]), lambda o, y: (o[:, 0].astype(np.int32), y[:-1])])
def test_shapes_that_do_not_fit(cut):
    with pytest.raises(WRONG):
        ev.accuracy(*cut(*example()))
