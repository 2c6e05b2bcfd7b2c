"""What a kept model says about itself: its classes, its bytes, and how much it has forgotten, by an estimate."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxkit import evaluation
from jaxkit.class_incremental.budget import full_bytes
from jaxkit.class_incremental.protocol import forgetting
from jaxkit.evaluation import Interval, wilson_interval
from jaxkit.learner import TrainState


class Report(NamedTuple):
    """A model in numbers; prints as a table, and shows one in a notebook.

    Attributes:
      method: its title.
      classes: of each task, as the user names them.
      rows: held back of each task.
      learnt: a_{j, j}, the accuracy on them right after each task; nan without rows.
      now: a_{B, j}, after the last task, with Wilson's interval; None without rows.
      accuracy: on all of them now, likewise.
      forgetting: see ``forgetting_interval``.
      bytes: ``exemplars``, ``model``, ``teacher``, ``rest``, ``probes``.
      text: forgetting and bytes in words.
    """

    method: str
    classes: tuple[tuple, ...]
    rows: tuple[int, ...]
    learnt: tuple[float, ...]
    now: tuple[Interval | None, ...]
    accuracy: Interval | None
    forgetting: Interval | None
    bytes: dict[str, int]
    text: str

    def grid(self) -> evaluation.Grid:
        """The table: a line for each task, and one for all."""
        body = []
        for number, (classes, rows, learnt, now) in enumerate(zip(self.classes, self.rows, self.learnt, self.now)):
            learnt_text = "" if math.isnan(learnt) else f"{learnt:.3f}"
            body.append((f"task {number + 1}", listed(classes), learnt_text, in_words(now), rows))
        known = sum(len(classes) for classes in self.classes)
        body.append(("all", f"{known} classes", "", in_words(self.accuracy), sum(self.rows)))
        header = ("task", "classes", "accuracy then", "accuracy now [95 %]", "rows held back")
        return evaluation.plain_view(self.method, header, body)._replace(note=self.text)

    def __repr__(self) -> str:
        return evaluation.to_markdown(self.grid())

    def _repr_html_(self) -> str:
        return evaluation.to_html(self.grid())


def in_words(interval: Interval | None) -> str:
    """``0.950 [0.912, 0.973]``, or nothing."""
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def listed(classes: tuple, most: int = 8) -> str:
    """The names of some classes, of more than ``most`` the first ones and how many more there are."""
    shown = ", ".join(map(str, classes[:most]))
    return shown + (f" and {len(classes) - most} more" if len(classes) > most else "")


def forgetting_interval(
    right: Int[np.ndarray, "tasks tasks"], rows: Int[np.ndarray, " tasks"], level: float = 0.95
) -> Interval | None:
    """F = 1 / (B - 1) sum_{j < B} (p*_j - p_j) with its interval; None where no earlier task has rows.

    p_j is the accuracy on the rows of task j now, and p*_j the best before (``protocol.forgetting``). With (l_j, u_j)
    Wilson's interval of p_j and (l*_j, u*_j) that of p*_j, both accuracies taken as independent,

        F - sqrt(sum_j (p*_j - l*_j)^2 + (u_j - p_j)^2) / (B - 1),
        F + sqrt(sum_j (u*_j - p*_j)^2 + (p_j - l_j)^2) / (B - 1).

    They are of the same rows, so that the interval is rather too wide; it does not shrink to a point where no row was
    forgotten. The best of several noisy accuracies makes F lean upwards.

    Args:
      right: rows of task j that are right after task b.
      rows: of each task.
      level: coverage.

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions, Statistics in
    Medicine, method 10; Zou and Donner 2008, Construction of confidence limits about effect measures, for the sum.
    """
    right, rows = np.asarray(right), np.asarray(rows)
    before = len(rows) - 1
    if before < 1 or (rows[:-1] == 0).any():
        return None
    below = above = 0.0
    for j in range(before):
        best = wilson_interval(int(right[j:-1, j].max()), int(rows[j]), level)
        now = wilson_interval(int(right[-1, j]), int(rows[j]), level)
        below += (best.value - best.low) ** 2 + (now.high - now.value) ** 2
        above += (best.high - best.value) ** 2 + (now.value - now.low) ** 2
    value = float(forgetting((right / np.maximum(rows, 1))[None])[0])
    return Interval(value, value - math.sqrt(below) / before, value + math.sqrt(above) / before, int(rows[:-1].sum()))


def bytes_of(state: TrainState, probes: int) -> dict[str, int]:
    """The bytes of a model: its exemplars with all slots; the networks that answer; the teacher; whatever else the
    method keeps between tasks (``budget.full_bytes``); and the rows held back."""
    full = full_bytes(state)
    model = full.backbones + full.heads + full.frozen + full.statistics
    kinds = {"exemplars": full.exemplars, "model": model, "teacher": full.teacher}
    return {**kinds, "rest": full.total - sum(kinds.values()), "probes": probes}


def make_report(
    method: str,
    classes: tuple[tuple, ...],
    right: Int[np.ndarray, "tasks tasks"],
    rows: Int[np.ndarray, " tasks"],
    used: dict[str, int],
) -> Report:
    """The report of a model: which rows of each task were right after each task, how many there are, and bytes."""
    share = lambda count, total: wilson_interval(int(count), int(total)) if total else None
    lost = forgetting_interval(right, rows)
    if lost is not None:
        text = (
            f"estimated forgetting {in_words(lost)}: the best accuracy so far less the present one, on average over "
            f"{len(rows) - 1} earlier task{'s' * (len(rows) > 2)}; an estimate from {lost.n} rows that were held back "
            "and never trained on"
        )
    elif len(rows) > 1:
        text = "forgetting is not estimated, since no rows of earlier tasks were held back"
    else:
        text = "nothing to forget yet: one task was learnt"
    parts = ", ".join(f"{name} {size:,}" for name, size in used.items())
    return Report(
        method=method,
        classes=classes,
        rows=tuple(int(n) for n in rows),
        learnt=tuple(float(right[j, j] / n) if n else math.nan for j, n in enumerate(rows)),
        now=tuple(share(count, n) for count, n in zip(right[-1], rows)),
        accuracy=share(right[-1].sum(), rows.sum()),
        forgetting=lost,
        bytes=used,
        text=f"{text}; bytes: {parts}, in all {sum(used.values()):,}",
    )
