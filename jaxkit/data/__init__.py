"""Data: which examples there are (cards, own files) and which of them a step sees (sources, transforms, shifts)."""

from jaxkit.data.cards import CARDS
from jaxkit.data.checks import check_data, rows
from jaxkit.data.loading import find_card, get, load
from jaxkit.data.own import from_arrays, from_csv, from_file, from_folder, from_npz
from jaxkit.data.own_graph import from_edges
from jaxkit.data.records import Card
from jaxkit.data.sources import (
    by_environment,
    class_balanced,
    epochs,
    example_of,
    for_layout,
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
    "CARDS",
    "Card",
    "by_environment",
    "check_data",
    "class_balanced",
    "epochs",
    "example_of",
    "find_card",
    "for_layout",
    "from_arrays",
    "from_csv",
    "from_edges",
    "from_file",
    "from_folder",
    "from_npz",
    "full_batch",
    "get",
    "host",
    "load",
    "pair",
    "permuted",
    "rollouts",
    "rows",
    "take",
    "views",
    "weighted",
]
