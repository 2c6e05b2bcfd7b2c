"""NumPy archives of weights."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxkit.check import UsageError


def read_npz(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """The (name, array) pairs of an .npz file; pickled objects are refused.

    Raises:
      UsageError: the file is missing or damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                yield name, archive[name]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise UsageError(f"cannot read {path} as a NumPy archive of arrays: {str(error).splitlines()[0]}") from None
