"""Figures of the class-incremental study: accuracy by task, accuracy against memory, where rows are put by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments._class_incremental_rows import BRANCHES, Entry, entries
from experiments.runner import Outcome

READ_OUTS = {"classifier": "", "nearest_mean": "_ncm"}
GREY = {"joint": "#222222", "replay": "#777777", "finetune": "#AAAAAA"}
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
CONFUSED = ("finetune", "replay", "wa", "der", "icarl")
MEGABYTE = 2**20


def figures(config: Any, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For each setting accuracy by task and against operations, and a confusion matrix of two methods; for each stream
    accuracy against memory."""
    found = [one for one in entries(outcomes) if one.values is not None]
    drawn = {}
    for setting in dict.fromkeys(one.setting for one in found):
        members = [one for one in found if one.setting == setting]
        counted = [one for one in members if one.outcome.result["tflops"] is not None]
        if len(counted) > 1:
            drawn[f"compute_{slug(setting)}"] = (
                compute_figure(setting, counted),
                f"{setting}: accuracy against the training operations of the backbones (TFLOP for one order), means "
                "and 95 % intervals over orders.",
            )
        drawn[f"tasks_{slug(setting)}"] = (
            curves_figure(setting, members),
            f"{setting}: accuracy on all classes seen after each task, means over orders; above the classifier, below "
            "the nearest mean. Joint training, replay and finetuning are grey in every panel.",
        )
        pair = [one for name in CONFUSED for one in members if one.method == name][:3]
        pair = ([pair[0], pair[2]] if len(pair) > 2 and pair[0].method == "finetune" else pair[:2]) or members[:2]
        drawn[f"confusion_{slug(setting)}"] = (
            confusion_figure(setting, pair),
            f"{setting}: after the last task, the share of the test rows of each task that the classifier puts into "
            "each task, means over orders.",
        )
    for stream in dict.fromkeys(one.stream for one in found):
        members = [one for one in found if one.stream == stream]
        if len({one.setting for one in members}) > 1:
            drawn[f"memory_{slug(stream)}"] = (
                memory_figure(stream, members),
                f"{stream}: accuracy against what is kept after the last task (backbones at four bytes a parameter "
                "and exemplars), means and 95 % intervals over orders.",
            )
    return drawn


def slug(text: str) -> str:
    """The text as part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in text.lower()).strip("_")


def colours_of(methods: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """method -> (colour, dash), told apart within one figure."""
    from jaxkit.evaluation import PALETTE

    return {
        name: (PALETTE[i % (len(PALETTE) - 1)], DASHES[i // (len(PALETTE) - 1) % len(DASHES)])
        for i, name in enumerate(methods)
    }


def curves_figure(setting: str, members: Sequence[Entry]) -> Any:
    """A column for each branch of the survey, a row for each read-out."""
    import numpy as np

    from jaxkit.evaluation import Figure, style

    columns = {}
    for number, branch in enumerate(BRANCHES[1:], 1):
        own = [one for one in members if one.line.branch == number and one.method not in GREY]
        if own:
            columns[branch] = own
    columns = columns or {"baseline": []}
    bounds = members[0].outcome.result["bounds"]
    with style():
        figure = Figure(1.0 + 3.6 * len(columns), 6.2)
        grid = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
        for row, read_out in enumerate(READ_OUTS):
            mean = lambda one, read_out=read_out: 100 * np.mean(one.outcome.result["curves"][read_out]["seen"], 0)
            for axes, (branch, own) in zip(grid[row], columns.items(), strict=True):
                for one in (one for one in members if one.method in GREY):
                    axes.plot(bounds, mean(one), color=GREY[one.method], linewidth=1.3, label=one.method, zorder=2)
                colours = colours_of([one.method for one in own])
                for one in sorted(own, key=lambda one: -mean(one)[-1]):
                    colour, dash = colours[one.method]
                    axes.plot(bounds, mean(one), color=colour, linestyle=dash, marker="o", markersize=3,
                              label=one.method, zorder=3)  # fmt: skip
                axes.set_xticks(bounds)
                if row == 0:
                    axes.set_title(branch)
                else:
                    axes.set_xlabel("classes seen")
                    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
            grid[row, 0].set_ylabel(f"{read_out.replace('_', ' ')}, accuracy %")
        figure.suptitle(setting, fontsize=11, x=0.01, horizontalalignment="left")
    return figure


def memory_figure(stream: str, members: Sequence[Entry]) -> Any:
    """Average accuracy at the left, last at the right; a method without exemplars is a point."""
    from jaxkit.evaluation import Figure, mean_interval, style

    methods = list(dict.fromkeys(one.method for one in members))
    colours = colours_of([name for name in methods if name not in GREY])
    with style():
        figure = Figure(10.4, 4.4)
        panels = figure.subplots(1, 2)
        for axes, metric in zip(panels, ("average", "last"), strict=True):
            for name in methods:
                points = {}
                for one in (one for one in members if one.method == name):
                    kept = one.outcome.result["kept"]
                    size = (kept["model_bytes"] + kept["exemplar_bytes"]) / MEGABYTE
                    points[size] = mean_interval(one.values[metric])
                sizes = sorted(points)
                colour, dash = colours.get(name) or (GREY[name], "-")
                axes.plot(sizes, [points[size].value for size in sizes], color=colour, linestyle=dash, marker="o",
                          markersize=3.5, label=name)  # fmt: skip
                if len(members[0].values[metric]) > 1:
                    low, high = ([getattr(points[size], end) for size in sizes] for end in ("low", "high"))
                    axes.vlines(sizes, low, high, color=colour, alpha=0.4, linewidth=1.0)
            axes.set(xlabel="kept after the last task, MB", ylabel=f"{metric} accuracy, %")
        panels[0].set_title(stream)
        panels[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize=8)
    return figure


def heights(x: Sequence[float], y: Sequence[float], gap: float, near: float) -> list[float]:
    """Where labels stand that begin at x, so that those with x nearer than ``near`` are ``gap`` apart: at y or
    above."""
    placed: dict[int, float] = {}
    for i in sorted(range(len(x)), key=lambda i: y[i]):
        placed[i] = y[i]
        for j in sorted((j for j in placed if j != i and abs(x[j] - x[i]) < near), key=lambda j: placed[j]):
            if abs(placed[j] - placed[i]) < gap:
                placed[i] = placed[j] + gap
    return [placed[i] for i in range(len(x))]


def compute_figure(setting: str, members: Sequence[Entry]) -> Any:
    """A point for each method, by its better read-out; accuracies from 0 to 100 % though few orders give wider
    intervals."""
    import numpy as np
    from matplotlib.ticker import LogLocator, NullFormatter

    from jaxkit.evaluation import Figure, mean_interval, style

    colours = colours_of([one.method for one in members if one.method not in GREY])
    best = [
        max((mean_interval(one.values[metric]) for metric in ("last", "last_ncm")), key=lambda m: m.value)
        for one in members
    ]
    spent = np.asarray([one.outcome.result["tflops"] for one in members])
    width = np.ptp(np.log(spent)) or 1.0
    at = heights(list(np.log(spent) / width), [found.value for found in best], gap=3.5, near=0.07)
    with style():
        figure = Figure(7.4, 4.4)
        axes = figure.subplots()
        for one, x, found, height in zip(members, spent, best, at, strict=True):
            colour, _ = colours.get(one.method) or (GREY[one.method], None)
            axes.plot(x, found.value, "o", color=colour, label=one.method)
            if len(one.values["last"]) > 1:
                axes.vlines(x, found.low, found.high, color=colour, alpha=0.4, linewidth=1.0)
            moved = (
                {"arrowprops": {"arrowstyle": "-", "color": colour, "linewidth": 0.5}} if height > found.value else {}
            )
            axes.annotate(one.method, (x, found.value), (x * np.exp(0.015 * width), height), fontsize=7, **moved)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}"), axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(max(0.0, min(found.value for found in best) - 10.0), 102.0)
        axes.set(xlabel="training operations, TFLOP", ylabel="last accuracy by the better read-out, %", title=setting)
    return figure


def confusion_figure(setting: str, pair: Sequence[Entry]) -> Any:
    """A square for each of two methods."""
    import numpy as np

    from jaxkit.evaluation import Figure, style

    with style():
        figure = Figure(1.2 + 3.2 * len(pair), 3.7)
        grid = figure.subplots(1, len(pair), squeeze=False)[0]
        for axes, one in zip(grid, pair, strict=True):
            shares = 100 * np.asarray(one.outcome.result["confusion"])
            number = len(shares)
            image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
            axes.grid(visible=False)
            axes.set(title=one.method, xlabel="predicted class is of task", xticks=range(number), yticks=range(number))
            axes.set_xticklabels(range(1, number + 1)), axes.set_yticklabels(range(1, number + 1))
            for i, j in np.ndindex(shares.shape) if number <= 10 else ():
                axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=8 if number <= 5 else 6,
                          color="white" if shares[i, j] > 55 else "black")  # fmt: skip
        grid[0].set_ylabel("true class is of task")
        figure.colorbar(image, ax=list(grid), label="%", shrink=0.85)
        figure.suptitle(setting, fontsize=10, x=0.01, horizontalalignment="left")
    return figure
