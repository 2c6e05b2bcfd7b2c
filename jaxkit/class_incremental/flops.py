"""How many operations training takes: the axis beside memory.

An estimate in multiples of a backbone's forward pass: 1 for a network that only answers (a teacher, a frozen backbone),
2 where a gradient also passes through it to what lies below, 3 where it is trained. Heads, losses, optimizers, and what
a task's begin and end do (herding, importances) are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkit import check
from jaxkit.class_incremental.parts import Parts, cut
from jaxkit.learner import Data, Network, Plan, PyTree, Source

ANSWERS, PASSES, TRAINS = 1.0, 2.0, 3.0
OWN_GRADIENTS = ("gem", "agem")
OF_PHASE = {
    "boost": TRAINS + ANSWERS,  # FOSTER: the new network beside the old one
    "compress": TRAINS + 2 * ANSWERS,  # FOSTER: a student of both
    "correct": ANSWERS,  # BiC: two numbers behind the logits
    "translate": ANSWERS,  # FeTrIL: the head alone
}
OF_METHOD = {
    "l2p": (TRAINS + ANSWERS, PASSES + ANSWERS),  # the query, and the backbone trained or with prompts before it
    "derpp": (TRAINS, 3 * TRAINS),  # two exemplars with each row
    "aanets": (TRAINS, 2 * (TRAINS + ANSWERS + PASSES)),  # two branches: trained, as teachers, and up to alpha
}
"""Counts of their own: of a phase, and of a method in its first task and in later ones."""


def forward_flops(network: Network, x: PyTree, shared_stages: int | None = None) -> Parts:
    """Floating-point operations of the backbone for one row, two for a multiply and add, as XLA counts them in the
    program that it is given. Arguments and errors as of ``parts.cut``."""

    def count(part: Network, state: PyTree, x: PyTree) -> float:
        answer = lambda state, x: part.apply(*state, x)[0]["features"]
        counted = jax.jit(answer).lower(state, x).cost_analysis()
        if not counted or "flops" not in counted:
            raise check.UsageError(f"XLA counts no operations on {jax.default_backend()}; count them on a CPU")
        return float(counted["flops"])

    return cut(network, x, shared_stages, count)


def passes(method: str, task: int, phase: str = "", teacher: bool = False) -> tuple[float, float]:
    """Forward passes' worth of operations for a row in training, of the shared stages and of the others.

    Args:
      method: DER answers with every earlier backbone, and MEMO passes through them to the shared stages; those of
        ``OF_METHOD`` have counts of their own; any other trains one network.
      task: from 0.
      phase: by its name, those of ``OF_PHASE`` and DyTox's last one differ from the others.
      teacher: whether the model before the task answers too.
    """
    later = task > 0
    if phase in OF_PHASE or (method, phase) == ("dytox", "finetune"):
        count = OF_PHASE.get(phase, ANSWERS)
        return count, count
    count = OF_METHOD[method][later] if method in OF_METHOD else TRAINS + ANSWERS * (teacher and later)
    more = {"der": (task * ANSWERS, task * ANSWERS), "memo": (0.0, task * PASSES)}.get(method, (0.0, 0.0))
    return count + more[0], count + more[1]


class Flops(NamedTuple):
    """Of a run: ``by_stage`` of its plan, and their sum."""

    by_stage: tuple[float, ...]

    @property
    def total(self) -> float:
        """Of all stages."""
        return sum(self.by_stage)


def rows_of_batch(source: Source, data: Data) -> int:
    """The rows of a source's batches for data of these shapes."""
    drawn = lambda data, key: source.example(data, source.init(data, key), key)
    return jax.eval_shape(drawn, data, jax.random.key(0))["y"].shape[0]


def training_flops(
    method: str,
    plan: Plan,
    network: Network,
    x: PyTree,
    epochs: float,
    *,
    shared_stages: int | None = None,
    memory_rows: float = 0.0,
) -> Flops:
    """sum over stages of rows seen times ``passes`` times the operations of a forward pass.

    A stage of a fixed number of steps is a closed form: an answer to each row of its batches.

    Args:
      method: whose plan it is.
      plan: from ``METHODS[method].make(network, ...)``.
      network: the one that the plan was made for.
      x: rows of data, or their shapes.
      epochs: as given to ``steps_of``.
      shared_stages: of MEMO.
      memory_rows: exemplars whose gradient a step takes besides, for each row of the batch (GEM, A-GEM: from the
        second task on; 256 / batch size for A-GEM).

    Raises:
      UsageError: numbers out of range, or GEM or A-GEM without ``memory_rows``.
    """
    check.positive("epochs", epochs), check.number("memory_rows", memory_rows, 0.0)
    if method in OWN_GRADIENTS and not memory_rows:
        raise check.UsageError(
            f"{method} takes gradients on exemplars at every step; pass memory_rows, their number over the batch size"
        )
    forward = forward_flops(network, x, shared_stages)
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
    batch = {"x": row, "y": jax.ShapeDtypeStruct((1,), jnp.int32)}
    teacher = bool(jax.tree.leaves(jax.eval_shape(plan[0].learner.init, jax.random.key(0), batch).extra.teacher))
    found = []
    for stage in plan:
        number, _, phase = stage.name.removeprefix("task ").partition(": ")
        task = int(number) - 1
        if stage.steps is not None:
            found.append(stage.steps * rows_of_batch(stage.source, batch) * ANSWERS * forward.whole)
            continue
        own = forward.times(*passes(method, task, phase, teacher))
        extra = memory_rows * TRAINS * forward.whole if task else 0.0
        found.append(epochs * stage.share * (own + extra))
    return Flops(tuple(found))
