"""One figure style: sober axes, a palette that colour-blind readers can tell apart, intervals wherever there are runs.

Figures are made without pyplot, so they need no display, never touch the global settings, and are not kept alive by
them; a notebook shows the returned ``Figure`` by itself. ``save`` writes a small PNG atomically.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator

from jaxkit import check
from jaxkit.evaluation.calibration import Bins
from jaxkit.evaluation.files import write_atomic
from jaxkit.evaluation.intervals import check_level
from jaxkit.evaluation.table import FROM_MEMORY, Row, checked

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), told apart with any common colour blindness; their yellow is left out, too pale for lines."""

_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
_GREY = "#666666"
STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=list(PALETTE)),
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


def style() -> AbstractContextManager[None]:
    """The style as a context (``with style(): ...``); the global settings are as before when it ends."""
    return matplotlib.rc_context(STYLE)


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure drawn by Agg that a notebook shows whether or not pyplot was ever imported."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return _png(self, 100)


def _png(figure: matplotlib.figure.Figure, dpi: int) -> bytes:
    out = io.BytesIO()
    with style():
        # No version in the file: a run that is repeated gives the same bytes.
        figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return out.getvalue()


def band(values: Any, level: float | int = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and t-interval over axis 0 of ``values [seeds, steps]``: (mean, low, high); the ends are nan for one seed.

    A nan (not measured at this step for this seed) is left out of its step; a step without any value is nan.
    """
    values = np.asarray(values, np.float64)
    n = np.sum(~np.isnan(values), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=0) / n
        deviation = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.where(n > 1, n - 1, np.nan))
        half = scipy.stats.t.ppf((1 + check_level(level)) / 2, np.maximum(n - 1, 1)) * deviation / np.sqrt(n)
    return mean, mean - half, mean + half


def learning_curves(
    curves: Mapping[str, tuple[Any, Any]],
    metric: str,
    *,
    title: str = "",
    xlabel: str = "step",
    level: float | int = 0.95,
    log_y: bool = False,
    reference: Mapping[str, float | int] | None = None,
    over: str = "seeds",
) -> Figure:
    """Mean over seeds against the step, with the t-interval as a band; of two seeds, whose interval would be 12.7
    standard errors wide, each as a thin line instead.

    Args:
      curves: ``{label: (steps [steps], values [seeds, steps] or [steps])}``; nan where nothing was measured.
      metric: label of the y axis, with its unit where it has one.
      title: above the axes; may be empty.
      xlabel: label of the x axis.
      level: of the band.
      log_y: a logarithmic y axis (losses).
      reference: ``{label: value}``, horizontal lines such as a published accuracy.
      over: what the runs of a curve differ in, for the title.

    Raises:
      UsageError: no curve, or steps and values of different length (the curve is named).
    """
    if not curves:
        raise check.UsageError("learning_curves needs at least one curve {label: (steps, values)}, got none")
    with style():
        figure = Figure(6.4, 3.6)
        axes = figure.subplots()
        shown = ""
        ends = []
        for i, (label, (steps, values)) in enumerate(curves.items()):
            steps, values = np.asarray(steps, np.float64), np.atleast_2d(np.asarray(values, np.float64))
            if steps.ndim != 1 or values.ndim != 2 or values.shape[1] != steps.size:
                raise check.UsageError(
                    f"curve {label!r}: values must be [seeds, {steps.size}] for {steps.size} steps, got {values.shape}"
                )
            mean, low, high = band(values, level)
            colour, dash = PALETTE[i % len(PALETTE)], _DASHES[(i // len(PALETTE)) % len(_DASHES)]
            marker = "o" if steps.size == 1 else None
            axes.plot(steps, mean, color=colour, linestyle=dash, marker=marker, label=label)
            if len(values) == 2:
                axes.plot(steps, values.T, color=colour, linewidth=0.6, alpha=0.7)
                shown = shown or f"  (mean and each of 2 {over})"
            elif np.isfinite(low).any():
                axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
                shown = f"  (mean and {100 * level:g} % interval over {over})"
            ends.append(mean[np.isfinite(mean)][-1] if np.isfinite(mean).any() else -math.inf)
        for name, value in (reference or {}).items():
            axes.axhline(float(value), color=_GREY, linewidth=1.0, linestyle=(0, (2, 2)), label=name, zorder=1)
        if log_y:
            axes.set_yscale("log")
        axes.set_xlabel(_plain(xlabel))
        axes.set_ylabel(_plain(metric))
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.set_title(_plain((title + shown).strip()))
        _legend(axes, ends)
    return figure


def _legend(axes: Axes, ends: Sequence[float]) -> None:
    """A legend beside the axes, where it can cover nothing, its entries in the order in which the curves end."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(ends)), key=lambda i: -ends[i]) + list(range(len(ends), len(handles)))
    axes.legend(
        [handles[i] for i in order],
        [_short(labels[i], 28) for i in order],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
    )


def _short(text: str, most: int) -> str:
    text = text if len(text) <= most else text[: most - 1] + "…"
    return _plain(text)


def _plain(text: str) -> str:
    """A label is text: a dollar sign in a name begins no formula."""
    return text.replace("$", r"\$")


def bars_with_published(rows: Iterable[Row], metric: str, *, title: str = "") -> Figure:
    """Our values as dots with intervals, the published ones as hollow diamonds: a panel a setting, a line a method.

    A cell that was not run says ``missing``; a published number from memory is pale, as it is shown and not asserted.

    Raises:
      UsageError: no row has this metric.
    """
    rows = checked(rows)
    metric = check.choose("metric", metric, dict.fromkeys(row.metric for row in rows))
    rows = [row for row in rows if row.metric == metric]
    studies = len({row.study for row in rows}) > 1
    panel = lambda row: f"{row.study} / {row.setting}" if studies else row.setting
    panels = list(dict.fromkeys(panel(row) for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    columns = len(panels) if len(panels) <= 4 else 3
    lines = math.ceil(len(panels) / columns)
    with style():
        width = 1.6 + 2.35 * columns if columns > 1 else 6.0
        figure = Figure(width, lines * (0.75 + 0.3 * len(methods)) + 0.7)
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axes, name in zip(grid.flat, panels, strict=False):
            _panel(axes, [row for row in rows if panel(row) == name], methods)
            axes.set_title(_short(name, 30 if columns > 1 else 60))
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        grid[0, 0].set_ylim(len(methods) - 0.5, -0.5)
        figure.supxlabel(_plain(metric), fontsize=9.5)
        if title:
            figure.suptitle(_plain(title), fontsize=11, x=0.01, horizontalalignment="left")
        handles: dict[str, Any] = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if len(handles) > 1:
            figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles))
    return figure


def _panel(axes: Axes, rows: Sequence[Row], methods: Sequence[str]) -> None:
    axes.set_yticks(range(len(methods)), [_short(method, 32) for method in methods])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
    axes.margins(x=0.12)
    for row in rows:
        at = methods.index(row.method)
        if row.published is not None:
            pale = FROM_MEMORY in row.tag.lower()
            axes.plot(
                *(row.published, at),
                linestyle="none",
                marker="D",
                markersize=7,
                markerfacecolor="none",
                markeredgewidth=1.4,
                color="#F0B48A" if pale else PALETTE[1],
                label="published, from memory" if pale else "published",
                zorder=2,
            )
        if row.value is None:
            axes.annotate(
                "missing", (0.02, at), xycoords=("axes fraction", "data"), va="center", color=_GREY, style="italic"
            )
            continue
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [at, at], color=PALETTE[0], linewidth=2.2, solid_capstyle="butt", zorder=3)
        axes.plot(
            row.value, at, "o", color=PALETTE[0], markersize=5, zorder=4, linestyle="none", label="ours, 95 % interval"
        )


def reliability_diagram(bins: Bins, *, title: str = "", ece: Any = None) -> Figure:
    """Accuracy against confidence by bin, with the diagonal of perfect calibration and the share of rows below.

    Args:
      bins: from ``reliability`` (equal-width bins).
      title: above the axes; may be empty.
      ece: written into the diagram if given.
    """
    accuracy, confidence, share = (np.asarray(values, np.float64) for values in bins)
    if accuracy.ndim != 1 or not accuracy.shape == confidence.shape == share.shape:
        raise check.UsageError(
            f"bins must hold three vectors of one length, got {accuracy.shape}, {confidence.shape}, {share.shape}"
        )
    count = accuracy.size
    centres, width = (np.arange(count) + 0.5) / count, 1 / count
    with style():
        figure = Figure(4.4, 5.0)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        top.plot(
            [0, 1], [0, 1], color=_GREY, linewidth=1.0, linestyle=(0, (3, 2)), label="perfectly calibrated", zorder=3
        )
        full = share > 0
        top.bar(
            centres[full],
            accuracy[full],
            0.94 * width,
            color=PALETTE[5],
            edgecolor=PALETTE[0],
            linewidth=0.6,
            label="accuracy",
        )
        top.plot(
            confidence[full], accuracy[full], "o", color=PALETTE[1], markersize=4, label="mean confidence", zorder=4
        )
        top.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
        top.legend(loc="upper left", frameon=True, edgecolor="none", framealpha=0.85)
        if ece is not None:
            top.text(0.97, 0.04, f"ECE {float(ece):.3f}", transform=top.transAxes, ha="right", fontsize=10, bbox=_BOX)
        if title:
            top.set_title(_plain(title))
        bottom.bar(centres, share, 0.94 * width, color="#B0B0B0")
        bottom.set(xlabel="confidence", ylabel="share of rows")
        bottom.set_ylim(bottom=0)
    return figure


_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2.0}


def save(
    figure: matplotlib.figure.Figure, path: str | os.PathLike, *, dpi: int = 150, most_bytes: int = 200_000
) -> Path:
    """Write ``figure`` as PNG, atomically, making its folders; return the path.

    The resolution starts at ``dpi`` and falls by steps to 60 until the file holds at most ``most_bytes``.

    Raises:
      UsageError: the path does not end in .png, or the figure does not fit.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise check.UsageError(f"figures are saved as PNG: give a path that ends in .png, got {path.name!r}")
    content = b""
    for each in dict.fromkeys((dpi, 120, 100, 80, 60)):
        if each > dpi:
            continue
        content = _png(figure, each)
        if len(content) <= most_bytes:
            return write_atomic(path, content)
    raise check.UsageError(f"{path.name}: {len(content)} bytes at {each} dpi, more than {most_bytes}; draw less")
