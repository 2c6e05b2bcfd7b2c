"""Paired tests of two methods over the same seeds, Holm's correction, and the comparison of many methods. All by SciPy.

Every test returns ``PairedTest(statistic, p, n)``. Two equal vectors give p = 1. A test that needs more pairs than it
has (t: two) gives p = nan. Bad input raises UsageError.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from jaxkit import check
from jaxkit.evaluation.intervals import finite_vector, mean_interval

_ALTERNATIVES = ("two-sided", "greater", "less")


class PairedTest(NamedTuple):
    """The outcome of a test.

    Attributes:
      statistic: of the test (t, W, number of positive signs, mean difference).
      p: the probability of a statistic at least as extreme under the null hypothesis; nan with too few pairs.
      n: the pairs that the test used.
    """

    statistic: float
    p: float
    n: int


def _pairs(a: Any, b: Any, alternative: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if alternative not in _ALTERNATIVES:
        raise check.UsageError(f"alternative must be one of {', '.join(_ALTERNATIVES)}, got {alternative!r}")
    first, second = finite_vector("a", a), finite_vector("b", b)
    if first.size != second.size:
        raise check.UsageError(f"paired vectors must have one length (same seeds), got {first.size} and {second.size}")
    return first, second, first - second


def paired_t_test(a: Any, b: Any, alternative: str = "two-sided") -> PairedTest:
    """Student's t on the differences a - b: t = mean(d) sqrt(n) / s(d), n - 1 degrees of freedom.

    Args:
      a: one value per seed.
      b: one value per seed, the same seeds in the same order.
      alternative: ``two-sided``, ``greater`` (a above b) or ``less``.
    """
    first, second, d = _pairs(a, b, alternative)
    if not d.any():
        return PairedTest(0.0, 1.0, d.size)
    if d.size == 1:
        return PairedTest(math.nan, math.nan, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal differences: t is infinite, and that is right
        t, p = scipy.stats.ttest_rel(first, second, alternative=alternative)
    return PairedTest(float(t), float(p), d.size)


def wilcoxon_test(a: Any, b: Any, alternative: str = "two-sided") -> PairedTest:
    """Wilcoxon's signed-rank test on a - b, zeros dropped (Wilcoxon 1945); exact for n <= 50 without ties."""
    d = _pairs(a, b, alternative)[2]
    d = d[d != 0]
    if d.size == 0:
        return PairedTest(0.0, 1.0, 0)
    w, p = scipy.stats.wilcoxon(d, alternative=alternative)
    return PairedTest(float(w), float(p), d.size)


def sign_test(a: Any, b: Any, alternative: str = "two-sided") -> PairedTest:
    """The exact sign test: how many differences a - b are positive, of those not zero, under Binomial(n, 1/2)."""
    d = _pairs(a, b, alternative)[2]
    d = d[d != 0]
    if d.size == 0:
        return PairedTest(0.0, 1.0, 0)
    positive = int((d > 0).sum())
    return PairedTest(
        float(positive), float(scipy.stats.binomtest(positive, d.size, alternative=alternative).pvalue), d.size
    )


def permutation_test(
    a: Any, b: Any, alternative: str = "two-sided", *, resamples: int = 9999, seed: int = 0
) -> PairedTest:
    """The paired permutation test: the mean difference under random swaps within pairs; exact where 2^n <= resamples.

    Its smallest p is 2^(1-n) two-sided: five seeds cannot go below 0.0625.
    """
    first, second, d = _pairs(a, b, alternative)
    check.count("resamples", resamples)
    if not d.any():
        return PairedTest(0.0, 1.0, d.size)
    if d.size == 1:  # SciPy wants two observations; the two swaps of one pair are d and -d
        p = {"two-sided": 1.0, "greater": 0.5 if d[0] > 0 else 1.0, "less": 0.5 if d[0] < 0 else 1.0}[alternative]
        return PairedTest(float(d[0]), p, 1)
    outcome = scipy.stats.permutation_test(
        (first, second),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        alternative=alternative,
        random_state=np.random.default_rng(seed),
    )
    return PairedTest(float(outcome.statistic), float(outcome.pvalue), d.size)


TESTS: dict[str, Callable[..., PairedTest]] = {
    "t": paired_t_test,
    "wilcoxon": wilcoxon_test,
    "sign": sign_test,
    "permutation": permutation_test,
}


def holm(p_values: Any) -> np.ndarray:
    """Holm's step-down correction over a family of m tests, which holds the family-wise error whatever the dependence.

    With p_(1) <= ... <= p_(m): adjusted p_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)). (Holm 1979.) A nan stays nan
    and does not count in m. Returns the adjusted values in the order given.
    """
    p = np.atleast_1d(np.asarray(p_values, dtype=np.float64))
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise check.UsageError(f"p_values must be a vector of numbers in [0, 1], got {p_values!r}")
    order = np.argsort(p)  # nan sorts last
    m = int(np.count_nonzero(~np.isnan(p)))
    adjusted = np.full_like(p, np.nan)
    first = order[:m]
    adjusted[first] = np.maximum.accumulate(np.minimum(1.0, (m - np.arange(m)) * p[first]))
    return adjusted


class Comparison(NamedTuple):
    """Two methods over the same seeds.

    Attributes:
      method: the method.
      against: the method it is compared with.
      difference: mean of method - against, in the unit of the values.
      low: lower end of the t-interval of the difference (not corrected for the family); nan for one seed.
      high: upper end.
      n: the number of seeds.
      p: of the paired test.
      p_holm: p corrected over all comparisons of the call.
    """

    method: str
    against: str
    difference: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float


def compare(
    values: Mapping[str, Any], baseline: str | None = None, *, test: str = "t", level: float | int = 0.95
) -> tuple[Comparison, ...]:
    """Compare methods measured on the same seeds: every pair, or each against a baseline; p corrected by Holm.

    Args:
      values: ``{method: [one value per seed]}``, seeds in the same order for every method.
      baseline: compare each other method with this one; None compares every pair.
      test: ``t``, ``wilcoxon``, ``sign`` or ``permutation``, two-sided.
      level: of the interval of the difference.

    Raises:
      UsageError: fewer than two methods, a value that is not finite (the method is named), differing numbers of
        seeds, an unknown baseline or test.
    """
    if len(values) < 2:
        raise check.UsageError(f"compare needs at least two methods, got {len(values)}")
    vectors = {name: finite_vector(name, runs) for name, runs in values.items()}
    sizes = {name: vector.size for name, vector in vectors.items()}
    if len(set(sizes.values())) > 1:
        raise check.UsageError(f"every method needs the same seeds, got {sizes}")
    run = TESTS[check.choose("test", test, TESTS)]
    pairs: Sequence[tuple[str, str]]
    if baseline is None:
        pairs = list(combinations(vectors, 2))
    else:
        baseline = check.choose("baseline", baseline, vectors)
        pairs = [(name, baseline) for name in vectors if name != baseline]
    p_values = [run(vectors[a], vectors[b]).p for a, b in pairs]
    rows = []
    for (a, b), p, corrected in zip(pairs, p_values, holm(p_values), strict=True):
        difference, low, high, n = mean_interval(vectors[a] - vectors[b], level)
        rows.append(Comparison(a, b, difference, low, high, n, p, float(corrected)))
    return tuple(rows)
