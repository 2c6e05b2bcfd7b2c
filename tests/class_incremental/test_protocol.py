"""The measures of a class-incremental run, against their definitions written out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.class_incremental import (
    average_accuracy,
    curves,
    forgetting,
    intransigence,
    last_accuracy,
    make_stream,
    measure,
)
from jaxkit.class_incremental.readout import AWAY
from jaxkit.learner import Stage
from jaxkit.training import History

A = np.array([[0.9, 0.0, 0.0], [0.95, 0.8, 0.0], [0.6, 0.85, 0.7]])


def test_forgetting_is_from_the_best_to_the_last():
    assert forgetting(A) == pytest.approx(((0.95 - 0.6) + (0.8 - 0.85)) / 2)
    np.testing.assert_allclose(forgetting(np.stack([A, A])), [forgetting(A)] * 2)
    assert forgetting(A[:1, :1]) == 0


def test_intransigence_compares_each_task_after_the_first_with_joint_training():
    joint = np.array([0.99, 0.9, 0.8])
    assert intransigence(A, joint) == pytest.approx(((0.9 - 0.8) + (0.8 - 0.7)) / 2)
    whole = np.diag(joint) + np.tril(np.full((3, 3), 0.1), -1)
    assert intransigence(A, whole) == pytest.approx(intransigence(A, joint))
    assert intransigence(A[:1, :1], joint[:1]) == 0


def test_average_and_last():
    seen = np.array([[1.0, 0.5, 0.3], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(average_accuracy(seen), [0.6, 1.0])
    np.testing.assert_allclose(last_accuracy(seen), [0.3, 1.0])
    assert average_accuracy(seen[0]) == pytest.approx(0.6)


def test_what_is_measured_on_test_rows():
    stream = make_stream(np.repeat([0, 1, 2], 4), increment=1, base=2)
    labels = jnp.array([0, 1, 1, 2])
    logits = jnp.array([[1.0, 0.0, AWAY], [1.0, 0.0, AWAY], [0.0, 1.0, AWAY], [0.0, 1.0, AWAY]])
    found = measure(stream)(
        {"logits": logits, "logits_ncm": -logits * (logits > AWAY) + AWAY * (logits <= AWAY)}, {"y": labels}
    )
    # Class 2 has not come: its row counts neither as right nor among the seen ones.
    assert float(found["classifier"]) == pytest.approx(2 / 3)
    assert float(found["classifier/task_1"]) == pytest.approx(2 / 3)
    assert float(found["classifier/task_2"]) == 0
    assert float(found["nearest_mean"]) == pytest.approx(1 / 3)


def test_curves_read_the_last_phase_of_each_task():
    stream = make_stream(np.repeat([0, 1], 4), increment=1)
    names = ("task 1", "task 2: train", "task 2: correct")
    plan = tuple(Stage(name, None, None) for name in names)
    evals = {}
    for read_out, start in (("classifier", 0.0), ("nearest_mean", 0.5)):
        evals |= {read_out: start + np.array([[0.1, 0.2, 0.3]])}
        evals |= {f"{read_out}/task_{j}": start + np.array([[0.01, 0.02, 0.03]]) * j for j in (1, 2)}
    history = History({}, np.zeros(0, np.int32), np.array([1, 2, 3]), evals)
    found = curves(history, plan, stream)
    np.testing.assert_allclose(found["classifier"].seen, [[0.1, 0.3]])
    np.testing.assert_allclose(found["nearest_mean"].by_task, [[[0.51, 0.52], [0.53, 0.56]]])
    with pytest.raises(UsageError, match="measured 2 times and has 3 stages"):
        curves(history._replace(eval_steps=np.array([1, 2])), plan, stream)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forgetting(np.zeros((2, 3))), "must be .*tasks, tasks"),
        (lambda: intransigence(A, np.zeros(2)), "joint has 2 tasks, the method 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call()
