"""How many exemplars each method gets: a number, or what makes it as large as another; in the study's settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkit import check, networks
from jaxkit.class_incremental import budget
from jaxkit.class_incremental.parts import Parts, parameters_of
from jaxkit.learner import Network

POINTS = 5
WIDTHS = {"mlp": 64, "convnet": 16}
"""Of the networks that come in other sizes too."""
ALIGNED = ("der", "memo")
STUDY_METHODS = {"balanced_replay": "replay"}
"""Methods of the study alone, and whose backbones they keep."""


class Share(NamedTuple):
    """What a setting gives each method.

    Attributes:
      label: of the setting.
      give: method -> (exemplars, width of the network or None).
      bytes: all that the exemplars and backbones may take, or None.
    """

    label: str
    give: Callable[[str], tuple[int, int | None]]
    bytes: int | None = None


def network_of(kind: str, classes: int, width: int | None = None) -> Network:
    """The network of a setting, or a narrower one."""
    if kind == "mlp":
        size = width or WIDTHS["mlp"]
        return networks.mlp(classes, hidden=(size, size))
    if kind == "convnet":
        return networks.convnet(classes, width=width or WIDTHS["convnet"])
    if kind.startswith("vit"):  # and the side of a patch in pixels
        return networks.vit(classes, patch=int(kind.removeprefix("vit")), width=64, depth=4, heads=4)
    return networks.mlp(classes, hidden=()) if kind == "linear" else networks.resnet32(classes)


@functools.cache
def parts_of(kind: str, shape: tuple[int, ...], width: int | None = None) -> Parts:
    """Parameters of the backbone for rows of this shape; a linear model has none."""
    if kind == "linear":
        return Parts(0, 0)
    return parameters_of(network_of(kind, 2, width), jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def backbones(method: str, tasks: int) -> tuple[int, int]:
    """``budget.backbones``, for the study's own methods too."""
    return budget.backbones(STUDY_METHODS.get(method, method), tasks)


def shares_of(
    asked: str, memory: tuple[int, ...], kind: str, shape: tuple[int, ...], storage: str, tasks: int
) -> list[Share]:
    """The settings that ``--budget`` means.

    ``fixed``: the same exemplars for all, once for each of ``memory``. ``aligned:der``: as many as make a method as
    large as DER with the first of ``memory``. ``curve``: at equal distances from the size of a single network to that
    of DER; a method that grows takes the widest network at each with which DER still has so many exemplars.

    Raises:
      UsageError: an unknown budget, or a network that comes in one size only.
    """
    word, _, reference = asked.partition(":")
    if check.fold(word) == "aligned":
        word, reference = "aligned", check.choose("--budget aligned:", reference or "der", ALIGNED)
    else:
        word = check.choose("--budget", asked, ("fixed", "aligned:der", "curve"))
    if word == "fixed":
        return [Share(f"memory {size}", lambda method, size=size: (size, None)) for size in memory]
    if kind == "linear":
        raise check.UsageError("--budget: a linear model keeps no backbone whose bytes exemplars could be traded for")
    base, image, full = memory[0], budget.exemplar_bytes(shape, storage), parts_of(kind, shape)
    if word == "aligned":
        total = budget.kept_bytes(reference, tasks, full, base, image)
        return [Share(f"as large as {reference}", fitting(total, tasks, full, image, None), total)]
    if kind not in WIDTHS:
        raise check.UsageError(
            f"--budget curve narrows the network; {kind} has one width, {' and '.join(WIDTHS)} have more"
        )
    made = []
    for total in budget.curve_bytes(tasks, full, image, base=base, points=POINTS):
        width = widest(total, kind, shape, image, tasks, base)
        give = fitting(total, tasks, full, image, (width, parts_of(kind, shape, width)))
        made.append(Share(f"{total / budget.MEGABYTE:.3g} MB", give, total))
    return made


def widest(total: int, kind: str, shape: tuple[int, ...], image: int, tasks: int, base: int) -> int:
    """The widest network with which DER has ``base`` exemplars within ``total`` bytes."""
    size = lambda width: budget.kept_bytes("der", tasks, parts_of(kind, shape, width), base, image)
    fit = [width for width in range(1, WIDTHS[kind] + 1) if size(width) <= total]
    if not fit:
        raise check.UsageError(f"--budget curve: DER with {base} exemplars does not fit at any width; lower --memory")
    return fit[-1]


def fitting(total: int, tasks: int, full: Parts, image: int, narrow: tuple[int, Parts] | None) -> Callable:
    """method -> (exemplars within ``total`` bytes, width); methods that grow take the network ``narrow``."""

    def give(method: str) -> tuple[int, int | None]:
        grows = backbones(method, tasks) != (1, 1)
        width, parts = narrow if grows and narrow is not None else (None, full)
        own = STUDY_METHODS.get(method, method)
        return budget.exemplars_within(total, own, tasks, parts, image), width

    return give
