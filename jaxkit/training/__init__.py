"""The sharded trainer: ``fit``, meshes and rules, checkpoints, optimizers, what a run measured."""

from jaxkit.training.compiled import release_programs
from jaxkit.training.distributed import initialize
from jaxkit.training.evaluate import Evaluation, predict_all
from jaxkit.training.fit import Event, Fit, NonFiniteError, fit
from jaxkit.training.history import History
from jaxkit.training.keys import seed_keys
from jaxkit.training.moment import Best
from jaxkit.training.optimizers import OPTIMIZERS, cosine, optimizer
from jaxkit.training.sharding import DEFAULT, describe_sharding, fsdp, make_mesh, replicate, state_shardings

__all__ = [
    "DEFAULT",
    "OPTIMIZERS",
    "Best",
    "Evaluation",
    "Event",
    "Fit",
    "History",
    "NonFiniteError",
    "cosine",
    "describe_sharding",
    "fit",
    "fsdp",
    "initialize",
    "make_mesh",
    "optimizer",
    "predict_all",
    "release_programs",
    "replicate",
    "seed_keys",
    "state_shardings",
]
