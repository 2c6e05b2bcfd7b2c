"""Several processes, one run: ``jax.distributed`` underneath, agreement on the host side here."""

from __future__ import annotations

import os

import jax
import numpy as np
from jax.experimental import multihost_utils


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the processes of a run; call it first of all, before JAX looks at its devices.

    Without arguments a cluster that JAX knows (Slurm, Cloud TPU, Open MPI) tells them, or the environment variables
    ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. CPU processes talk over gloo.
    """
    environment = {
        "coordinator": "JAX_COORDINATOR_ADDRESS",
        "processes": "JAX_NUM_PROCESSES",
        "process": "JAX_PROCESS_ID",
    }
    told = {name: os.environ.get(variable) for name, variable in environment.items()}
    coordinator = coordinator or told["coordinator"]
    processes = processes if processes is not None else (int(told["processes"]) if told["processes"] else None)
    process = process if process is not None else (int(told["process"]) if told["process"] else None)
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def agree(steps: int, signal: int | None, due: bool) -> tuple[int, int | None, bool]:
    """One answer for all processes: the first one's number of steps, any one's signal, any one's due checkpoint."""
    if jax.process_count() == 1:
        return steps, signal, due
    said = np.asarray(multihost_utils.process_allgather(np.asarray([steps, signal or 0, int(due)], np.int32)))
    said = said.reshape(jax.process_count(), 3)
    return int(said[0, 0]), int(said[:, 1].max()) or None, bool(said[:, 2].any())
