"""Frozen embeddings: what a network says of every row, computed once and kept where the caller says."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkit import check
from jaxkit.learner import Network, path_name


def features(
    network: Network,
    params: Any,
    variables: Any,
    x: Any,
    *,
    batch_size: int = 64,
    output: str = "features",
    cache: str | Path | None = None,
    tag: str = "",
) -> np.ndarray:
    """``network.apply(params, variables, x)[0][output]`` for all rows, chunk by chunk through one compiled program.

    Args:
      network: applied with ``train=False``.
      params: its parameters.
      variables: its variables.
      x: an array, or a pytree of arrays with a common leading axis; NumPy is welcome.
      batch_size: rows per chunk; the last chunk is padded with copies of its first row.
      output: which output is kept.
      cache: a folder for the results, or None. The name of an entry is a SHA-256 over params, variables, x,
        ``output`` and ``tag``, so what changes any of them misses it. A damaged entry is computed again with a
        warning.
      tag: what the arrays do not tell: two networks of the same parameters but another computation (precision) need
        two tags.

    Returns:
      float32 [rows, ...].

    Raises:
      UsageError: no rows, leaves of different lengths, an unknown output, or a cache that cannot be written.
    """
    check.count("batch_size", batch_size)
    x = jax.tree.map(np.asarray, x)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(x)}
    if len(lengths) != 1 or min(lengths) in ((), (0,)):
        found = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(x))
        raise check.UsageError(
            f"features need arrays with one common first axis of 1 or more rows, got {found or repr(x)}"
        )
    if cache is None:
        return _compute(network, params, variables, x, batch_size, output)
    entry = Path(cache) / f"features-{_content_hash(params, variables, x, output, tag)[:32]}.npz"
    kept = _load(entry, min(lengths)[0])
    if kept is None:
        kept = _compute(network, params, variables, x, batch_size, output)
        _save(entry, kept)
    return kept


def _compute(network: Network, params, variables, x, batch_size: int, output: str) -> np.ndarray:
    rows = len(jax.tree.leaves(x)[0])
    batch_size = min(batch_size, rows)
    # params are arguments, not constants: closed over, they would become program text.
    forward = jax.jit(lambda params, variables, x: network.apply(params, variables, x, train=False)[0])
    known = jax.eval_shape(forward, params, variables, jax.tree.map(lambda leaf: leaf[:batch_size], x))
    if output not in known:
        raise check.UsageError(f"this network has no output {output!r}; it has {', '.join(sorted(known))}")
    chunks = []
    for start in range(0, rows, batch_size):
        index = np.arange(start, start + batch_size)
        index[index >= rows] = start
        chunks.append(
            np.asarray(forward(params, variables, jax.tree.map(lambda leaf: leaf[index], x))[output], np.float32)
        )
    return np.concatenate(chunks)[:rows]


def _content_hash(params, variables, x, output: str, tag: str) -> str:
    digest = hashlib.sha256(repr(("jaxkit features 1", output, tag)).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path((params, variables, x))[0]:
        leaf = np.asarray(leaf)
        digest.update(repr((path_name(path), str(leaf.dtype), leaf.shape)).encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8) if leaf.size else b"")
    return digest.hexdigest()


def _load(entry: Path, rows: int) -> np.ndarray | None:
    """The values of an entry; None where there is none, or, with a warning, a damaged one."""
    if not entry.exists():
        return None
    try:
        with np.load(entry, allow_pickle=False) as file:
            values, digest = file["values"], str(file["sha256"])
        if hashlib.sha256(np.ascontiguousarray(values)).hexdigest() != digest or len(values) != rows:
            raise ValueError("its content is not what was written")
        return values
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"the cached features {entry} are damaged ({error}); they are computed again", stacklevel=3)
        return None


def _save(entry: Path, values: np.ndarray) -> None:
    """Write an entry under another name and rename it, so that no reader ever sees half of it."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
            np.savez(file, values=values, sha256=np.array(hashlib.sha256(values).hexdigest()))
        os.replace(file.name, entry)
    except OSError as error:
        reason = f"{error.strerror}; choose another cache folder"
        raise check.UsageError(f"cannot write the features to {entry}: {reason}") from None
