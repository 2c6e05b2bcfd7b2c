"""Where a run stands, and how that is written to a checkpoint and read back."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import check
from jaxkit.learner import State
from jaxkit.training import history
from jaxkit.training.checkpoints import Checkpoint, Checkpoints, signature
from jaxkit.training.history import History
from jaxkit.training.keys import is_key
from jaxkit.training.layout import Layout
from jaxkit.training.program import Carry

PyTree = Any


class Best(NamedTuple):
    """The best evaluation of the last stage: its value ([seeds] with seeds, each with its own best), the steps done
    then, the state."""

    value: np.ndarray
    step: np.ndarray
    state: State


class Moment(NamedTuple):
    """Where a run stands: everything that a checkpoint must hold.

    Attributes:
      stage: number of the stage.
      step: steps of this stage done.
      done: steps of the plan done.
      begun: whether the stage's begin has run.
      state: inside the stage if it has begun, else what its begin will get (None before the first).
      source_state: the source's; () before the stage's begin.
      history: measured so far.
      best: best evaluation so far.
      best_stage: the stage that ``best`` is of.
    """

    stage: int
    step: int
    done: int
    begun: bool
    state: State | None
    source_state: PyTree
    history: History
    best: Best | None
    best_stage: int


def beginning(state: State | None = None) -> Moment:
    """Nothing done, from a state (a copy of it: the first dispatch takes its arrays) or from none."""
    return Moment(0, 0, 0, False, None if state is None else _copy(state), (), history.empty(), None, 0)


def _copy(state: State) -> State:
    """A state that survives the donation of the next dispatch."""

    def one(leaf: jax.Array) -> jax.Array:
        if not is_key(leaf):
            return jnp.copy(leaf)
        return jax.random.wrap_key_data(jnp.copy(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))

    return jax.tree.map(one, state)


@jax.jit
def _pick(better: jax.Array, new: State, old: State) -> State:
    """Seed by seed, the new state where it is better."""
    mask = lambda leaf: better.reshape(better.shape + (1,) * (leaf.ndim - better.ndim))
    return jax.tree.map(lambda new, old: jnp.where(mask(new), new, old), new, old)


def keep_best(moment: Moment, values: np.ndarray, higher: bool) -> Moment:
    """The moment with the better of its best state and its present one, seed by seed.

    A new stage starts anew, and so does a state of other shapes after a stage's end. NaN is worse than any number.
    """
    state, best = moment.state, moment.best
    values, done = np.asarray(values, np.float32), np.full(values.shape, moment.done, np.int32)
    better = np.ones(values.shape, bool)
    if best is not None and moment.best_stage == moment.stage and signature(best.state) == signature(state):
        better = values > best.value if higher else values < best.value
        better |= np.isnan(best.value) & ~np.isnan(values)
    if better.all() or best is None:
        return moment._replace(best=Best(values, done, _copy(state)), best_stage=moment.stage)
    if not better.any():
        return moment
    merged = _pick(better, state, best.state)
    return moment._replace(best=Best(np.where(better, values, best.value), np.where(better, done, best.step), merged))


def fingerprint(layout: Layout, counts: list[int]) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    batches = [signature(batch) for batch in layout.batches]
    return {
        "tag": layout.tag,
        "batches": batches,
        "stages": [[stage.name, count] for stage, count in zip(layout.plan, counts, strict=True)],
        "seeds": layout.seeds,
        "key": np.asarray(jax.random.key_data(layout.key)).tolist(),
        "rows": int(jax.tree.leaves(layout.data["x"])[0].shape[int(layout.per_seed)]),
    }


def machine(layout: Layout) -> dict[str, Any]:
    """What must be the same for its bits to be the same."""
    devices = 1 if layout.mesh is None else layout.mesh.size
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "devices": devices}


def save(checkpoints: Checkpoints, layout: Layout, counts: list[int], moment: Moment) -> None:
    """Begin to write a moment; its number is the steps of the plan done."""
    best = moment.best
    record = {
        "stage": moment.stage,
        "step": moment.step,
        "begun": moment.begun,
        "best_value": None if best is None else best.value.tolist(),
        "best_step": None if best is None else best.step.tolist(),
        "best_stage": moment.best_stage,
        "run": fingerprint(layout, counts),
        "machine": machine(layout),
    }
    trees = {"state": moment.state, "source": moment.source_state}
    if best is not None:
        trees["best"] = best.state
    checkpoints.save(moment.done, Checkpoint(record, trees, history.to_arrays(moment.history)))


def restore(checkpoints: Checkpoints, layout: Layout, counts: list[int], step: int) -> tuple[Moment, list[str]]:
    """The moment saved at ``step`` with every leaf where the layout wants it, and what changed about the machine.

    Raises:
      UsageError: the checkpoint is of another run.
    """
    record = checkpoints.record(step)
    for name, value in fingerprint(layout, counts).items():
        if record["run"][name] != value:
            raise check.UsageError(
                f"the checkpoint in {checkpoints.folder} is of another run: "
                f"its {name} is {record['run'][name]}, this run's is {value}"
            )
    changed = [
        f"{name} {record['machine'][name]} -> {now}"
        for name, now in machine(layout).items()
        if record["machine"][name] != now
    ]
    stage, begun, has_best = record["stage"], record["begun"], record["best_value"] is not None
    inside = layout.templates(stage) if begun else Carry(layout.end_template(stage - 1), ())
    templates = {"state": inside.state, "source": inside.source_state}
    if has_best:
        kinds = layout.templates(record["best_stage"]).state, layout.end_template(record["best_stage"])
        matching = [kind for kind in kinds if signature(kind) == record["leaves"]["best"]]
        templates["best"] = (matching or kinds)[0]
    saved = checkpoints.restore(step, templates)
    best = None
    if has_best:
        best = Best(
            np.asarray(record["best_value"], np.float32), np.asarray(record["best_step"], np.int32), saved.trees["best"]
        )
    state, source_state = saved.trees["state"], saved.trees["source"]
    measured = history.from_arrays(saved.history)
    return Moment(
        stage, record["step"], step, begun, state, source_state, measured, best, record["best_stage"]
    ), changed
