"""The file of a model: an npz archive of plain arrays and a JSON record, nothing in it that is run when it is read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import check
from jaxkit.class_incremental.given import Format, plain, tupled
from jaxkit.class_incremental.memory import Keep
from jaxkit.class_incremental.open_ended import Program, shapes_of
from jaxkit.evaluation import write_atomic
from jaxkit.training.checkpoints import first_difference, signature

FORMAT = "jaxkit.class_incremental model"
VERSION = 1
RECORD = "record"
FIELDS = ("epochs", "key", "probe", "read_out", "growing", "classes", "bounds", "right")
"""Fields of a model that JSON holds as they are."""


def write(path: str | Path, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    """Write a record and arrays to one file, whole or not at all.

    Raises:
      UsageError: the file cannot be written.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **record})
    content = io.BytesIO()
    np.savez(content, **{RECORD: np.frombuffer(text.encode(), np.uint8)}, **arrays)
    try:
        return write_atomic(path, content.getvalue())
    except OSError as error:
        raise check.UsageError(f"cannot save the model to {path}: {error.strerror or error}") from None


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays of a file.

    Raises:
      UsageError: no such file, a damaged one, one of another kind, or one of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise check.UsageError(f"{path}: no such file" + " but a folder" * Path(path).is_dir())
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        record = json.loads(arrays.pop(RECORD).tobytes())
        found, version = record.pop("format"), record.pop("version")
    except Exception:  # zipfile, zlib, json and NumPy raise errors of their own
        raise check.UsageError(
            f"{path} cannot be read as a model: it is damaged or another kind of file; save one by model.save(path)"
        ) from None
    if found != FORMAT:
        raise check.UsageError(f"{path} holds {found!r}, expected {FORMAT!r}")
    if version != VERSION:
        raise check.UsageError(f"{path} is of version {version} of the format, this jaxkit reads version {VERSION}")
    return record, arrays


def save(model: Any, path: str | Path) -> Path:
    """Write a ``Model``; what JSON does not hold is named in the record as ``own``."""
    program: Program = model.program
    own = [name for name, value in program.settings if not plain(value)]
    fields = program._asdict() | {"settings": [pair for pair in program.settings if pair[0] not in own]}
    if not isinstance(program.network, str):
        fields["network"], own = None, ["network", *own]
    record = {name: getattr(model, name) for name in FIELDS}
    record |= {"program": fields, "rows": model.format, "own": own, "leaves": signature(model.state)}
    arrays = {f"state_{number:05d}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(model.state))}
    return write(path, record, {**arrays, "probe_x": model.probe_x, "probe_y": model.probe_y})


def load(path: str | Path, own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ``Model`` from its file; ``own`` is what the record names so.

    Raises:
      UsageError: as of ``read``; or ``own`` has other names than the record; or the arrays are not those of a state of
        the program.
    """
    record, arrays = read(path)
    try:
        if set(own) != set(record["own"]):
            in_words = lambda names: ", ".join(f"{name}=..." for name in names) or "nothing"
            raise check.UsageError(
                f"{path}: beside the path load takes {in_words(record['own'])}, as at the start, got {in_words(own)}"
            )
        program = Program(**{name: tupled(value) for name, value in record["program"].items()})
        settings = (*program.settings, *((name, value) for name, value in own.items() if name != "network"))
        program = program._replace(
            keep=Keep(*program.keep), settings=tuple(sorted(settings)), network=own.get("network", program.network)
        )
        rows = Format(*tupled(record["rows"]))
        leaves = [arrays[f"state_{number:05d}"] for number in range(len(record["leaves"]))]
        probes = {name: arrays[name] for name in ("probe_x", "probe_y")}
        fields = {name: tupled(record[name]) for name in FIELDS}
        found = [[row[0], list(leaf.shape), str(leaf.dtype)] for row, leaf in zip(record["leaves"], leaves)]
    except (KeyError, TypeError, IndexError) as error:
        raise check.UsageError(f"{path} is damaged: its record lacks or misstates {error}") from None
    shapes = shapes_of(program, rows.shape)
    difference = first_difference(found, signature(shapes))
    if difference is not None:
        name, has, needs = difference
        raise check.UsageError(f"{path} does not fit its program: {name} is {has} in the file, and {needs} here")
    state = jax.tree.unflatten(jax.tree.structure(shapes), [jnp.asarray(leaf) for leaf in leaves])
    return {**fields, **probes, "program": program, "format": rows, "state": state}
