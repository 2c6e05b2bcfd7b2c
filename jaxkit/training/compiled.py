"""The compiled programs of a long process, and when to let go of them."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

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


LEAST_TIME = "jax_persistent_cache_min_compile_time_secs"
HANGS_FROM_THE_CACHE = jax.__version_info__ < (0, 12)


@contextlib.contextmanager
def several_devices_uncached(mesh: Mesh | None) -> Iterator[None]:
    """Write no program to the compilation cache, where ``mesh`` has several CPU devices and JAX is older than 0.12.

    There a program for several CPU devices no longer has one order of its collectives once it comes from the cache:
    the devices wait for each other, and after a while XLA ends the process. One that is compiled anew has.
    """
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform != "cpu" or not HANGS_FROM_THE_CACHE:
        yield
        return
    before = getattr(jax.config, LEAST_TIME)
    jax.config.update(LEAST_TIME, math.inf)
    try:
        yield
    finally:
        jax.config.update(LEAST_TIME, before)
