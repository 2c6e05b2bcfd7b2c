"""The memory budget: the counts that the literature prints, areas under curves, and equal bytes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit.check import UsageError
from jaxkit.class_incremental import METHODS, make_stream
from jaxkit.class_incremental.budget import (
    MEGABYTE,
    aligned_exemplars,
    area_under_curve,
    backbones,
    budget_points,
    curve_bytes,
    exemplar_bytes,
    exemplars_for,
    exemplars_within,
    full_bytes,
    kept_bytes,
    model_bytes,
)
from jaxkit.class_incremental.flops import forward_flops, passes, training_flops
from jaxkit.class_incremental.memory import NOTHING
from jaxkit.class_incremental.parts import Parts, parameters_of
from jaxkit.class_incremental.task import pool_source
from jaxkit.networks import mlp, resnet20, resnet32
from jaxkit.training import optimizer

CIFAR, IMAGENET = 32 * 32 * 3, 224 * 224 * 3
RESNET18 = Parts(2_782_784, 8_393_728)  # torchvision's without its classifier, cut before layer4


def residual(depth: int) -> Parts:
    """Parameters of the CIFAR network of He et al. 2016 by hand: 3x3 convolutions without bias, and two numbers
    of batch normalisation for each channel."""
    blocks = (depth - 2) // 6
    conv = lambda before, after: 9 * before * after + 2 * after
    stage = lambda before, after: conv(before, after) + (2 * blocks - 1) * conv(after, after)
    return Parts(conv(3, 16) + stage(16, 16) + stage(16, 32), stage(32, 64))


@functools.lru_cache
def resnet32_parts() -> Parts:
    return parameters_of(resnet32(10), jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32))


def test_parameters_of_the_two_parts_of_resnet32():
    assert resnet32_parts() == residual(32) == (112_016, 351_488)
    assert resnet32_parts().whole == 463_504
    network, x = mlp(4, hidden=(16, 8)), jnp.zeros((2, 64))
    assert parameters_of(network, x) == parameters_of(network, x, 1) == (64 * 16 + 16, 16 * 8 + 8)
    assert parameters_of(network, x, 0) == (0, 64 * 16 + 16 + 16 * 8 + 8)


def test_a_model_in_exemplars():
    assert exemplar_bytes((32, 32, 3)) == CIFAR
    assert exemplar_bytes((32, 32, 3), "float32") == 4 * CIFAR
    assert exemplar_bytes((64,)) == 64
    assert model_bytes(463_504) == 1_854_016
    assert int(exemplars_for(463_504, CIFAR)) == 603  # rounded down in print
    assert RESNET18.whole == 11_176_512
    assert exemplars_for(11_176_512, IMAGENET) == pytest.approx(296.99, abs=0.005)
    assert round(exemplars_for(11_176_512, IMAGENET)) == 297  # to the nearest in print


@pytest.mark.parametrize(
    ("method", "tasks", "exemplars"),
    [
        ("icarl", 10, 7431),
        ("foster", 10, 7431),
        ("wa", 20, 13466),
        ("memo", 10, 3312),
        ("memo", 20, 4771),
        ("der", 20, 2000),
    ],
)
def test_exemplars_aligned_to_der(method, tasks, exemplars):
    assert aligned_exemplars(method, tasks, resnet32_parts(), CIFAR) == exemplars


def test_totals_in_megabytes():
    parts = resnet32_parts()
    megabytes = [kept_bytes(*case, parts, 2000, CIFAR) / MEGABYTE for case in (("wa", 10), ("der", 10), ("der", 20))]
    np.testing.assert_allclose(megabytes, [7.63, 23.54, 41.22], atol=0.005)
    budgets = curve_bytes(10, parts, CIFAR)
    assert len(budgets) == 5
    np.testing.assert_allclose(np.divide(budgets, MEGABYTE)[[0, 2, 4]], [7.63, (7.63 + 23.54) / 2, 23.54], atol=0.005)
    # In millions of parameters; the survey cuts decimals off.
    assert int(parts.times(*backbones("memo", 10)) / 1e4) == 362
    assert int(RESNET18.times(*backbones("memo", 10)) / 1e4) == 8672
    assert int(RESNET18.times(*backbones("der", 10)) / 1e5) == 1117


def test_points_of_the_published_curves():
    for point in budget_points("CIFAR100-B0-Inc10")[1:]:
        small = residual(int(point.backbone.removeprefix("ResNet")))
        total = kept_bytes("der", 10, small, point.der, CIFAR)
        assert exemplars_within(total, "wa", 10, resnet32_parts(), CIFAR) == point.exemplars
        assert exemplars_within(total, "memo", 10, small, CIFAR) == point.memo
        assert total / MEGABYTE == pytest.approx(point.megabytes, rel=0.01)
    first = budget_points("cifar100_b0_inc10")[0]
    assert kept_bytes("wa", 10, resnet32_parts(), first.exemplars, CIFAR) / MEGABYTE == pytest.approx(7.6, abs=0.05)
    for point in budget_points("imagenet100_b50_inc5"):
        total = kept_bytes("wa", 11, RESNET18, point.exemplars, IMAGENET)
        assert total / MEGABYTE == pytest.approx(point.megabytes, rel=0.01)
    resnet18 = budget_points("imagenet100_b50_inc5")[2]
    assert aligned_exemplars("memo", 11, RESNET18, IMAGENET) == resnet18.memo
    assert aligned_exemplars("wa", 11, RESNET18, IMAGENET) == resnet18.exemplars - 1  # 4,969.95


sizes = st.integers(1, 10**6)


@given(sizes, sizes, st.integers(2, 30), st.integers(1, 10**5), st.integers(0, 10**4), st.sampled_from(sorted(METHODS)))
def test_bytes_are_equal_within_one_exemplar(shared, special, tasks, image_bytes, base, method):
    parts = Parts(shared, special)
    budget = kept_bytes("der", tasks, parts, base, image_bytes)
    exemplars = aligned_exemplars(method, tasks, parts, image_bytes, base=base)
    assert 0 <= budget - kept_bytes(method, tasks, parts, exemplars, image_bytes) < image_bytes
    fewer = {"der": 0, "memo": shared * (tasks - 1), "aanets": parts.whole * (tasks - 2)}
    assert exemplars == base + 4 * fewer.get(method, parts.whole * (tasks - 1)) // image_bytes


def test_areas_of_gem():
    megabytes = np.array([point.megabytes for point in budget_points("cifar100_b0_inc10")])
    for accuracy, area in ((0.271, 4.31), (0.107, 1.70)):
        constant = np.full(megabytes.shape, accuracy)
        assert area_under_curve(megabytes, constant) == pytest.approx(area, abs=0.005)
        assert area_under_curve(megabytes, constant, normalised=True) == pytest.approx(accuracy)


def test_an_area_is_that_of_trapezoids():
    m, a = np.array([1.0, 2.0, 5.0]), np.array([[0.2, 0.4, 0.6], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(area_under_curve(m, a), [0.3 + 1.5, 0.5 + 1.5])
    np.testing.assert_allclose(area_under_curve(m, a, normalised=True), [1.8 / 4, 2.0 / 4])


CLASSES, FEATURES, MEMORY, ROWS = 6, 16, 9, 20
STREAM = make_stream(np.repeat(np.arange(CLASSES), ROWS), increment=2)
BACKBONE, HEAD = 64 * 16 + 16 + 16 * FEATURES + FEATURES, (FEATURES + 1) * CLASSES
NETWORK = mlp(CLASSES, hidden=(16, FEATURES))


def plan(name, network=NETWORK):
    settings = {} if name in ("finetune", "joint", "ewc", "si", "mas", "lwf") else {"memory": MEMORY}
    return METHODS[name].make(network, optimizer("momentum", 0.1), stream=STREAM, batch_size=8, **settings)


def state_of(name):
    """The shapes of a method's state."""
    batch = {"x": jax.ShapeDtypeStruct((1, 64), jnp.float32), "y": jax.ShapeDtypeStruct((1,), jnp.int32)}
    return jax.eval_shape(plan(name)[0].learner.init, jax.random.key(0), batch)


EXEMPLARS = MEMORY * 64 + 4 * CLASSES
WANTED = {
    "finetune": {},
    "icarl": {"teacher": 4 * (BACKBONE + HEAD), "exemplars": EXEMPLARS},
    "ewc": {"own": 2 * 4 * (BACKBONE + HEAD)},
    # Two numbers for each of three tasks, and those that are being learnt.
    "bic": {"teacher": 4 * (BACKBONE + HEAD + 8), "exemplars": EXEMPLARS, "heads": 4 * (HEAD + 8)},
    "der": {
        "frozen": 2 * 4 * BACKBONE,
        "heads": 4 * (CLASSES * (3 * FEATURES + 1) + (CLASSES + 1) * (FEATURES + 1)),
        "means": 4 * CLASSES * 3 * FEATURES,
        "statistics": 4,
        "exemplars": EXEMPLARS,
    },
    "foster": {
        "backbones": 2 * 4 * BACKBONE,
        "heads": 4 * (HEAD + HEAD + CLASSES * (2 * FEATURES + 1)),
        "frozen": 4 * (BACKBONE + HEAD),
        "exemplars": EXEMPLARS,
    },
}


@pytest.mark.parametrize("name", sorted(WANTED))
def test_the_full_rule_counts_every_array(name):
    state = state_of(name)
    found = full_bytes(state)
    common = {"backbones": 4 * BACKBONE, "heads": 4 * HEAD, "means": 4 * CLASSES * FEATURES, "counters": 16}
    wanted = {**common, **WANTED[name]}
    assert {kind: size for kind, size in found._asdict().items() if size and kind != "optimizer"} == wanted
    every = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert found.total == sum(wanted.values())
    assert found.total + found.optimizer == every
    kept = kept_bytes(name, 3, parameters_of(NETWORK, jnp.zeros((1, 64))), MEMORY if "exemplars" in wanted else 0, 64)
    assert kept <= found.total


def test_operations_of_a_forward_pass():
    """Two for each multiply and add of the convolutions; normalisation and activation are a few per cent more."""
    found = forward_flops(resnet20(10), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    conv = lambda side, before, after: 2 * side**2 * 9 * before * after
    shared = conv(32, 3, 16) + 6 * conv(32, 16, 16) + conv(16, 16, 32) + 5 * conv(16, 32, 32)
    np.testing.assert_allclose(found, [shared, conv(8, 32, 64) + 5 * conv(8, 64, 64)], rtol=0.03)


@functools.lru_cache
def forward():
    return forward_flops(NETWORK, jnp.zeros((5, 64)))


PASSES = {
    "finetune": [3, 3, 3],
    "icarl": [3, 4, 4],
    "der": [3, 4, 5],
    "bic": [3, 4, 1, 4, 1],
    "foster": [3, 4, 5, 4, 5],
}


@pytest.mark.parametrize("name", sorted(PASSES))
def test_operations_of_training(name):
    stages = plan(name)
    found = training_flops(name, stages, NETWORK, jnp.zeros((5, 64)), epochs=10)
    whole = forward().whole
    assert whole == pytest.approx(2 * (64 * 16 + 16 * 16), rel=0.05)
    spent = [flops / (10 * stage.share * whole) for flops, stage in zip(found.by_stage, stages, strict=True)]
    np.testing.assert_allclose(spent, PASSES[name])
    if name == "finetune":
        assert found.total == pytest.approx(3 * 10 * CLASSES * ROWS * whole)


def test_operations_that_no_plan_here_has():
    """By hand: 1 answers, 2 with a gradient to what lies below, 3 trained."""
    assert passes("fetril", 2, "translate") == (1, 1)
    assert passes("dytox", 1, "train", teacher=True) == (4, 4)
    assert passes("dytox", 1, "finetune", teacher=True) == (1, 1)
    assert passes("podnet", 1, "finetune", teacher=True) == (4, 4)
    assert [passes("l2p", task)[0] for task in (0, 1)] == [1 + 3, 1 + 2]
    assert [passes("derpp", task)[0] for task in (0, 1)] == [3, 3 * 3]
    assert [passes("aanets", task, teacher=True)[0] for task in (0, 1)] == [3, 2 * 3 + 2 * 1 + 2 * 2]


def test_operations_of_a_closed_form():
    source = pool_source("new", 40, STREAM, NOTHING)
    once = plan("finetune")[0]._replace(source=source, share=0.0, steps=1)
    found = training_flops("simplecil", (once, once._replace(name="task 2")), NETWORK, jnp.zeros((5, 64)), epochs=7)
    np.testing.assert_allclose(found.by_stage, [40 * forward().whole] * 2)


def test_operations_of_memo_and_gem():
    x = jnp.zeros((1, 64))
    shared, special = forward()
    stages = plan("memo")
    found = training_flops("memo", stages, NETWORK, x, epochs=1)
    wanted = [stage.share * (3 * shared + (3 + 2 * t) * special) for t, stage in enumerate(stages)]
    np.testing.assert_allclose(found.by_stage, wanted)
    found = training_flops("gem", plan("gem"), NETWORK, x, epochs=1, memory_rows=MEMORY / 8)
    rows = 2 * ROWS * 3 * (shared + special)
    np.testing.assert_allclose(found.by_stage, [rows, rows * (1 + MEMORY / 8), rows * (1 + MEMORY / 8)])


PARTS = Parts(10, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model_bytes(-1), "parameters must be at least 0"),
        (lambda: exemplar_bytes((32, 0, 3)), "an axis of an exemplar must be at least 1"),
        (lambda: exemplar_bytes((4,), "uint16"), "unknown storage 'uint16'"),
        (lambda: backbones("derr", 3), "unknown method 'derr'; did you mean 'der'"),
        (lambda: backbones("der", 0), "tasks must be at least 1"),
        (lambda: parameters_of(NETWORK, jnp.zeros((1, 64)), 2), "shares 0 to 1 of them, got 2"),
        (lambda: kept_bytes("wa", 2, PARTS, -1, 8), "exemplars must be at least 0"),
        (lambda: kept_bytes("wa", 2, PARTS, 1, 0), "image_bytes must be at least 1"),
        (lambda: exemplars_within(100, "wa", 2, PARTS, 8), "take 120 bytes after 2 tasks, more than the 100"),
        (lambda: aligned_exemplars("der", 9, PARTS, 8, base=1, reference="wa"), "a smaller network or a larger budget"),
        (lambda: curve_bytes(3, PARTS, 8, points=1), "points must be at least 2"),
        (lambda: area_under_curve(np.array([2.0, 1.0]), np.array([0.1, 0.2])), "increasing numbers"),
        (lambda: area_under_curve(np.array([1.0]), np.array([0.1])), "two or more increasing"),
        (lambda: area_under_curve(np.array([1.0, 2.0]), np.array([27.1, 28.0])), "a fraction in [0, 1], got 27.1..28"),
        (lambda: area_under_curve(np.array([1.0, 2.0]), np.array([np.nan, 0.1])), "a fraction in [0, 1]"),
        (lambda: area_under_curve(np.array([1.0, 2.0]), np.array([0.1, 0.1, 0.1])), "for each of 2 budgets, got [3]"),
        (lambda: full_bytes(plan("icarl")), "the state of a class-incremental method"),
        (lambda: budget_points("cifar10"), "unknown setting of the curve 'cifar10'"),
        (lambda: training_flops("gem", plan("gem"), NETWORK, jnp.zeros((1, 64)), 1), "pass memory_rows"),
        (lambda: training_flops("wa", plan("wa"), NETWORK, jnp.zeros((1, 64)), 0), "epochs must be"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
