"""A backbone in two parts, the one that MEMO shares and the one that it adds for each task, and their sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxkit import check
from jaxkit.learner import Network, PyTree
from jaxkit.networks import part_of


class Parts(NamedTuple):
    """A backbone in two parts, measured in parameters or in operations.

    Attributes:
      shared: its first stages, which MEMO has once.
      special: its other stages, which MEMO has for each task.
    """

    shared: float
    special: float

    @property
    def whole(self) -> float:
        """Both."""
        return self.shared + self.special

    def times(self, shared: float, special: float) -> float:
        """So many of the one and so many of the other."""
        return shared * self.shared + special * self.special


def cut(
    network: Network, x: PyTree, shared_stages: int | None, measure: Callable[[Network, PyTree, PyTree], float]
) -> Parts:
    """``measure(part, (params, variables), x)`` of both parts of a network's backbone, shapes in place of arrays.

    Args:
      network: as for ``part_of``.
      x: rows of data, or their shapes.
      shared_stages: the stages of the shared part; None: all but the last, as MEMO has it.
      measure: of a part.

    Raises:
      UsageError: the network has not so many stages.
    """
    shared_stages = network.stages - 1 if shared_stages is None else check.count("shared_stages", shared_stages, 0)
    if shared_stages >= network.stages:
        raise check.UsageError(
            f"a network of {network.stages} stages shares 0 to {network.stages - 1} of them, got {shared_stages}"
        )
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
    found: list[float] = [0, 0]
    for number, stages in enumerate(((0, shared_stages), (shared_stages, None))):
        if stages[1] == 0:
            continue
        part = part_of(network, *stages)
        state = jax.eval_shape(part.init, jax.random.key(0), x)
        found[number] = measure(part, state, x)
        x = jax.eval_shape(lambda state, x, part=part: part.apply(*state, x)[0]["features"], state, x)
    return Parts(*found)


def parameters_of(network: Network, x: PyTree, shared_stages: int | None = None) -> Parts:
    """The parameters of a network's backbone; nothing is computed. Arguments and errors as of ``cut``."""
    size = lambda part, state, x: sum(leaf.size for leaf in jax.tree.leaves(state[0]))
    return cut(network, x, shared_stages, size)
