"""The compiled programs of a long process, and when to let go of them."""

from __future__ import annotations

import gc
from pathlib import Path

import jax

MAPPINGS = Path("/proc/self/maps")
MANY_MAPPINGS = 25_000
"""Linux allows a process 65,530 memory mappings. Every compiled program has some dozens, and where no more can be had
XLA ends the process by a segmentation fault. The largest studies compile some 10,000 between two looks."""


def release_programs(most: int = MANY_MAPPINGS) -> bool:
    """Let go of all compiled programs if the process has more than ``most`` memory mappings; whether it did.

    What is used again is compiled again, or read from the compilation cache. To be called between trainings, where a
    process trains many methods: nothing else limits how many programs JAX keeps.
    """
    if not MAPPINGS.exists() or MAPPINGS.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    return True
