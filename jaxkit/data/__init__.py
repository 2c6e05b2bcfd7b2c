"""Data: which examples there are (cards, own files) and which of them a step sees (sources, transforms, shifts)."""

from jaxkit.data.checks import check_data, rows
from jaxkit.data.sources import (
    by_environment,
    class_balanced,
    epochs,
    example_of,
    full_batch,
    host,
    pair,
    permuted,
    take,
    views,
    weighted,
)
from jaxkit.data.trajectories import rollouts

__all__ = [
    "by_environment",
    "check_data",
    "class_balanced",
    "epochs",
    "example_of",
    "full_batch",
    "host",
    "pair",
    "permuted",
    "rollouts",
    "rows",
    "take",
    "views",
    "weighted",
]
