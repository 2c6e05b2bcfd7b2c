"""The measures of a class-incremental run, from the accuracy on each task after each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.class_incremental.readout import taking_part
from jaxkit.class_incremental.stream import Stream
from jaxkit.learner import Data, Outputs, Plan
from jaxkit.training import History

READ_OUTS = {"classifier": "logits", "nearest_mean": "logits_ncm"}
"""The read-outs by name, and where they stand in the outputs."""

Matrix = Float[np.ndarray, "..."]  # [..., tasks, tasks]


def measure(stream: Stream) -> Callable[[Outputs, Data], dict[str, Array]]:
    """``measure`` for ``jaxkit.training.Evaluation``: for each read-out the accuracy on all classes seen so far, and on
    the classes of each task (``classifier/task_3``; 0 for a task that has not come).

    The test rows have places in the stream as labels, and rows of every class.
    """
    task_of = jnp.asarray(stream.task_of())

    def measured(outputs: Outputs, data: Data) -> dict[str, Array]:
        labels = jnp.asarray(data["y"])
        task = task_of[labels]
        rows = jnp.bincount(task, length=stream.num_tasks)
        found = {}
        for name, entry in READ_OUTS.items():
            logits = outputs[entry]
            seen = taking_part(logits)[labels]
            right = seen & (logits.argmax(-1) == labels)
            found[name] = right.sum() / jnp.maximum(seen.sum(), 1)
            of_task = jnp.bincount(task, weights=right.astype(jnp.float32), length=stream.num_tasks)
            for number in range(stream.num_tasks):
                found[f"{name}/task_{number + 1}"] = of_task[number] / jnp.maximum(rows[number], 1)
        return found

    return measured


class Curve(NamedTuple):
    """How a run went, of one read-out; with seeds each has them as its first axis.

    Attributes:
      seen: A_b, the accuracy on all classes seen after task b, [..., tasks].
      by_task: a_{b, j}, the accuracy on the classes of task j after task b, [..., tasks, tasks]; 0 for j > b.
    """

    seen: np.ndarray
    by_task: np.ndarray


def curves(history: History, plan: Plan, stream: Stream) -> dict[str, Curve]:
    """The curve of each read-out, from a run that ``measure(stream)`` evaluated at the end of each stage."""
    number = [int(stage.name.split(":")[0].removeprefix("task ")) for stage in plan]
    last = [max(i for i, task in enumerate(number) if task == b + 1) for b in range(stream.num_tasks)]
    if history.eval_steps.size != len(plan):
        raise check.UsageError(
            f"the run was measured {history.eval_steps.size} times and has {len(plan)} stages; measure it at the end "
            "of each stage: Evaluation(data, measure(stream))"
        )
    at_end = lambda name: np.asarray(history.evals[name])[..., last]
    found = {}
    for name in READ_OUTS:
        by_task = np.stack([at_end(f"{name}/task_{j + 1}") for j in range(stream.num_tasks)], axis=-1)
        found[name] = Curve(at_end(name), by_task)
    return found


def average_accuracy(seen: Float[np.ndarray, "*runs tasks"]) -> np.ndarray:
    """The average incremental accuracy, mean_b A_b."""
    return np.asarray(np.asarray(seen).mean(-1))


def last_accuracy(seen: Float[np.ndarray, "*runs tasks"]) -> np.ndarray:
    """A_B, the accuracy on all classes after the last task."""
    return np.asarray(np.asarray(seen)[..., -1])


def forgetting(by_task: Matrix) -> np.ndarray:
    """F = 1 / (B - 1) sum_{j < B} (max_{j <= l < B} a_{l, j} - a_{B, j}), right for tasks of any size.

    Source: Chaudhry et al. 2018, Riemannian walk, section 3; Zhou et al. 2024, supplement.
    """
    a = square(by_task)
    if a.shape[-1] == 1:
        return np.zeros(a.shape[:-2])
    lost = [a[..., j:-1, j].max(-1) - a[..., -1, j] for j in range(a.shape[-1] - 1)]
    return np.asarray(np.mean(lost, axis=0))


def intransigence(by_task: Matrix, joint: Float[np.ndarray, "..."]) -> np.ndarray:
    """I = 1 / (B - 1) sum_{j >= 2} (a*_j - a_{j, j}): how far a task is learnt worse than by joint training.

    Args:
      by_task: a of the method.
      joint: a*_j of joint training on the tasks up to j, [..., tasks], or its ``by_task``, of which the diagonal
        counts.

    Source: as of ``forgetting``.
    """
    a = square(by_task)
    reference = np.asarray(joint)
    if reference.ndim >= 2 and reference.shape[-2:] == a.shape[-2:]:
        reference = np.diagonal(reference, axis1=-2, axis2=-1)
    if reference.shape[-1] != a.shape[-1]:
        raise check.UsageError(f"joint has {reference.shape[-1]} tasks, the method {a.shape[-1]}")
    if a.shape[-1] == 1:
        return np.zeros(a.shape[:-2])
    return np.asarray((reference - np.diagonal(a, axis1=-2, axis2=-1))[..., 1:].mean(-1))


def square(by_task: Matrix) -> np.ndarray:
    """The matrix, checked."""
    a = np.asarray(by_task)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise check.UsageError(f"by_task must be [..., tasks, tasks], got {list(a.shape)}")
    return a
