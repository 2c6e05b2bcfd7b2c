"""Each method's formula against a transcription in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.special import log_softmax, logsumexp, softmax

from jaxkit.class_incremental import among, distillation, weight_alignment
from jaxkit.class_incremental.boosted import balanced_distillation, effective_weights
from jaxkit.class_incremental.cosine import margin_ranking, nca, pod_spatial, proxy_scores
from jaxkit.class_incremental.expanding import expanding
from jaxkit.class_incremental.projected import agem_projection, gem_projection
from jaxkit.class_incremental.readout import AWAY, class_means, nearest_mean
from jaxkit.class_incremental.rectified import corrected
from jaxkit.class_incremental.regularised import Importance, penalty, walked
from jaxkit.class_incremental.regularised import Path as Walk
from jaxkit.networks import convnet, mlp

RNG = np.random.default_rng(0)
OLD, SEEN, CLASSES, BATCH = 3, 5, 6, 7
STUDENT, TEACHER = RNG.normal(size=(2, BATCH, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, SEEN, BATCH).astype(np.int32)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_cross_entropy_of_the_old_classes(temperature):
    target = softmax(TEACHER[:, :OLD] / temperature, axis=1)
    want = -(target * log_softmax(STUDENT[:, :OLD] / temperature, axis=1)).sum(1)
    got = distillation(jnp.asarray(STUDENT), jnp.asarray(TEACHER), OLD, temperature)
    np.testing.assert_allclose(got, want, **CLOSE)
    grads = jax.grad(lambda z: distillation(z, jnp.asarray(TEACHER), OLD, temperature).sum())(jnp.asarray(STUDENT))
    own = softmax(STUDENT[:, :OLD] / temperature, axis=1)
    np.testing.assert_allclose(grads[:, :OLD], (own - target) / temperature, **CLOSE)
    assert (grads[:, OLD:] == 0).all()


def test_there_is_nothing_to_distil_without_old_classes():
    value, grads = jax.value_and_grad(lambda z: distillation(z, jnp.asarray(TEACHER), 0, 2.0).sum())(
        jnp.asarray(STUDENT)
    )
    assert value == 0
    assert (grads == 0).all()


def test_weight_alignment_makes_the_mean_norms_equal():
    kernel = RNG.normal(size=(4, CLASSES)).astype(np.float32)
    got = np.asarray(weight_alignment(jnp.asarray(kernel), OLD, SEEN))
    norms = np.linalg.norm(kernel, axis=0)
    gamma = norms[:OLD].mean() / norms[OLD:SEEN].mean()
    np.testing.assert_allclose(got[:, OLD:SEEN], gamma * kernel[:, OLD:SEEN], **CLOSE)
    np.testing.assert_array_equal(got[:, [0, 1, 2, 5]], kernel[:, [0, 1, 2, 5]])
    np.testing.assert_allclose(np.linalg.norm(got, axis=0)[:OLD].mean(), np.linalg.norm(got, axis=0)[OLD:SEEN].mean())
    np.testing.assert_array_equal(weight_alignment(jnp.asarray(kernel), 0, SEEN), kernel)


def test_the_bias_correction_is_linear_in_each_task():
    alpha, beta = np.array([1.0, 0.5, 2.0], np.float32), np.array([0.0, 1.0, -1.0], np.float32)
    task_of = np.array([0, 0, 0, 1, 1, 2])
    got = corrected(jnp.asarray(STUDENT), jnp.asarray(alpha), jnp.asarray(beta), jnp.asarray(task_of))
    for c, t in enumerate(task_of):
        np.testing.assert_allclose(got[:, c], alpha[t] * STUDENT[:, c] + beta[t], **CLOSE)


def test_class_means_and_the_nearest_of_them():
    features = RNG.normal(size=(BATCH, 4)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.asarray(class_means(jnp.asarray(features), jnp.asarray(LABELS), CLASSES))
    for c in range(CLASSES):
        rows = unit[c == LABELS]
        want = rows.mean(0) / np.linalg.norm(rows.mean(0)) if len(rows) else np.zeros(4)
        np.testing.assert_allclose(means[c], want, **CLOSE)
    distances = ((unit[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(nearest_mean(jnp.asarray(features), jnp.asarray(means)), -distances, **CLOSE)


def test_proxies_are_averaged_by_their_own_softmax():
    features, kernel = RNG.normal(size=(BATCH, 4)), RNG.normal(size=(3, 4, CLASSES))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.einsum("bf,pfc->bpc", unit, kernel / np.linalg.norm(kernel, axis=1, keepdims=True))
    want = (softmax(cosines, axis=1) * cosines).sum(1)
    got = proxy_scores(jnp.asarray(features, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(got, want, **CLOSE)


def test_nca():
    scores = np.where(np.arange(CLASSES) < SEEN, STUDENT, AWAY).astype(np.float32)
    want = []
    for row, y in zip(STUDENT, LABELS, strict=True):
        others = [row[c] for c in range(SEEN) if c != y]
        want.append(max(0.0, logsumexp(others) - (row[y] - 0.6)))
    np.testing.assert_allclose(nca(jnp.asarray(scores), jnp.asarray(LABELS)), want, **CLOSE)
    assert jnp.isfinite(jax.grad(lambda z: nca(z, jnp.asarray(LABELS)).sum())(jnp.asarray(scores))).all()


def test_pod_spatial():
    one, two = RNG.normal(size=(2, BATCH, 3, 4, 2)).astype(np.float32)

    def pooled(h):
        sums = np.concatenate([(h**2).sum(1).reshape(BATCH, -1), (h**2).sum(2).reshape(BATCH, -1)], axis=1)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    got = pod_spatial(jnp.asarray(one), jnp.asarray(two))
    np.testing.assert_allclose(got, np.linalg.norm(pooled(one) - pooled(two), axis=1), **CLOSE)
    same, grads = jax.value_and_grad(lambda h: pod_spatial(h, jnp.asarray(one)).sum())(jnp.asarray(one))
    assert same == 0
    assert (grads == 0).all()


def test_margin_ranking():
    want, rows = 0.0, 0
    for row, y in zip(STUDENT, LABELS, strict=True):
        if y < OLD:
            rows += 1
            want += sum(max(0.5 - row[y] + hard, 0.0) for hard in np.sort(row[OLD:SEEN])[::-1][:2])
    got = margin_ranking(jnp.asarray(STUDENT), jnp.asarray(LABELS), OLD, SEEN)
    np.testing.assert_allclose(got, want / rows, **CLOSE)
    one_new = margin_ranking(jnp.asarray(STUDENT), jnp.asarray(LABELS), OLD, OLD + 1)
    hinge = [max(0.5 - row[y] + row[OLD], 0.0) for row, y in zip(STUDENT, LABELS, strict=True) if y < OLD]
    np.testing.assert_allclose(one_new, np.mean(hinge), **CLOSE)


def test_effective_weights():
    counts = np.array([20.0, 20.0, 20.0, 500.0, 500.0, 0.0])
    weight = (1 - 0.96) / (1 - 0.96 ** counts[:SEEN])
    got = effective_weights(jnp.asarray(counts, jnp.float32), SEEN, 0.96)
    np.testing.assert_allclose(got[:SEEN], weight / weight.sum() * SEEN, **CLOSE)
    assert got[5] == 1


def test_balanced_distillation():
    weights = np.array([2.0, 1.0, 1.0, 0.5, 0.5, 1.0], np.float32)
    target = weights * softmax(TEACHER / 2, axis=1)
    target /= target.sum(1, keepdims=True)
    want = -(target * log_softmax(STUDENT / 2, axis=1)).sum(1)
    got = balanced_distillation(jnp.asarray(STUDENT), jnp.asarray(TEACHER), jnp.asarray(weights), 2.0)
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("seed", range(6))
def test_gem_gives_the_nearest_gradient_that_harms_no_task(seed):
    rng = np.random.default_rng(seed)
    grad, memory = rng.normal(size=12), rng.normal(size=(4, 12))
    got = np.asarray(gem_projection(jnp.asarray(grad, jnp.float32), jnp.asarray(memory, jnp.float32)), np.float64)
    # The nearest point of the cone is g plus the conic combination of rows that nnls finds for -g.
    v, _ = nnls(memory.T, -grad)
    want = grad + memory.T @ v if (memory @ grad < 0).any() else grad
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    assert (memory @ got >= -1e-3).all()


def test_gem_leaves_what_harms_nothing_and_tasks_that_are_not_there():
    grad, memory = jnp.array([1.0, 0.0]), jnp.array([[1.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(gem_projection(grad, memory[:1]), grad)
    np.testing.assert_array_equal(gem_projection(grad, memory, jnp.array([True, False])), grad)


def test_agem():
    grad, reference = jnp.array([1.0, -2.0]), jnp.array([0.0, 1.0])
    np.testing.assert_allclose(agem_projection(grad, reference), [1.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(agem_projection(-grad, reference), -grad)


def test_the_path_of_si_sums_what_each_step_gained():
    theta = [np.array([0.0, 1.0]), np.array([0.5, 1.0]), np.array([0.6, 0.4])]
    grads = [np.array([-1.0, 2.0]), np.array([0.5, 1.0])]
    walk = Walk({"w": jnp.zeros(2)}, {"w": jnp.asarray(theta[0])}, {"w": jnp.asarray(grads[0])})
    gained = walked(walk, {"w": jnp.asarray(theta[1])})
    walk = Walk(gained, {"w": jnp.asarray(theta[1])}, {"w": jnp.asarray(grads[1])})
    gained = walked(walk, {"w": jnp.asarray(theta[2])})
    want = -sum(g * (after - before) for g, before, after in zip(grads, theta, theta[1:]))
    np.testing.assert_allclose(gained["w"], want, **CLOSE)


def test_penalty():
    importance = Importance({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.0, 1.0])})
    assert float(penalty({"w": jnp.array([3.0, 0.0])}, importance)) == 1 * 9 + 2 * 1


@pytest.mark.parametrize(
    ("network", "shape", "shared"), [(mlp(4, hidden=(8, 6)), (5, 3), 0), (convnet(4, 2, norm="batch"), (5, 8, 8, 1), 2)]
)
def test_an_expanded_network_has_the_features_of_each_backbone(network, shape, shared):
    x = jax.random.normal(jax.random.key(0), shape)
    grown = expanding(network, 4, 3, shared)
    params, variables = grown.init(jax.random.key(1), x)
    before = grown.apply(params, variables, x)[0]["features"]
    width = before.shape[1] // 3
    assert not before[:, width:].any()
    frozen = jax.tree.map(
        lambda stack, leaf: stack.at[0].set(leaf), variables["frozen"], (params["backbone"], variables["backbone"])
    )
    other = grown.init(jax.random.key(2), x)[0]["backbone"]
    outputs, _ = grown.apply({**params, "backbone": other}, {**variables, "frozen": frozen, "count": jnp.int32(1)}, x)
    np.testing.assert_allclose(outputs["features"][:, :width], before[:, :width], **CLOSE)
    assert not np.allclose(outputs["features"][:, width : 2 * width], before[:, :width])
    assert not outputs["features"][:, 2 * width :].any()
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    np.testing.assert_allclose(outputs["logits"], outputs["features"] @ kernel + bias, **CLOSE)


def test_among_takes_a_range_for_each_row():
    low, high = jnp.array([[0], [2]]), jnp.array([[2], [4]])
    got = among(jnp.ones((2, 4)), low, high)
    np.testing.assert_array_equal(got == 1, [[True, True, False, False], [False, False, True, True]])
