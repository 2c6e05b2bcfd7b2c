"""Confidence intervals: t over seeds, bootstrap, and Wilson's for a proportion. All on the host, in float64, by SciPy.

One value alone carries no information on its spread: its interval is nan, not an error. A value that is nan or infinite
is an error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from jaxkit import check


class Interval(NamedTuple):
    """An estimate with its confidence interval.

    Attributes:
      value: the estimate, in the unit of the values.
      low: lower end; nan where one value alone was given.
      high: upper end; nan where one value alone was given.
      n: the number of values (seeds, examples, trials) behind it.
    """

    value: float
    low: float
    high: float
    n: int


def finite_vector(name: str, values: Any) -> np.ndarray:
    """``values`` (a number, a sequence or an array) as a float64 vector; UsageError names the first nan or infinite
    entry."""
    try:
        vector = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise check.UsageError(f"{name} must be numbers, got {values!r}") from None
    if vector.ndim != 1 or vector.size == 0:
        raise check.UsageError(f"{name} must be a vector of at least one number, got shape {vector.shape}")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise check.UsageError(
            f"{name}: entry {bad[0]} of {vector.size} is {vector[bad[0]]}; leave a failed run out or repeat it"
        )
    return vector


def check_level(level: float | int) -> float | int:
    """Return ``level`` if it lies strictly between 0 and 1; raise UsageError otherwise."""
    if not 0 < level < 1:
        raise check.UsageError(f"level must lie strictly between 0 and 1, for example 0.95, got {level!r}")
    return level


def mean_interval(values: Any, level: float | int = 0.95, *, name: str = "values") -> Interval:
    """Mean with Student's t-interval: m ± t_{n-1,(1+level)/2} s / sqrt(n), s with divisor n-1.

    Args:
      values: one number per independent run (seed), any unit.
      level: coverage.
      name: what the values are, for the error.

    Raises:
      UsageError: a value is not finite, or there is none.
    """
    vector, level = finite_vector(name, values), check_level(level)
    n, mean = vector.size, float(vector.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(scipy.stats.t.ppf((1 + level) / 2, n - 1) * vector.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_interval(
    *samples: Any,
    statistic: Callable[..., Any] = np.mean,
    method: str = "bca",
    level: float | int = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of any statistic (``scipy.stats.bootstrap``).

    Args:
      *samples: one vector, or several of one length whose rows are drawn together (labels and predictions of the same
        examples).
      statistic: ``statistic(*vectors) -> number``; with an ``axis`` argument (as NumPy's) it is computed for all
        resamples at once.
      method: ``bca`` (bias corrected and accelerated; Efron 1987), ``percentile`` or ``basic``.
      level: coverage.
      resamples: how many bootstrap samples.
      seed: of the resampling; the same seed gives the same interval.

    Raises:
      UsageError: a value is not finite, lengths differ, or the method is unknown.
    """
    if not samples:
        raise check.UsageError("bootstrap_interval needs at least one vector, got none")
    vectors = [finite_vector(f"sample {i}", sample) for i, sample in enumerate(samples)]
    if len({v.size for v in vectors}) > 1:
        raise check.UsageError(f"samples must have one length, got {[v.size for v in vectors]}")
    method = check.choose("bootstrap method", method, ("bca", "percentile", "basic"))
    check_level(level)
    check.count("resamples", resamples)
    value, n = float(statistic(*vectors)), vectors[0].size
    if n == 1:
        return Interval(value, math.nan, math.nan, 1)
    if all(np.ptp(v) == 0 for v in vectors):  # every resample is the sample; BCa's acceleration would be 0/0
        return Interval(value, value, value, n)
    with warnings.catch_warnings():
        # SciPy warns and returns nan where every resample gives the same statistic; nan says it already.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        ends = scipy.stats.bootstrap(
            vectors,
            statistic,
            paired=len(vectors) > 1,
            method={"bca": "BCa"}.get(method, method),
            confidence_level=level,
            n_resamples=resamples,
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(value, float(ends.low), float(ends.high), n)


def wilson_interval(successes: int, trials: int, level: float | int = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927), which holds near 0 and 1 where the normal one fails.

    Raises:
      UsageError: the counts are not whole numbers with 0 <= successes <= trials and trials >= 1.
    """
    successes, trials = check.count("successes", successes, 0), check.count("trials", trials)
    if successes > trials:
        raise check.UsageError(f"successes must be at most trials, got {successes} of {trials}")
    ends = scipy.stats.binomtest(successes, trials).proportion_ci(check_level(level), method="wilson")
    return Interval(successes / trials, float(ends.low), float(ends.high), trials)
