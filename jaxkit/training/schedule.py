"""How the steps of a run are split over the stages of its plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxkit import check
from jaxkit.learner import Plan


def share_out(steps: int, shares: Sequence[float]) -> list[int]:
    """``steps`` split in proportion to ``shares``, exactly summing to it (largest remainders get what is left)."""
    exact = np.asarray(shares, float) / np.sum(shares) * steps
    counts = np.floor(exact).astype(int)
    for number in np.argsort(counts - exact, kind="stable")[: steps - counts.sum()]:
        counts[number] += 1
    return counts.tolist()


def stage_steps(plan: Plan, steps: int) -> list[int]:
    """The steps of each stage: ``Stage.steps`` where it is given, its share of what is left elsewhere.

    Raises:
      UsageError: a stage would get no step.
    """
    fixed = [
        None if stage.steps is None else check.count(f"steps of stage {stage.name!r}", stage.steps) for stage in plan
    ]
    shared = [check.positive("share", stage.share) for stage, count in zip(plan, fixed, strict=True) if count is None]
    left = steps - sum(count or 0 for count in fixed)
    if left < len(shared) or (left and not shared):
        asked = ", ".join(f"{stage.name!r} {count}" for stage, count in zip(plan, fixed, strict=True) if count)
        raise check.UsageError(
            f"steps={steps} cannot be split over {len(plan)} stages" + (f" of which {asked} are fixed" if asked else "")
        )
    shares = iter(share_out(left, shared) if shared else [])
    counts = [next(shares) if count is None else count for count in fixed]
    for stage, count in zip(plan, counts, strict=True):
        if count == 0:
            raise check.UsageError(f"stage {stage.name!r} gets none of the {steps} steps; raise steps or its share")
    return counts
