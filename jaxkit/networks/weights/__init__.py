"""Weights from files that other libraries wrote, as (name, array), one at a time.

None of those libraries is needed, and no code in a file runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxkit import check
from jaxkit.networks.weights.convert import fill
from jaxkit.networks.weights.npz_file import read_npz
from jaxkit.networks.weights.safetensors_file import read_safetensors
from jaxkit.networks.weights.torch_file import read_torch

__all__ = ["fill", "read", "read_npz", "read_safetensors", "read_torch"]

_READERS: dict[str, Callable[[str | Path], Iterator[tuple[str, np.ndarray]]]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".bin": read_torch,
    ".pt": read_torch,
    ".pth": read_torch,
    ".th": read_torch,
}


def read(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """The (name, array) pairs of a weights file; its ending says which kind it is.

    Raises:
      UsageError: an unknown ending, a missing or damaged file, or one that asks for code to run.
    """
    ending = Path(path).suffix.lower()
    if ending not in _READERS:
        raise check.UsageError(f"cannot tell what {path} holds; expected a file that ends in {', '.join(_READERS)}")
    return _READERS[ending](path)
