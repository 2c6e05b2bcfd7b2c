"""What a step of the second task descends, against its formula in NumPy: methods that keep to one network.

The network before the task is taken from the end of the first task, never from where the method keeps it; weights and
temperatures are the published ones, written out here.
"""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jaxkit.class_incremental import METHODS
from jaxkit.networks import part_of
from tests.class_incremental.two_tasks import (
    CLOSE,
    CONVNET,
    DATA,
    MLP,
    OLD,
    SEEN,
    ce,
    epoch,
    features,
    first_two,
    kd,
    logits,
    plan_of,
    unit,
    walk,
)

PUBLISHED = {
    "lwf": {"strength": 3.0, "temperature": 2.0},
    "icarl": {"temperature": 2.0},
    "wa": {"strength": 2.0, "temperature": 2.0},
    "ewc": {"strength": 1000.0, "most": 1e-4},
    "mas": {"strength": 1.0},
    "si": {"strength": 1.0, "damping": 0.1},
    "lucir": {"strength": 5.0, "margin": 0.5, "negatives": 2},
    "podnet": {"spatial": 5.0, "flat": 1.0, "margin": 0.6, "proxies": 10},
    "foster": {"strength": 1.0, "temperature": 2.0, "beta_boosting": 0.96, "beta_compression": 0.97},
    "der": {"strength": 1.0},
    "memo": {"strength": 1.0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_defaults_are_the_published_ones(name):
    given = inspect.signature(METHODS[name].make).parameters
    assert {setting: given[setting].default for setting in PUBLISHED[name]} == PUBLISHED[name]


def test_wa_with_clip_keeps_the_weights_of_the_head_at_zero_or_above():
    first, second = first_two("wa", clip=True, end=True)
    for walked in (first, second):
        for step in walked.steps[1:]:
            assert (np.asarray(step.state.params["head"]["kernel"]) >= 0).all()
        clipped = np.asarray(walked.last.params["head"]["kernel"])
        assert (clipped == 0).any() and (clipped > 0).any()
        backbone = {name: leaves for name, leaves in walked.last.params.items() if name != "head"}
        assert all((np.asarray(leaf) < 0).any() for leaf in jax.tree.leaves(backbone) if leaf.ndim == 2)
    kernel = np.asarray(second.ended.params["head"]["kernel"])
    lengths = np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(lengths[:OLD].mean(), lengths[OLD:SEEN].mean(), rtol=1e-5)  # the alignment


@pytest.mark.parametrize(
    ("name", "low", "weight", "settings"),
    [
        ("lwf", OLD, 0.7, {"strength": 0.7, "temperature": 3.0}),
        ("icarl", 0, 1.0, {"temperature": 3.0}),
        ("wa", 0, 2.0, {}),
    ],
)
def test_distillation_of_the_old_classes_and_the_cross_entropy(name, low, weight, settings):
    one, two = first_two(name, **settings)
    for step in two.steps:
        x, y = step.batch["x"], step.batch["y"]
        assert set(y.tolist()) <= set(range(low, SEEN)) and y.max() >= OLD
        z, taught = logits(step.state, x, train=True)[:, :SEEN], logits(one.ended, x, train=False)[:, :OLD]
        kept = kd(z[:, :OLD], taught, settings.get("temperature", 2.0))
        np.testing.assert_allclose(step.loss, (ce(z[:, low:], y - low) + weight * kept).mean(), **CLOSE)
    assert low or any(step.batch["y"].min() < OLD for step in two.steps)
    assert np.abs(z[:, :OLD] - taught).max() > 0.1  # the two networks differ


@functools.partial(jax.jit, static_argnames=("low", "high"))
def _gradient(params, variables, x, y, low, high):
    """d mean CE among the classes low..high-1 / d params, in training."""

    def objective(params):
        z = MLP.apply(params, variables, x, train=True)[0]["logits"][:, low:high]
        return -jnp.take_along_axis(jax.nn.log_softmax(z), (y - low)[:, None], axis=1).mean()

    return jax.grad(objective)(params)


@functools.partial(jax.jit, static_argnames="seen")
def _sensitivity(params, variables, x, seen):
    """d mean |z|^2 over the seen classes / d params, in prediction."""

    def size(params):
        return (MLP.apply(params, variables, x, train=False)[0]["logits"][:, :seen] ** 2).sum(1).mean()

    return jax.grad(size)(params)


def exact(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def mean_of(trees, function):
    return jax.tree.map(lambda *leaves: np.mean([function(leaf) for leaf in leaves], axis=0), *map(exact, trees))


def check_penalty(one, two, weight, strength):
    """Every step of the second task has the loss CE(z_new) + strength sum_i weight_i (theta_i - theta*_i)^2."""
    anchor = exact(one.last.params)
    for step in two.steps:
        y = step.batch["y"]
        assert set(y.tolist()) <= {OLD, SEEN - 1}
        each = lambda w, now, then: (w * (now - then) ** 2).sum()
        held = sum(jax.tree.leaves(jax.tree.map(each, weight, exact(step.state.params), anchor)))
        z = logits(step.state, step.batch["x"], train=True)[:, OLD:SEEN]
        np.testing.assert_allclose(step.loss, ce(z, y - OLD).mean() + strength * held, **CLOSE)
    assert strength * held > 1e-2


def check_importance(found, want, most):
    """Both bounds of the importance count for some parameter: none is lost at 0, and not all are cut at ``most``."""
    flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(want)])
    assert ((flat > 0) & (flat < 0.99 * most)).sum() > 100 and (flat > 0.99 * most).any()
    # A squared gradient of a step has twice its relative error; near 0 the error is that of the terms that cancel.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * most), exact(found), want)


def test_ewc():
    most = 1e-3
    plan = plan_of("ewc", most=most)
    one, two = first_two("ewc", end=True, most=most)

    def fisher(number, walked, batches, seen):
        state, rows = walked.last, epoch(plan, number, walked, batches)
        grads = [_gradient(state.params, state.variables, b["x"], b["y"], 0, seen) for b in rows]
        return jax.tree.map(lambda leaf: np.minimum(leaf, most), mean_of(grads, np.square))

    first, second = fisher(0, one, 3, OLD), fisher(1, two, 2, SEEN)
    check_importance(one.ended.extra.own.weight, first, most)
    check_penalty(one, two, first, 1000.0 / 2)
    alpha = OLD / SEEN
    want = jax.tree.map(lambda old, new: alpha * old + (1 - alpha) * new, first, second)
    for name, leaf in want["head"].items():
        leaf[..., OLD:] = second["head"][name][..., OLD:]
    check_importance(two.ended.extra.own.weight, want, most)


def test_mas():
    most = 0.2
    plan = plan_of("mas", most=most)
    one, two = first_two("mas", end=True, most=most)

    def omega(number, walked, batches, seen):
        state, rows = walked.last, epoch(plan, number, walked, batches)
        return mean_of([_sensitivity(state.params, state.variables, b["x"], seen) for b in rows], np.abs)

    first = jax.tree.map(lambda leaf: np.minimum(leaf, most), omega(0, one, 3, OLD))
    check_importance(one.ended.extra.own.weight, first, most)
    check_penalty(one, two, first, 1.0)
    want = jax.tree.map(lambda old, new: np.minimum(old + new, most), first, omega(1, two, 2, SEEN))
    check_importance(two.ended.extra.own.weight, want, most)


def test_si():
    most = 0.2
    one, two = first_two("si", end=True, most=most)

    def omega(walked, low, high):
        """max(sum_t -g_t (theta_{t+1} - theta_t), 0) / ((theta_end - theta_begin)^2 + xi), g_t without the penalty."""
        places = [step.state for step in walked.steps] + [walked.last]
        gained = jax.tree.map(np.zeros_like, exact(walked.last.params))
        for step, after in zip(walked.steps, places[1:], strict=True):
            state, batch = step.state, step.batch
            grads = exact(_gradient(state.params, state.variables, batch["x"], batch["y"], low, high))
            moved = jax.tree.map(np.subtract, exact(after.params), exact(state.params))
            gained = jax.tree.map(lambda w, g, d: w - g * d, gained, grads, moved)
        far = jax.tree.map(np.subtract, exact(walked.last.params), exact(walked.steps[0].state.params))
        return jax.tree.map(lambda w, d: np.maximum(w, 0.0) / (d**2 + 0.1), gained, far)

    first = jax.tree.map(lambda leaf: np.minimum(leaf, most), omega(one, 0, OLD))
    check_importance(one.ended.extra.own.weight, first, most)
    check_penalty(one, two, first, 1.0)
    want = jax.tree.map(lambda old, new: np.minimum(old + new, most), first, omega(two, OLD, SEEN))
    check_importance(two.ended.extra.own.weight, want, most)


def cosines(features, kernel):
    """sum_k s_ck cos(f, theta_ck), s_c = softmax_k cos(f, theta_ck)."""
    each = np.einsum("bf,pfc->bpc", unit(features), unit(np.asarray(kernel, np.float64), axis=1))
    return (softmax(each, axis=1) * each).sum(1)


def test_lucir():
    one, two = first_two("lucir")
    before = one.ended
    x, y = (np.asarray(DATA[name]) for name in ("x", "y"))
    begun = np.asarray(two.steps[0].state.params["head"]["kernel"])[0]
    for c in (OLD, SEEN - 1):  # the weights of a new class begin as the mean of its features
        mean = unit(features(before.params, before.variables, x[y == c], train=False)).mean(0)
        np.testing.assert_allclose(unit(begun[:, c]), unit(mean), atol=1e-5)
    hinges = 0
    for step in two.steps:
        x, y = step.batch["x"], step.batch["y"]
        new = features(step.state.params, step.state.variables, x, train=True)
        old = features(before.params, before.variables, x, train=False)
        scores = cosines(new, step.state.params["head"]["kernel"])[:, :SEEN]
        apart = 1 - (unit(new) * unit(old)).sum(1)
        ranking = np.maximum(0.5 - scores[np.arange(len(y)), y][:, None] + scores[:, OLD:SEEN], 0.0).sum(1)
        hinges += ((ranking > 0) & (y < OLD)).sum()
        want = ce(float(step.state.params["head"]["scale"]) * scores, y).mean()
        # Equation 6: the more old classes there are for one new class, the harder it holds on.
        want += 5.0 * np.sqrt(OLD / (SEEN - OLD)) * apart.mean()
        want += ranking[y < OLD].mean() if (y < OLD).any() else 0.0
        np.testing.assert_allclose(step.loss, want, **CLOSE)
    assert hinges > 0 and apart.mean() > 1e-2


@functools.partial(jax.jit, static_argnames="train")
def _maps(params, variables, x, train):
    """What comes out of the first stage of the ConvNet, of the first two, and of all."""
    parts = [part_of(CONVNET, 0, stages) for stages in (1, 2)] + [part_of(CONVNET)]
    return [part.apply(params, variables, x, train=train)[0]["features"] for part in parts]


def test_podnet_and_its_finetuning():
    one, two = first_two("podnet", CONVNET, end=True)
    three = walk(plan_of("podnet", CONVNET), 2, two.ended, steps=3)
    before = one.ended

    def pooled(h):
        """Sums of squares over the height and over the width."""
        return unit(np.concatenate([(h**2).sum(axis).reshape(len(h), -1) for axis in (1, 2)], axis=1))

    for step in two.steps + three.steps:
        x, y, head = step.batch["x"], step.batch["y"], step.state.params["head"]
        *maps, new = exact(_maps(step.state.params, step.state.variables, x, train=True))
        *old_maps, old = exact(_maps(before.params, before.variables, x, train=False))
        z = float(head["scale"]) * cosines(new, head["kernel"])[:, :SEEN]
        others = [logsumexp(np.delete(row, c)) for row, c in zip(z, y, strict=True)]
        nca = np.maximum(others - (z[np.arange(len(y)), y] - 0.6), 0.0).mean()
        gaps = [np.linalg.norm(pooled(one) - pooled(other), axis=1) for one, other in zip(maps, old_maps, strict=True)]
        spatial, flat = np.mean(gaps), (1 - (unit(new) * unit(old)).sum(1)).mean()
        np.testing.assert_allclose(step.loss, nca + np.sqrt(SEEN / (SEEN - OLD)) * (5 * spatial + flat), **CLOSE)
    assert spatial > 1e-2 and flat > 1e-3
    assert set(np.concatenate([step.batch["index"] for step in three.steps]).tolist()) <= set(
        range(len(DATA["y"]), len(DATA["y"]) + 2 * SEEN)
    )
    first, last = (np.asarray(walked.last.params["head"]["kernel"]) for walked in (one, three))
    np.testing.assert_array_equal(first[..., :OLD], last[..., :OLD])
    assert not np.array_equal(first[..., OLD:SEEN], last[..., OLD:SEEN])
