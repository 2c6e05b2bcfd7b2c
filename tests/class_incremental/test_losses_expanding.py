"""What a step of the second task descends, against its formula in NumPy: methods whose network grows.

As in ``test_losses.py``, what came before the task is taken from the end of the first one.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxkit.networks import part_of
from tests.class_incremental.two_tasks import (
    CLOSE,
    EACH,
    MEMORY,
    MLP,
    OLD,
    SEEN,
    ce,
    features,
    first_two,
    kd,
    linear,
    plan_of,
    walk,
)

LOWER, UPPER = part_of(MLP, 0, 1), part_of(MLP, 1)


def by_rows(beta):
    """(1 - beta) / (1 - beta^n) of the seen classes, with a sum of their number: exemplars of old classes, all rows of
    new ones."""
    rows = np.array(OLD * [MEMORY // OLD] + (SEEN - OLD) * [EACH])
    weight = (1 - beta) / (1 - beta**rows)
    return weight / weight.sum() * SEEN


def test_foster():
    plan = plan_of("foster", strength=0.7)
    one, two = first_two("foster", end=True, strength=0.7)
    three = walk(plan, 2, two.ended, end=False)
    before = one.ended
    old_head = before.params["student"]["head"]
    old_parts = before.params["student"]["backbone"], before.variables["student"]
    for step in two.steps:  # boosting
        x, y, params = step.batch["x"], step.batch["y"], step.state.params
        old = features(*old_parts, x, train=False)
        new = features(params["backbone"], step.state.variables["backbone"], x, train=True)
        z = linear(params["head"], np.concatenate([old, new], axis=1))[:, :SEEN]
        kept = kd(z[:, :OLD], linear(old_head, old)[:, :OLD])
        want = ce(z / by_rows(0.96), y) + ce(linear(params["aux"], new)[:, :SEEN], y) + 0.7 * kept
        np.testing.assert_allclose(step.loss, want.mean(), **CLOSE)
    boosted = two.last
    for step in three.steps:  # compression
        x, student = step.batch["x"], step.state.params["student"]
        both = [
            features(*old_parts, x, train=False),
            features(boosted.params["backbone"], boosted.variables["backbone"], x, train=False),
        ]
        target = softmax(linear(boosted.params["head"], np.concatenate(both, axis=1))[:, :SEEN] / 2, axis=1)
        target = target * by_rows(0.97)
        target /= target.sum(1, keepdims=True)
        own = features(student["backbone"], step.state.variables["student"], x, train=True)
        z = linear(student["head"], own)[:, :SEEN]
        np.testing.assert_allclose(step.loss, -(target * log_softmax(z / 2, axis=1)).sum(1).mean(), **CLOSE)


def expanded(head, aux, strength, new, old, y):
    """CE(z_seen) + strength CE of the new features alone among "an old class" and the new classes."""
    width = new.shape[1]
    kernel = np.asarray(head["kernel"], np.float64)[: 2 * width]
    z = np.concatenate([old, new], axis=1) @ kernel + np.asarray(head["bias"])
    alone = linear(aux, new)[:, [-1, *range(OLD, SEEN)]]
    return (ce(z[:, :SEEN], y) + strength * ce(alone, np.maximum(y - OLD + 1, 0))).mean()


def test_der():
    one, two = first_two("der", strength=0.7)
    before = one.ended
    for step in two.steps:
        x, y, params = step.batch["x"], step.batch["y"], step.state.params
        old = features(before.params["backbone"], before.variables["backbone"], x, train=False)
        new = features(params["backbone"], step.state.variables["backbone"], x, train=True)
        want = expanded(params["head"], params["aux"], 0.7, new, old, y)
        np.testing.assert_allclose(step.loss, want, **CLOSE)
    assert any(step.batch["y"].min() < OLD for step in two.steps)
    assert np.abs(old - features(params["backbone"], step.state.variables["backbone"], x, train=False)).max() > 0.1


@pytest.mark.parametrize("train_shared", [True, False])
def test_memo(train_shared):
    one, two = first_two("memo", strength=0.7, shared_stages=1, train_shared=train_shared)
    before = one.ended
    for step in two.steps:
        x, y, params, variables = step.batch["x"], step.batch["y"], step.state.params, step.state.variables
        if train_shared:
            lower = features(params["shared"], variables["shared"], x, train=True, network=LOWER)
        else:
            lower = features(before.params["shared"], before.variables["shared"], x, train=False, network=LOWER)
        lower = lower.astype(np.float32)
        old = features(before.params["backbone"], before.variables["backbone"], lower, train=False, network=UPPER)
        new = features(params["backbone"], variables["backbone"], lower, train=True, network=UPPER)
        want = expanded(params["head"], params["aux"], 0.7, new, old, y)
        np.testing.assert_allclose(step.loss, want, **CLOSE)
    assert (
        np.abs(old - features(params["backbone"], variables["backbone"], lower, train=False, network=UPPER)).max() > 0.1
    )
