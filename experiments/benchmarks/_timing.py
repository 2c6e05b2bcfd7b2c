"""Timing two ways of doing the same work, in turn, so that a drifting machine weighs on both alike."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def seconds(work: Callable[[], Any]) -> float:
    """The wall time of one call, until its arrays are there."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def interleaved(first: Callable[[], Any], second: Callable[[], Any], pairs: int = 15) -> dict[str, Any]:
    """``pairs`` pairs of calls after one warm-up of each; the ratio is first over second, pair by pair, its median
    and range."""
    seconds(first), seconds(second)
    times = np.asarray([(seconds(first), seconds(second)) for _ in range(pairs)])
    ratios = times[:, 0] / times[:, 1]
    return {"ratio": float(np.median(ratios)), "low": float(ratios.min()), "high": float(ratios.max()), "pairs": pairs}


def in_turn(works: Mapping[str, Callable[[], Any]], rounds: int = 5, *, warm_up: bool = True) -> dict[str, np.ndarray]:
    """Seconds of every work in each of ``rounds`` rounds, [rounds]; a round calls all of them, one after another.

    ``warm_up``: call each once before, untimed (it compiles then).
    """
    if warm_up:
        for work in works.values():
            seconds(work)
    times = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds)]
    return {name: np.asarray([each[name] for each in times]) for name in works}


def quotient(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """first over second, round by round: the median and the range."""
    ratios = first / second
    return {
        "ratio": float(np.median(ratios)),
        "low": float(ratios.min()),
        "high": float(ratios.max()),
        "rounds": len(ratios),
    }


def machine() -> dict[str, str]:
    """Where a result was measured."""
    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def write(name: str, results: dict[str, Any], out: Path | None) -> None:
    """Print the results, and keep them as ``OUT/NAME-DEVICE.json`` where a folder is given."""
    text = json.dumps({"benchmark": name, **machine(), **results}, indent=2)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        device = jax.devices()[0].device_kind.replace(" ", "_").lower()
        (out / f"{name}-{device}.json").write_text(text + "\n")
