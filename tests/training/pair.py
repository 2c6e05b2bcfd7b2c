"""One of two processes that train one model together; alone when no coordinator is named. It stops and resumes on
the way."""

import os
import sys
from pathlib import Path

import jax
import numpy as np

from jaxkit import training
from jaxkit.data import sources
from tests.training import toy


class Interrupt(Exception):
    pass


def interrupt(event: training.Event) -> None:
    if event.step >= 10:
        raise Interrupt


def main(folder: Path) -> None:
    together = "JAX_COORDINATOR_ADDRESS" in os.environ
    if together:
        training.initialize()
        assert jax.process_count() == 2 and len(jax.devices()) == 2
    mesh = training.make_mesh(data=1, fsdp=2) if together else None
    settings = {
        "key": 7, "steps": 20, "source": sources.epochs(32), "mesh": mesh, "progress": False,
        "rules": ((".*", training.fsdp(0)),),
        "eval": training.Evaluation(toy.make_data(), toy.measure, every=5, best="accuracy"),
    }  # fmt: skip
    if together:
        settings["workdir"] = folder / "run"
        try:
            training.fit(
                toy.classifier(),
                toy.make_data(),
                checkpoint_every_s=0.0,
                steps_per_dispatch=5,
                callbacks=[interrupt],
                **settings,
            )
        except Interrupt:
            settings["resume"] = True
    result = training.fit(toy.classifier(), toy.make_data(), **settings)
    params = result.state.params
    if together:
        params = jax.jit(
            lambda tree: tree, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        )(params)
    name = str(jax.process_index()) if together else "alone"
    np.savez(folder / f"{name}.npz", result.history.evals["accuracy"], *map(np.asarray, jax.tree.leaves(params)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
