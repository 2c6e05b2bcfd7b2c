"""Torch for the peers of benchmarks: the module, and how many threads it may use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def threads_of(torch: Any, number: int) -> Iterator[None]:
    """Torch with this number of threads within an operation, and with what it had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_or_error() -> Any:
    """The module torch; UsageError where it is not installed."""
    try:
        import torch
    except ImportError:
        from jaxkit import check

        raise check.UsageError(
            "the PyTorch peer needs torch, which is not installed; python -m pip install -e '.[bench]' in the checkout"
        ) from None
    return torch
