"""What a caller of ``fit`` can get wrong, said in one line before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkit import check
from jaxkit.data.checks import rows
from jaxkit.data.sources import epochs
from jaxkit.learner import Data, HostSource, Learner, Plan, Source, Stage, State, path_name
from jaxkit.training.evaluate import Evaluation

BATCH_SIZE = 128


def as_plan(learner_or_plan: Any, source: Any, data: Data) -> Plan:
    """The plan that is meant: a Learner is a plan of one stage."""
    if isinstance(learner_or_plan, Learner):
        source = epochs(min(BATCH_SIZE, rows(data))) if source is None else source
        return (Stage("train", learner_or_plan, source),)
    plan = tuple(learner_or_plan)
    if not plan or not all(isinstance(stage, Stage) for stage in plan):
        raise check.UsageError(
            f"fit needs a Learner or a non-empty tuple of Stages, got {type(learner_or_plan).__name__}"
        )
    if source is not None:
        raise check.UsageError("each Stage of a plan has its own source; source=... is for a single Learner")
    return plan


def check_arguments(
    plan: Plan,
    each: Sequence[Data],
    steps: int,
    seeds: int | None,
    mesh: Any,
    evaluation: Any,
    callbacks: Any,
    every_s: float,
    pace: int | None,
) -> None:
    """Everything about a call of ``fit`` that can be seen before anything is compiled."""
    if not all(callable(callback) for callback in (callbacks if isinstance(callbacks, Sequence) else [None])):
        raise check.UsageError(f"callbacks must be a sequence of functions of an Event, got {callbacks!r}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise check.UsageError(f"mesh must come from training.make_mesh(data=..., fsdp=...), got {mesh!r}")
    check.count("steps", steps)
    check.number("checkpoint_every_s", every_s, 0.0)
    if evaluation is not None and not isinstance(evaluation, Evaluation):
        raise check.UsageError(f"eval must be a training.Evaluation(data, measure, ...), got {_kind(evaluation)}")
    if seeds is not None:
        check.count("seeds", seeds)
    if pace is not None:
        check.count("steps_per_dispatch", pace)
    if evaluation is not None:
        check_rows(evaluation.data)
        if evaluation.every is not None:
            check.count("eval.every", evaluation.every)
    for stage in plan:
        if not isinstance(stage.source, (Source, HostSource)):
            raise check.UsageError(
                f"the source of stage {stage.name!r} must be a Source such as jaxkit.data.epochs(128), "
                f"got {_kind(stage.source)}"
            )
        if isinstance(stage.source, Source) and stage.source.validate is not None:
            for data in each:
                stage.source.validate(data)
        if seeds is not None and isinstance(stage.source, HostSource):
            raise check.UsageError(
                f"stage {stage.name!r}: seeds={seeds} needs a source inside the step, not a HostSource"
            )


def by_seed(data: Data, seeds: int | None, evaluation: Evaluation | None) -> list[Data]:
    """The data of each seed.

    Raises:
      UsageError: there are no seeds, or a leaf of the data or of the evaluation's data has not one entry for each.
    """
    if seeds is None:
        raise check.UsageError("per_seed=True needs seeds=..., as many as the data's leading axis is long")
    check.count("seeds", seeds)
    for kind, tree in (("data", data), ("eval.data", None if evaluation is None else evaluation.data)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if np.shape(leaf)[:1] != (seeds,):
                raise check.UsageError(
                    f"per_seed=True: {kind}{jax.tree_util.keystr(path)} must have a leading axis of {seeds} seeds, "
                    f"got the shape {list(np.shape(leaf))}"
                )
    return [jax.tree.map(lambda leaf: leaf[number], data) for number in range(seeds)]


def check_state(state: State | None, seeds: int | None) -> State | None:
    """The state that a run begins with, each of its leaves an array, with an entry for each seed where there are
    seeds."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        shape = getattr(leaf, "shape", None)
        if shape is None:
            raise check.UsageError(f"state/{path_name(path)} must be an array, got {type(leaf).__name__}")
        if seeds is not None and shape[:1] != (seeds,):
            raise check.UsageError(
                f"with seeds={seeds} each leaf of state has a leading axis of {seeds}; state/{path_name(path)} has "
                f"the shape {list(shape)}"
            )
    return state


def check_rows(data: Data) -> None:
    """What the shapes of data tell; a pytree under a name (a graph) may have leaves of several lengths."""
    if not isinstance(data, dict) or "x" not in data:
        raise check.UsageError(f"data must be a dict of arrays with 'x' (and 'y', ...), got {_kind(data)}")
    columns = {}
    for name, values in data.items():
        for leaf in jax.tree.leaves(values):
            if getattr(leaf, "dtype", np.dtype(float)).kind in "OUS":
                raise check.UsageError(f"data[{name!r}] must be numeric, got dtype {leaf.dtype}")
            if getattr(leaf, "ndim", 0) < 1:
                raise check.UsageError(
                    f"data[{name!r}] must be arrays whose first axis is rows, got {type(leaf).__name__}"
                )
            if leaf is values:
                columns[name] = values
    if columns and rows(columns) == 0:
        raise check.UsageError("the data has no rows")


def _kind(value: object) -> str:
    return f"a dict with {sorted(value)}" if isinstance(value, dict) else type(value).__name__
