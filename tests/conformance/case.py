"""One method on its part's toy problem, for the conformance test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxkit.learner import Data, HostSource, Learner, Plan, Source


class Case(NamedTuple):
    """A method on its part's toy problem.

    Attributes:
      name: ``part.method`` as ``jaxkit.methods`` knows it.
      build: ``(**settings) -> Learner | Plan``; hands settings on to the method, those in ``swept`` as traced arrays.
      data: ``() -> Data``.
      source: for a Learner, the source or ``learner -> source``; None takes ``epochs``, ``by_environment`` or
        ``full_batch`` as the record's ``layout`` says, with ``batch_size`` rows. A plan brings its own sources.
      batch_size: see ``source``; eight devices divide it.
      steps: of training, in all stages together.
      measure: what must fall, from the metrics of all steps of a stage ``[steps]``; the loss unless the method says.
      fall: by which share of its first value it must fall; one number for each stage of a plan.
      swept: for each setting that the record calls traced, two values that lead to different states.
      family: the first case of a family goes through the second tier in ``make test``; others in ``make test-all``.
      exempt: check -> reason, for what the method by its nature cannot promise.
    """

    name: str
    build: Callable[..., Learner | Plan]
    data: Callable[[], Data]
    source: Source | HostSource | Callable[[Learner], Source] | None = None
    batch_size: int = 32
    steps: int = 60
    measure: Callable[[dict[str, np.ndarray]], np.ndarray] = lambda metrics: metrics["loss"]
    fall: tuple[float, ...] = (0.3,)
    swept: dict[str, tuple[float, float]] = {}
    family: str = ""
    exempt: dict[str, str] = {}
