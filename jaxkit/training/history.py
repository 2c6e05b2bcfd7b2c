"""What a run measured: the metrics of every step, and the evaluations between dispatches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class History(NamedTuple):
    """The measurements of a run; with seeds each series is [seeds, ...].

    Attributes:
      metrics: name -> float32 [steps]; NaN where a stage has no such metric.
      stage: int32 [steps], the number of the stage of each step.
      eval_steps: int32 [evaluations], steps of the whole plan done before each.
      evals: name -> float32 [evaluations].
    """

    metrics: dict[str, np.ndarray]
    stage: np.ndarray
    eval_steps: np.ndarray
    evals: dict[str, np.ndarray]


def empty() -> History:
    """A history of nothing."""
    return History({}, np.zeros(0, np.int32), np.zeros(0, np.int32), {})


def _extend(series: dict[str, np.ndarray], new: dict[str, np.ndarray], before: int) -> dict[str, np.ndarray]:
    """Append along the last axis; a name that one side lacks is NaN there."""
    added = next(iter(new.values())).shape[-1]
    lead = next(iter(new.values())).shape[:-1]
    absent = lambda length: np.full((*lead, length), np.nan, np.float32)
    names = dict.fromkeys([*series, *new])
    return {
        name: np.concatenate([series.get(name, absent(before)), new.get(name, absent(added))], axis=-1)
        for name in names
    }


def add_steps(history: History, stage: int, metrics: dict[str, np.ndarray]) -> History:
    """The history with the metrics of some steps of a stage, each [new] or [seeds, new]."""
    added = next(iter(metrics.values())).shape[-1]
    stages = np.concatenate([history.stage, np.full(added, stage, np.int32)])
    return history._replace(metrics=_extend(history.metrics, metrics, len(history.stage)), stage=stages)


def add_evaluation(history: History, step: int, values: dict[str, np.ndarray]) -> History:
    """The history with one evaluation, each value a scalar or [seeds]."""
    columns = {name: np.asarray(value, np.float32)[..., None] for name, value in values.items()}
    steps = np.append(history.eval_steps, np.int32(step)).astype(np.int32)
    return history._replace(evals=_extend(history.evals, columns, len(history.eval_steps)), eval_steps=steps)


def to_arrays(history: History) -> dict[str, np.ndarray]:
    """A flat dict of arrays, for a checkpoint."""
    named = {"stage": history.stage, "eval_steps": history.eval_steps}
    named |= {f"metrics.{name}": values for name, values in history.metrics.items()}
    return named | {f"evals.{name}": values for name, values in history.evals.items()}


def from_arrays(arrays: dict[str, np.ndarray]) -> History:
    """The inverse of ``to_arrays``."""
    take = lambda head: {name.removeprefix(head): values for name, values in arrays.items() if name.startswith(head)}
    zero = np.zeros(0, np.int32)
    return History(take("metrics."), arrays.get("stage", zero), arrays.get("eval_steps", zero), take("evals."))
