"""Checkpoints: atomic, asynchronous, restored leaf by leaf onto whatever mesh the resumed run has (orbax underneath).

A checkpoint holds the leaves of the carry and of the best state, the history, and a record: stage, step, run
fingerprint, versions.
It never holds the structure of State: on resume that comes from ``jax.eval_shape`` over the plan, and what is on disk
is compared with it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkit import check
from jaxkit.learner import path_name
from jaxkit.training.keys import is_key

PyTree = Any


class Checkpoint(NamedTuple):
    """One saved moment.

    Attributes:
      record: JSON values.
      trees: name -> pytree of arrays.
      history: name -> NumPy array.
    """

    record: dict[str, Any]
    trees: dict[str, PyTree]
    history: dict[str, np.ndarray]


def signature(tree: PyTree) -> list[list[Any]]:
    """Path, shape and dtype of each leaf: what is compared before a restore."""
    return [[path_name(p), list(x.shape), str(x.dtype)] for p, x in jax.tree_util.tree_leaves_with_path(tree)]


def _leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves as a flat dict; typed keys as their data; arrays without elements left out (they hold nothing)."""
    leaves = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return {f"{number:05d}": leaf for number, leaf in enumerate(leaves) if leaf.size}


def _template(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not is_key(leaf):
        return leaf
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _key_impl(dtype: Any) -> str:
    """The name of the generator whose keys have this dtype."""
    names = ("threefry2x32", "rbg", "unsafe_rbg")
    return next(name for name in names if jax.eval_shape(lambda n=name: jax.random.key(0, impl=n)).dtype == dtype)


def _rebuild(template: PyTree, saved: dict[str, Any]) -> PyTree:
    def one(number: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = f"{number:05d}"
        if name not in saved:
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        if is_key(leaf):
            return jax.random.wrap_key_data(saved[name], impl=_key_impl(leaf.dtype))
        return saved[name]

    leaves, tree = jax.tree.flatten(template)
    return jax.tree.unflatten(tree, [one(number, leaf) for number, leaf in enumerate(leaves)])


def first_difference(found: list, wanted: list) -> tuple[str, Any, Any] | None:
    """(path, what is found there, what is wanted) of the first leaf in which two signatures differ."""
    found_at, wanted_at = ({row[0]: row[1:] for row in rows} for rows in (found, wanted))
    for path in [*wanted_at, *found_at]:
        if found_at.get(path) != wanted_at.get(path):
            return path, found_at.get(path, "absent"), wanted_at.get(path, "absent")
    return None


def _explain(name: str, saved: list, wanted: list) -> str:
    """The first difference between what is on disk and what the plan makes."""
    difference = first_difference(saved, wanted)
    if difference is None:
        return f"{name}: its leaves stand in another order"
    path, disk, plan = difference
    return f"{name}/{path} is {disk} in the checkpoint and {plan} in this plan"


class Checkpoints:
    """The checkpoints of one run folder; the newest two are kept."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # half a second of import that a run without a workdir does not need

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp, self.folder = ocp, folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise check.UsageError(f"cannot keep checkpoints in {self.folder}: {error.strerror or error}") from None

    def latest(self) -> int | None:
        """The number of steps done at the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Begin to save; returns when the arrays have left the device, writes behind the run's back, appears whole or
        not at all."""
        args, trees = self._ocp.args, checkpoint.trees
        record = checkpoint.record | {"leaves": {name: signature(tree) for name, tree in trees.items()}}
        history = {name: values for name, values in checkpoint.history.items() if values.size}
        record["history"] = {name: [list(values.shape), str(values.dtype)] for name, values in history.items()}
        items = {name: args.StandardSave(leaves) for name, tree in trees.items() if (leaves := _leaves(tree))}
        if history:
            items["history"] = args.StandardSave(history)
        self._manager.save(step, args=args.Composite(record=args.JsonSave(record), **items))

    def record(self, step: int) -> dict[str, Any]:
        """The record of a checkpoint."""
        args = self._ocp.args
        return self._manager.restore(step, args=args.Composite(record=args.JsonRestore()))["record"]

    def restore(self, step: int, templates: dict[str, PyTree]) -> Checkpoint:
        """Read a checkpoint into trees like ``templates`` (ShapeDtypeStructs with their shardings).

        Raises:
          UsageError: a leaf on disk is not what its template says.
        """
        args, record = self._ocp.args, self.record(step)
        for name, template in templates.items():
            saved, wanted = record["leaves"].get(name, []), signature(template)
            if saved != wanted:
                raise check.UsageError(
                    f"the checkpoint in {self.folder} is of another run: {_explain(name, saved, wanted)}"
                )
        items = {}
        for name, template in templates.items():
            if shapes := _leaves_of_template(template):
                items[name] = args.StandardRestore(shapes)
        if record["history"]:
            like = {name: np.zeros(shape, dtype) for name, (shape, dtype) in record["history"].items()}
            items["history"] = args.StandardRestore(like)
        found = self._manager.restore(step, args=args.Composite(**items)) if items else {}
        trees = {name: _rebuild(template, found.get(name, {})) for name, template in templates.items()}
        history = (
            {name: np.asarray(values) for name, values in found.get("history", {}).items()} if record["history"] else {}
        )
        return Checkpoint(record, trees, history)

    def wait(self) -> None:
        """Return when everything begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and let go."""
        self._manager.close()


def _leaves_of_template(template: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = [_template(leaf) for leaf in jax.tree.leaves(template)]
    return {f"{number:05d}": leaf for number, leaf in enumerate(leaves) if leaf.size}
