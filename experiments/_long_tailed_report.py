"""Tables, figures and sentences of the long-tailed study, from the rows that its cells computed. All in per cent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from experiments._long_tailed_rows import (
    METRICS,
    TAG,
    Entry,
    catalogue,
    category,
    entries,
    group_sizes,
    metrics_of,
    published_of,
)
from experiments.runner import Outcome, Table

_SHORT = {
    "baseline": "baseline",
    "class re-balancing": "re-balancing",
    "information augmentation": "augmentation",
    "module improvement": "module",
}
REFERENCE = ("uno_ic", "oltr", "bbn", "lfme")
CURVES = ("softmax", "weighted_softmax", "ldam_drw", "balanced_softmax", "crt", "sade", "paco", "tau_norm")


def tables(config: Any, outcomes: Sequence[Outcome]) -> dict[str, Table]:
    """The survey's table with ours; paired differences; the trainings."""
    found, made = entries(config, outcomes), {}
    names = [m for m in ("accuracy", "macro_accuracy", *METRICS[1:]) if any(m in metrics_of(config, e) for e in found)]
    several = len({one.setting for one in found}) > 1
    body = []
    for one in sorted(found, key=lambda e: (e.setting, category(e.line))):
        given = published_of(one, "accuracy").get("published")
        cells = ["missing" if one.values is None else _interval(one.percent(metric)) for metric in names]
        body.append((*[one.setting] * several, one.method, _SHORT.get(category(one.line)[1]), *cells, given))
    groups = dict.fromkeys(f"{e.setting}: {_groups(e.outcome)}" for e in found if e.values)
    made["survey"] = Table(
        f"Per cent, mean ± half width of the 95 % interval over seeds; last column: the survey's accuracy ({TAG}). "
        + "; ".join(groups),
        (*["setting"] * several, "method", "branch", *(name.replace("_", " ") for name in names), "survey"),
        tuple(body),
    )
    pairs = tuple(_pairs(found))
    if pairs:
        made["paired"] = Table(
            "Paired differences to softmax in points, over seeds that share rows (t interval; p by Holm in a setting)",
            ("setting", "method", "accuracy", "low", "high", "p", "few", "low (few)", "high (few)", "p (few)", "seeds"),
            pairs,
        )
    made["trainings"] = Table(
        "The trainings: accuracy on the training rows (per cent, mean and worst seed), and seconds for all seeds, "
        "compiling included",
        ("setting", "method", "trained on", "seeds", "fits", "fits at worst", "seconds"),
        tuple(_trainings(outcomes)),
    )
    return made


def _interval(values: Sequence[float] | None) -> str:
    """Mean and half width with one decimal; - where there is nothing (an empty group, no probabilities)."""
    from jaxkit.evaluation import mean_interval

    if values is None:
        return "-"
    mean, low, high, _ = mean_interval(values)
    return f"{mean:.1f} ± {(high - low) / 2:.1f}" if len(values) > 1 else f"{mean:.1f}"


def _groups(outcome: Outcome) -> str:
    rule = outcome.cell.options["groups"]
    sizes = group_sizes(outcome.result["counts"], rule)
    said = {"shots": "by shots (above 100, 20 to 100, below 20)", "rank": "by rank (thirds of the classes)"}[rule]
    return f"many, medium and few {said}, {sizes[0]}, {sizes[1]} and {sizes[2]} classes"


def differences(found: Sequence[Entry], setting: str, metric: str, against: str = "softmax") -> dict[str, Any]:
    """method -> paired comparison with another row, over the rows with as many seeds; {} where there are too few."""
    from jaxkit.evaluation import compare

    values = {one.method: one.percent(metric) for one in found if one.setting == setting}
    seeds = len(values.get(against) or ())
    values = {name: row for name, row in values.items() if row is not None and len(row) == seeds}
    if seeds < 2 or len(values) < 2:
        return {}
    return {pair.method: pair for pair in compare(values, against)}


def _pairs(found: Sequence[Entry]) -> Iterator[tuple[Any, ...]]:
    for setting in dict.fromkeys(one.setting for one in found):
        few = differences(found, setting, "few")
        for name, pair in differences(found, setting, "accuracy").items():
            tail = few.get(name)
            ends = lambda found: (
                round(found.difference, 2),
                round(found.low, 2),
                round(found.high, 2),
                _p(found.p_holm),
            )
            yield setting, name, *ends(pair), *((None,) * 4 if tail is None else ends(tail)), pair.n


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _trainings(outcomes: Sequence[Outcome]) -> Iterator[tuple[Any, ...]]:
    for one in outcomes:
        for where, fit in one.result["fit"].items() if one.result is not None else ():
            trained = {"tail": "the long tail", "twin": "the balanced twin"}[where]
            mean, worst = 100 * sum(fit) / len(fit), 100 * min(fit)
            spent = one.result["seconds"][where]
            yield one.cell.setting, one.cell.method, trained, len(fit), round(mean, 2), round(worst, 2), spent


def figures(config: Any, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For each setting: accuracy of the classes by their size, and all rows' accuracy and relative accuracy."""
    found, drawn = entries(config, outcomes), {}
    for setting in dict.fromkeys(one.setting for one in found):
        members = [one for one in found if one.setting == setting and one.values is not None]
        slug = "".join(c if c.isalnum() else "_" for c in setting.lower()).strip("_")
        tail = f"{setting}: accuracy of each class against its number of training rows"
        drawn[f"classes_{slug}"] = _class_figure(setting, members), f"{tail}, means over seeds."
        bars = f"{setting}: accuracy" + ", and relative accuracy (A_t / max(A_v, A_b))" * _has(members)
        drawn[f"methods_{slug}"] = _bar_figure(setting, members), f"{bars}, by the survey's categories."
    return drawn


def _has(members: Sequence[Entry]) -> bool:
    return any("relative_accuracy" in one.values for one in members if one.values)


def _class_figure(setting: str, members: Sequence[Entry]) -> Any:
    """Some six rows against class size: accuracies at the left, paired differences to softmax at the right."""
    import numpy as np

    from jaxkit.evaluation import PALETTE, Figure, band, style

    chosen = [one for one in members if one.method in CURVES][:6] or members[:6]
    values = {one.method: 100 * np.asarray(one.values["class_accuracy"]) for one in chosen}
    counts = np.asarray(chosen[0].outcome.result["counts"])
    base = values.get("softmax")
    others = [name for name in values if base is not None and name != "softmax" and values[name].shape == base.shape]
    with style():
        figure = Figure(9.4 if others else 5.6, 3.8)
        panels = figure.subplots(1, 2 if others else 1, squeeze=False)[0]
        mark = {"marker": "o", "markersize": 3.5} if counts.size <= 20 else {}
        colours = dict(zip(values, PALETTE, strict=False))
        for name, found in values.items():
            panels[0].plot(counts, found.mean(0), color=colours[name], label=name, **mark)
        for number, name in enumerate(others):
            mean, low, high = band(values[name] - base)
            place = counts * 1.035 ** (number - (len(others) - 1) / 2)
            panels[1].plot(place, mean, color=colours[name], **mark)
            panels[1].vlines(place, low, high, color=colours[name], alpha=0.45, linewidth=1.1)
        for axes in panels:
            axes.set_xscale("log")
            axes.invert_xaxis()
            axes.set_xlabel("training rows of the class (log)")
            if counts.size <= 12:
                shown = [n for i, n in enumerate(counts) if all(m / n > 1.25 for m in counts[:i])]
                axes.set_xticks(shown, [str(n) for n in shown])
                axes.minorticks_off()
        panels[0].set(ylabel="accuracy of the class, %", title=setting)
        if others:
            panels[1].axhline(0, color="black", linewidth=0.8)
            panels[1].set(ylabel="points", title="difference to softmax, paired, 95 % interval")
            middle = np.concatenate([(values[name] - base).mean(0) for name in others])
            room = 0.3 * (middle.max() - middle.min()) + 3
            panels[1].set_ylim(middle.min() - room, middle.max() + room)
        panels[0].legend(loc="lower left")
    return figure


def _bar_figure(setting: str, members: Sequence[Entry]) -> Any:
    """A bar a row, grouped and coloured by category; accuracy at the left, relative accuracy at the right."""
    from jaxkit.evaluation import PALETTE, Figure, mean_interval, style

    members = sorted(members, key=lambda one: category(one.line))
    panels = ["accuracy", *(["relative_accuracy"] if _has(members) else [])]
    groups = list(dict.fromkeys(category(one.line) for one in members))
    places = [number + 0.7 * groups.index(category(one.line)) for number, one in enumerate(members)]
    with style():
        figure = Figure(3.4 + 2.7 * len(panels), 1.3 + 0.2 * (len(members) + 0.7 * len(groups)))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, metric in zip(grid, panels, strict=True):
            ends: list[float] = []
            for place, one in zip(places, members, strict=True):
                values = one.percent(metric)
                if values is None:
                    continue
                mean, low, high, n = mean_interval(values)
                colour = PALETTE[groups.index(category(one.line))]
                axes.barh(place, mean, 0.72, color=colour, alpha=0.75)
                if n > 1:
                    axes.plot([low, high], [place, place], color="black", linewidth=1.1)
                ends += [mean] if n < 2 else [low, high]
            room = max(max(ends) - min(ends), 1.0)
            axes.set_xlim(max(0.0, min(ends) - 0.25 * room), max(ends) + 0.06 * room)
            axes.set_xlabel(metric.replace("_", " ") + ", %")
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        grid[0].set_yticks(places, [one.method for one in members], fontsize=8)
        grid[0].set_ylim(places[-1] + 0.8, places[0] - 0.8)
        handles = [grid[0].barh(0, 0, color=PALETTE[i], alpha=0.75) for i in range(len(groups))]
        figure.legend(handles, [name for _, name in groups], loc="outside upper center",
                      ncols=2, fontsize=8, title=f"{setting} (axes do not begin at 0)", title_fontsize=9)  # fmt: skip
    return figure


def remarks(config: Any, outcomes: Sequence[Outcome]) -> list[str]:
    """What the numbers say of each setting, and of the survey's findings which hold there and which do not."""
    found, made = entries(config, outcomes), []
    for setting in dict.fromkeys(one.setting for one in found):
        said = (_against_softmax(found, setting), *_findings(found, setting), _order(found, setting))
        for text in (*said, _unfinished(outcomes, setting)):
            if text:
                made.append(f"{setting}: {text}")
    return made


def _against_softmax(found: Sequence[Entry], setting: str) -> str:
    pairs = differences(found, setting, "accuracy")
    if not pairs:
        return ""
    told = lambda names: ", ".join(f"{name} {pairs[name].difference:+.1f}" for name in names)
    ranked = sorted(pairs, key=lambda name: -pairs[name].difference)
    above = [name for name in ranked if pairs[name].p_holm < 0.05 and pairs[name].difference > 0]
    below = [name for name in ranked if pairs[name].p_holm < 0.05 and pairs[name].difference < 0]
    rest = [name for name in ranked if name not in (*above, *below)]
    parts = [f"{word}: {told(names)}" for word, names in (
        ("more accurate than softmax", above), ("less accurate", below), ("no difference shown", rest),
    ) if names]  # fmt: skip
    n = next(iter(pairs.values())).n
    return f"{'; '.join(parts)} (points; paired t over {n} seeds, Holm, 5 %)."


def _findings(found: Sequence[Entry], setting: str) -> list[str]:
    """The survey's findings that can be asked of these rows, each with the paired difference and whether it holds."""
    said = lambda pair: f"{pair.difference:+.1f} points ({pair.low:.1f} to {pair.high:.1f})"
    holds = lambda pair, sign: (
        "holds" if sign * (pair.low if sign > 0 else pair.high) > 0
        else "does not hold" if sign * (pair.high if sign > 0 else pair.low) < 0 else "is not shown"
    )  # fmt: skip
    made = []
    few, many = (differences(found, setting, metric).get("balanced_softmax") for metric in ("few", "many"))
    if few is not None and many is not None:
        made.append(
            f"that balanced softmax gains on few-shot classes {holds(few, 1)}: {said(few)}, with {said(many)} on "
            "many-shot ones."
        )
    twice = differences(found, setting, "accuracy", "balanced_softmax").get("balanced_softmax_la")
    if twice is not None:
        made.append(
            f"that two ways of re-balancing exclude each other (survey, Table 7) {holds(twice, -1)}: balanced softmax "
            f"adjusted once more changes by {said(twice)}."
        )
    sampled = differences(found, setting, "accuracy", "crt").get("decouple_cb_crt")
    if sampled is not None:
        made.append(
            f"that class-balanced sampling spoils the representation (survey, Table 5) {holds(sampled, -1)}: cRT after "
            f"it changes by {said(sampled)} against cRT after instance sampling."
        )
    return made


def _unfinished(outcomes: Sequence[Outcome], setting: str) -> str:
    """The rows whose training accuracy says that they would gain by more steps, or are not meant to fit."""
    fits = {
        one.cell.method: 100 * sum(one.result["fit"]["tail"]) / len(one.result["fit"]["tail"])
        for one in outcomes
        if one.cell.setting == setting and one.result is not None and one.cell.options["network"] != "linear"
    }
    short = [f"{name} {fit:.0f} %" for name, fit in fits.items() if fit < 95]
    return f"below 95 % of the training rows after as many steps as the others: {', '.join(short)}." if short else ""


def _order(found: Sequence[Entry], setting: str) -> str:
    """Kendall's tau between our accuracies and the survey's, over the re-balancing group."""
    from scipy.stats import kendalltau

    pairs = []
    for one in found:
        ours = one.percent("accuracy") if one.setting == setting else None
        group = one.line.categories[0] in ("baseline", "class re-balancing")
        theirs = published_of(one, "accuracy").get("published")
        if ours is not None and group and theirs is not None:
            pairs.append((sum(ours) / len(ours), theirs))
    if len(pairs) < 4:
        return ""
    tau, p = kendalltau(*zip(*pairs, strict=True))
    if not tau == tau:
        return ""
    return (
        f"the order of the re-balancing group against the survey's on ImageNet-LT: Kendall's tau {tau:.2f} over "
        f"{len(pairs)} methods (p {'' if p < 1e-4 else '= '}{_p(p)})."
    )


def notes(config: Any, outcomes: Sequence[Outcome]) -> str:
    """How the numbers were made."""
    parts = [
        "All in per cent, mean and 95 % t-interval over seeds. Seed i of every method has the same training rows, "
        "classes in the same order and the same test rows. Settings of methods are their papers' or codes', the same "
        "for all data; nothing is chosen on test rows. SGD with momentum 0.9 and weight decay; the learning rate falls "
        "by a half cosine in each stage that starts its optimizer anew. Relative accuracy is A_t / max(A_v, A_b): "
        "softmax (A_v) and the method itself (A_b) on a balanced set of the same size. Accuracy in a group is the mean "
        "of its classes."
    ]
    if any(one.cell.method == "paco" and one.cell.options["network"] == "convnet" for one in outcomes):
        from experiments._long_tailed_runs import SLOWER, SMALL

        small = ", ".join(f"{name} {value:g}" for name, value in SMALL["paco"].items())
        parts.append(
            f"PaCo: {small}, and {SLOWER['paco']:g} of the learning rate, at all of which one seed in five dies."
        )
    for setting in dict.fromkeys(one.cell.setting for one in outcomes):
        done = [one for one in outcomes if one.cell.setting == setting and one.result is not None]
        if not done:
            continue
        result, options = done[0].result, done[0].cell.options
        counts = result["counts"]
        text = (
            f"{setting}: {counts[0]} to {counts[-1]} training rows a class ({sum(counts):,} in all, {len(counts)} "
            f"classes), {result['test_rows']:,} test rows ({result['source']}); {options['network']}, "
            f"{options['steps']:,} steps of {options['batch_size']} rows, learning rate {options['learning_rate']:g}; "
            f"{_groups(done[0])}."
        )
        if result["digests"]:
            text += f" Rows of the first seed: {result['digests'][0]}."
        else:
            text += (
                " No balanced twin, so no relative accuracy. Accuracy is that of the held-out rows as they are, macro "
                "accuracy the mean of the classes."
            )
        vanilla = next((one for one in done if one.cell.method == "softmax"), None)
        if vanilla is not None and options["network"] != "linear":
            fit = 100 * min(vanilla.result["fit"]["tail"])
            text += f" Cross-entropy fits {fit:.1f} % of the training rows (worst seed)" + (
                "." if fit >= 99 else ": less than 99 %, more --steps would change the comparison."
            )
        parts.append(text)
    if any(one.cell.method in ("lfme", "reslt") and one.cell.options["relative"] for one in outcomes):
        parts.append("LFME and ResLT group classes by rank on the balanced twin, where all counts are equal.")
    shown = [name for name in REFERENCE if any(one.cell.method == name for one in outcomes)]
    if shown:
        parts.append(f"Reference rows, in which nothing was tuned: {', '.join(shown)}.")
    return " ".join(parts)


def tail_profile(task: Any, rule: str) -> list[str]:
    """The user's data before anything is trained: counts, imbalance, Gini, groups, and which methods apply."""
    import numpy as np

    from experiments._long_tailed_runs import unsuited

    counts = np.asarray(task.counts, float)
    size = counts.size
    gini = float(np.sum((2 * np.arange(1, size + 1) - size - 1) * np.sort(counts)) / (size * counts.sum()))
    shown = [f"{name} {count}" for name, count in zip(task.names, task.counts.tolist(), strict=True)]
    listed = ", ".join(shown) if size <= 20 else f"{', '.join(shown[:8])}, ..., {', '.join(shown[-8:])}"
    groups = group_sizes(task.counts, rule)
    reasons = {name: unsuited(name, task, rule) for name in catalogue()}
    apply = [name for name, reason in reasons.items() if not reason]
    lines = [
        f"training rows of each class: {listed}",
        f"tail: {int(counts.sum()):,} rows, {size} classes, imbalance {counts[0] / counts[-1]:.3g}, Gini {gini:.2f}",
        f"groups by {rule}: many {groups[0]}, medium {groups[1]}, few {groups[2]} classes",
        f"methods that apply (--methods): {', '.join(apply)}",
    ]
    lines += [f"does not apply: {name}, {reason}" for name, reason in reasons.items() if reason]
    if counts[0] / counts[-1] < 1.5:
        lines.append("the classes are nearly balanced: no method of this study is expected to help")
    return lines
