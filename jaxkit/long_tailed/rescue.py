"""Rescue a model already trained: tau of logit adjustment and a temperature from a labelled validation set, with what
they are worth.

    >>> found = rescue(logits, labels, class_counts)
    >>> print(found.table())
    >>> better = found.apply(test_logits)

Nothing is measured on rows on which it was chosen: the rows are split into folds, tau and temperature are chosen on all
folds but one and applied to that one, and ``after`` is measured on the rows so adjusted. What ``apply`` uses is chosen
on all rows. All on the host, in float64.

Intervals are for the classes and their numbers of rows as given: which class a row is of is no source of error.
Accuracies have Wilson's interval in each class, put together for the mean over classes as by Zou and Donner (2008,
Construction of confidence limits about effect measures); it has a width even where all rows of a class are right, and
of three rows it says little. Other measures, and changes, have a bootstrap interval within the classes. Where no class
has spread, and for changes where there are fewer than 5 rows, resampling knows nothing, and there is no interval; a
class alone without spread, or of one row, adds none, and the interval is too narrow by what it should have added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.evaluation import Interval, plain_view, to_markdown, wilson_interval
from jaxkit.long_tailed.counts import Logits, check_counts, check_labels
from jaxkit.long_tailed.groups import GROUPS, class_groups
from jaxkit.long_tailed.posthoc import logit_adjustment

TAUS = tuple(np.linspace(0.0, 4.0, 81).round(2).tolist())
TEMPERATURES = (0.05, 20.0)
MEASURES = ("accuracy", "macro_accuracy", *GROUPS, "nll", "ece")
_BINS = 15
_LEAST = 5  # rows below which a change has no interval
_TIE = 1e-9  # accuracies that differ by less are equal but for the order of a sum


class Rescue(NamedTuple):
    """What ``rescue`` found.

    Attributes:
      tau: of logit adjustment, chosen on all rows.
      temperature: chosen on all rows.
      fold_taus: chosen without each fold.
      fold_temperatures: chosen without each fold.
      before: each of ``MEASURES`` that the rows allow with its 95 % interval, for the logits as they came; nan ends
        where there is none.
      after: the same for the logits adjusted by cross-validation.
      change: of after - before, paired by row.
      class_counts: of the training rows, [C].
      taus: those to choose from, rising.
    """

    tau: float
    temperature: float
    fold_taus: tuple[float, ...]
    fold_temperatures: tuple[float, ...]
    before: dict[str, Interval]
    after: dict[str, Interval]
    change: dict[str, Interval]
    class_counts: np.ndarray
    taus: np.ndarray

    def apply(self, logits: Logits) -> Float[Array, "*batch classes"]:
        """(z - tau log pi) / temperature."""
        return logit_adjustment(jax.numpy.asarray(logits), self.class_counts, self.tau) / self.temperature

    def table(self) -> str:
        """The measures before and after, in per cent (nll in nats), each with its 95 % interval or ``[-]``."""
        lines = []
        for name in MEASURES:
            cells = [_cell(part.get(name), 1 if name == "nll" else 100) for part in (self.before, self.after)]
            lines.append((name, *cells, _cell(self.change.get(name), 1 if name == "nll" else 100, signed=True)))
        header = ("measure", "before", "after", "change")
        title = f"Logit adjustment and temperature, {len(self.fold_taus)}-fold cross-validated"
        spread = lambda values: f"{min(values):.3g} to {max(values):.3g} over the folds"
        proven = self.change["macro_accuracy"].low > 0
        return (
            to_markdown(plain_view(title, header, lines))
            + f"\ntau {self.tau:.3g} ({spread(self.fold_taus)}), "
            + f"temperature {self.temperature:.3g} ({spread(self.fold_temperatures)}).\n"
            + f"The gain in macro accuracy is {'above 0' if proven else 'not shown to be above 0'} at 95 %.\n"
            + _at_the_edge(self.tau, self.taus, self.temperature)
        )


def rescue(
    logits: Any,
    labels: Any,
    class_counts: Any,
    *,
    taus: Any = TAUS,
    folds: int = 5,
    groups: str = "shots",
    resamples: int | None = None,
    seed: int = 0,
) -> Rescue:
    """Choose tau and a temperature for (z - tau log pi) / T on validation rows, and measure them by cross-validation.

    tau has the highest macro accuracy among ``taus`` (of equal ones the smallest), then T the lowest negative
    log-likelihood. Every class weighs the same in both, and in every measure but ``accuracy``: the aim is a test set
    of equally frequent classes, whether the validation rows are one or not.

    Args:
      logits: z [rows, C] of the trained model on rows that it was not trained on.
      labels: [rows].
      class_counts: rows of each class that the model was trained on, [C].
      taus: what to choose from.
      folds: of the rows, split within each class.
      groups: the rule of ``class_groups`` for many, medium and few.
      resamples: of the bootstrap intervals; None: 1000, and fewer (200 at least) above 20,000 rows for the memory.
      seed: of the split and of the bootstrap.

    Returns:
      a ``Rescue``. ``ece`` has 15 equal-width bins, and its interval is of first order (the signs of the bins' gaps are
      held) and ends at 0 at the lowest.

    Raises:
      UsageError: arrays that do not belong together, logits that are not finite, fewer rows than folds, a class without
        training rows, or no tau that is finite.
    """
    z, y, counts = _checked(logits, labels, class_counts)
    rows, classes = z.shape
    if check.count("folds", folds, 2) > rows:
        raise check.UsageError(f"folds={folds} needs as many rows, got {rows}")
    taus = _candidates(taus)
    resamples = max(200, min(1000, 20_000_000 // rows)) if resamples is None else check.count("resamples", resamples)

    log_pi = np.log(counts / counts.sum())
    correct = np.stack([(z - tau * log_pi).argmax(1) == y for tau in taus])

    def choose(chosen: np.ndarray) -> tuple[float, float]:
        weight = class_weights(y[chosen], classes)
        scores = correct[:, chosen] @ weight
        tau = float(taus[np.flatnonzero(scores >= scores.max() - _TIE)[0]])
        return tau, _temperature(z[chosen] - tau * log_pi, y[chosen], weight)

    fold = fold_of(y, folds, seed)
    by_fold = [choose(fold != number) for number in range(folds)]
    tau_of, temperature_of = (np.asarray(values)[fold][:, None] for values in zip(*by_fold))
    adjusted = (z - tau_of * log_pi) / temperature_of

    weight, group = class_weights(y, classes), np.asarray(class_groups(counts, by=groups))[y]
    old, new = _values(z, y, weight), _values(adjusted, y, weight)
    before, after, change = {}, {}, {}
    for name, (kind, part, strata) in _parts(y, group).items():
        one, two, strata = old[kind][part], new[kind][part], strata[part]
        change[name] = stratified_interval(two - one, strata, resamples=resamples, seed=seed, least=_LEAST)
        for found, values in ((before, one), (after, two)):
            if kind == "right":
                found[name] = proportion_interval(values, strata)
            else:
                found[name] = stratified_interval(values, strata, resamples=resamples, seed=seed)
    for found in (before, after):
        found["ece"] = found["ece"]._replace(low=np.maximum(found["ece"].low, 0.0))  # a nan stays one
    tau, temperature = choose(np.ones(rows, bool))
    fold_taus, fold_temperatures = (tuple(values) for values in zip(*by_fold))
    return Rescue(tau, temperature, fold_taus, fold_temperatures, before, after, change, counts, taus)


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights of rows, sum 1, under which the classes that have rows weigh the same."""
    count = np.bincount(labels, minlength=num_classes)
    return 1.0 / (count[labels] * (count > 0).sum())


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row: the rows of each class are shuffled and dealt to the folds in turn."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def _values(z: np.ndarray, y: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Of each row: whether it is right, -log p_y, and a share in the calibration error: their weighted means are the
    measures.

    With the bins of confidence and the signs of their gaps as they are in all rows, the calibration error is the mean
    of sign_b (right - confidence). The interval of that mean is first order; resampling the error itself, whose
    absolute values only grow with noise, would give an interval that lies above it.
    """
    log_p = scipy.special.log_softmax(z, axis=1)
    confidence, right = np.exp(log_p.max(1)), (z.argmax(1) == y).astype(float)
    place = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    sign = np.sign(np.bincount(place, weight * (right - confidence), _BINS))[place]
    return {"right": right, "nll": -log_p[np.arange(len(y)), y], "ece": sign * (right - confidence)}


def _parts(y: np.ndarray, group: np.ndarray) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Measure -> (of which values, of which rows, the strata that weigh the same); a group without rows is left out."""
    everything = np.ones(len(y), bool)
    parts = {
        "accuracy": ("right", everything, np.zeros_like(y)),
        "macro_accuracy": ("right", everything, y),
        "nll": ("nll", everything, y),
        "ece": ("ece", everything, y),
    }
    parts |= {name: ("right", group == number, y) for number, name in enumerate(GROUPS)}
    return {name: part for name, part in parts.items() if part[1].any()}


def proportion_interval(right: np.ndarray, strata: np.ndarray) -> Interval:
    """The mean over strata of the share that is right, with its 95 % interval.

    With p_s, l_s, u_s the share and the ends of ``wilson_interval`` of each of S strata, m = mean_s p_s: from
    m - sqrt(sum_s (p_s - l_s)^2) / S to m + sqrt(sum_s (u_s - p_s)^2) / S. (Zou and Donner 2008.)
    """
    each = [wilson_interval(int(own.sum()), own.size) for own in _split(right, strata)]
    share, low, high = (np.array([getattr(one, end) for one in each]) for end in ("value", "low", "high"))
    down, up = (np.sqrt(((end - share) ** 2).sum()) / len(each) for end in (low, high))
    return Interval(float(share.mean()), float(share.mean() - down), float(share.mean() + up), right.size)


def stratified_interval(
    values: np.ndarray, strata: np.ndarray, *, resamples: int, seed: int, least: int = 2
) -> Interval:
    """The mean over strata of the mean of their values, with its 95 % percentile bootstrap interval; nan ends for fewer
    than ``least`` values, or where no stratum has spread.

    Of n_s values n_s - 1 are drawn, within each stratum: the variance is then that of the mean, where n_s draws would
    give (n_s - 1) / n_s of it. (Rao and Wu 1988.)
    """
    parts, random = _split(values, strata), np.random.default_rng(seed)
    value = float(np.mean([own.mean() for own in parts]))
    if values.size < least or all(np.ptp(own) == 0 for own in parts):
        return Interval(value, np.nan, np.nan, values.size)
    drawn = lambda own: own[random.integers(0, own.size, (resamples, max(own.size - 1, 1)))].mean(1)
    low, high = np.percentile(sum(drawn(own) for own in parts) / len(parts), [2.5, 97.5])
    return Interval(value, float(low), float(high), values.size)


def _split(values: np.ndarray, strata: np.ndarray) -> list[np.ndarray]:
    return [values[strata == one] for one in np.unique(strata)]


def _temperature(z: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """argmin_T of the weighted mean of -log softmax(z / T)_y within ``TEMPERATURES``."""
    own = z[np.arange(len(y)), y]
    objective: Callable[[float], float] = lambda log_t: (
        weight @ (scipy.special.logsumexp(z / np.exp(log_t), axis=1) - own / np.exp(log_t))
    )
    found = scipy.optimize.minimize_scalar(objective, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def _candidates(taus: Any) -> np.ndarray:
    try:
        values = np.unique(np.asarray(taus, np.float64))
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.size == 0 or not np.isfinite(values).all():
        raise check.UsageError(f"taus must be finite numbers, at least one, got {taus!r}")
    return values


def _at_the_edge(tau: float, taus: np.ndarray, temperature: float) -> str:
    """A line for each of the two that might be better beyond what there was to choose from."""
    lines = ""
    if taus.size > 1 and tau == taus[-1]:
        lines += "tau is the largest there was to choose from; give larger taus.\n"
    elif taus.size > 1 and tau == taus[0] != 0:
        lines += "tau is the smallest there was to choose from; give smaller taus.\n"
    if np.abs(np.log(temperature) - np.log(TEMPERATURES)).min() < 1e-2:
        low, high = TEMPERATURES
        lines += f"temperature is at the end of {low:g} to {high:g}, where it is looked for: the logits are of another "
        lines += "scale, or no row is wrong.\n"
    return lines


def _checked(logits: Any, labels: Any, class_counts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        z = np.asarray(logits, np.float64)
    except (TypeError, ValueError):
        raise check.UsageError(
            "logits must be numbers of the shape [rows, classes], got text or rows of unequal length"
        ) from None
    if z.ndim != 2 or z.size == 0:
        raise check.UsageError(f"logits must have the shape [rows, classes], got {list(z.shape)}")
    bad = np.flatnonzero(~np.isfinite(z).all(1))
    if bad.size:
        raise check.UsageError(f"logits of row {bad[0]} are not finite; leave such rows out")
    y = np.asarray(check_labels(labels, z.shape[1]))
    if y.shape != z.shape[:1]:
        raise check.UsageError(f"labels must be one for each of the {len(z)} rows of logits, got {list(y.shape)}")
    check_counts(class_counts, z.shape[1])
    return z, y, np.asarray(class_counts, np.float64)


def _cell(interval: Interval | None, times: float, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    sign = "+" if signed else ""
    digits = 3 if times == 1 else 1
    value, low, high = (times * end for end in interval[:3])
    if np.isnan(low):
        return f"{value:{sign}.{digits}f} [-]"
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
