"""Where arrays live: a mesh with axes data, fsdp and model, and an ordered list of rules (pattern, tactic).

A rule set covers parameters and optimizer moments at once, because a moment's path ends with its parameter's. The
first rule
whose regular expression is found in the leaf's path (``params/backbone/Dense_0/kernel``) decides; a leaf that matches
none is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import check
from jaxkit.learner import path_name
from jaxkit.training.keys import is_key

PyTree = Any
AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")

Tactic = Callable[[Any, Mesh, int], P] | P
Rules = Sequence[tuple[str, Tactic]]


def make_mesh(*, data: int | None = None, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the axes ``data`` (batches), ``fsdp`` (batches and states) and ``model`` (whatever explicit rules
    say).

    Args:
      data: its size; None takes what the other two leave of the devices.
      fsdp: over how many devices each large array of State is split.
      model: for rules with an explicit PartitionSpec.
      devices: default all of ``jax.devices()``; fewer may be used than there are only if ``data`` is given.

    Raises:
      UsageError: the sizes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    check.count("fsdp", fsdp), check.count("model", model)
    if data is None:
        data, rest = divmod(len(devices), fsdp * model)
        if rest or data == 0:
            raise check.UsageError(
                f"a mesh with fsdp={fsdp} and model={model} needs a multiple of {fsdp * model} devices, "
                f"there are {len(devices)}"
            )
    check.count("data", data)
    needed = data * fsdp * model
    if needed > len(devices):
        raise check.UsageError(
            f"a mesh of data={data} x fsdp={fsdp} x model={model} needs {needed} devices, "
            f"there are {len(devices)}; on a CPU XLA_FLAGS=--xla_force_host_platform_device_count={needed} "
            "simulates them"
        )
    # Under Explicit axes, the default of jax.make_mesh, a gather of a sharded array raises.
    return jax.make_mesh((data, fsdp, model), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:needed])


def replicate(leaf: Any, mesh: Mesh, lead: int = 0) -> P:
    """The whole array on every device."""
    return P()


def fsdp(min_mb: float = 1.0) -> Tactic:
    """Split the largest dimension that the fsdp axis divides; arrays below ``min_mb`` MiB are replicated."""
    check.number("min_mb", min_mb, 0.0)

    def tactic(leaf: Any, mesh: Mesh, lead: int = 0) -> P:
        parts = mesh.shape["fsdp"]
        shape = leaf.shape[lead:]
        small = np.prod(shape, dtype=float) * leaf.dtype.itemsize < min_mb * 2**20
        fitting = [axis for axis in range(len(shape)) if shape[axis] >= parts and shape[axis] % parts == 0]
        if parts == 1 or small or not fitting:
            return P()
        axis = max(fitting, key=lambda axis: shape[axis])
        return P(*[None] * (lead + axis), "fsdp")

    return tactic


DEFAULT: Rules = ((".*", fsdp()),)


def _explicit(spec: P, leaf: Any, mesh: Mesh, lead: int, name: str) -> P:
    """Check that a PartitionSpec fits a leaf; the seed axis in front stays whole."""
    if len(spec) > len(leaf.shape) - lead:
        raise check.UsageError(f"sharding rule {spec} has more axes than {name} of shape {leaf.shape[lead:]}")
    for size, axes in zip(leaf.shape[lead:], spec, strict=False):
        names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        unknown = [axis for axis in names if axis not in mesh.shape]
        if unknown:
            raise check.UsageError(f"sharding rule {spec} names {unknown[0]!r}; the mesh has {tuple(mesh.shape)}")
        parts = int(np.prod([mesh.shape[axis] for axis in names], dtype=int))
        if size % parts:
            raise check.UsageError(
                f"sharding rule {spec}: {name} of shape {leaf.shape[lead:]} does not divide by {parts}"
            )
    return P(*[None] * lead, *spec)


def state_shardings(shapes: PyTree, mesh: Mesh, rules: Rules = DEFAULT, *, lead: int = 0) -> PyTree:
    """A NamedSharding for each leaf of ``shapes`` (a tree of ShapeDtypeStruct); ``lead`` axes in front (seeds) are
    never split."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, tactic in rules:
            if re.search(pattern, name):
                if is_key(leaf):
                    return NamedSharding(mesh, P())
                if isinstance(tactic, P):
                    return NamedSharding(mesh, _explicit(tactic, leaf, mesh, lead, name))
                return NamedSharding(mesh, tactic(leaf, mesh, lead))
        raise check.UsageError(f"no sharding rule matches {name!r}; end the rules with ('.*', replicate)")

    return jax.tree_util.tree_map_with_path(place, shapes)


def batch_sharding(shapes: PyTree, mesh: Mesh, axis: int | None) -> PyTree:
    """Split axis ``axis`` of each leaf of a batch over data and fsdp; an axis that does not divide is a UsageError.

    None leaves the batch whole on every device.
    """
    parts = int(np.prod([mesh.shape[name] for name in BATCH_AXES]))

    def place(path: Any, leaf: Any) -> NamedSharding:
        if axis is None or len(leaf.shape) <= axis:
            return NamedSharding(mesh, P())
        if leaf.shape[axis] % parts:
            raise check.UsageError(
                f"batch[{path_name(path)!r}] has {leaf.shape[axis]} rows, which do not divide over {parts} devices "
                f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); "
                f"take a multiple, e.g. {-(-leaf.shape[axis] // parts) * parts}"
            )
        return NamedSharding(mesh, P(*[None] * axis, BATCH_AXES))

    return jax.tree_util.tree_map_with_path(place, shapes)


def describe_sharding(state: PyTree) -> str:
    """The layout of a state as text: path, shape, dtype, split, MiB in all and on one device; the sums last."""
    rows: list[tuple] = []
    total = local = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else "one device"
        leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
        piece = int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)) * leaf.dtype.itemsize
        total, local = total + leaf.nbytes, local + piece
        rows.append((path_name(path), f"{leaf.shape}", str(leaf.dtype), str(spec), leaf.nbytes / 2**20, piece / 2**20))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row[:4], widths, strict=True))
        + f"  {row[4]:9.3f}  {row[5]:9.3f}"
        for row in rows
    ]
    return "\n".join([*lines, f"MiB in all {total / 2**20:.3f}, on one device {local / 2**20:.3f}"])
