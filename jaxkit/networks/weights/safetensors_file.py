"""Weights in the safetensors format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives NumPy the types bfloat16 and float8, which such files hold)
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxkit.check import UsageError


def read_safetensors(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """The (name, array) pairs of a .safetensors file, one at a time.

    Raises:
      UsageError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path} as safetensors: {str(error).splitlines()[0]}") from None
