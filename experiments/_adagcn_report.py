"""Tables, figures and sentences of the AdaGCN study, from what its cells computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from experiments._adagcn_rows import (
    RANDOM,
    TITLES,
    accuracy_name,
    main_outcomes,
    percent,
    rows,
    selected,
    weightings,
)
from experiments.runner import Outcome, Table


def tables(config: Any, outcomes: Sequence[Outcome]) -> dict[str, Table]:
    """Paired differences between the weightings, both forms of +-, the architectures, and accuracy by depth."""
    made = {}
    order = order_rows(outcomes)
    if order:
        made["order"] = Table(
            "The order of methods: paired differences of accuracy, in points, on the splits that both have (t "
            "interval, p by Holm over a setting)",
            ("setting", "method", "against", "difference", "low", "high", "splits", "p"),
            order,
        )
    ablation = ablation_rows(outcomes)
    if ablation:
        made["ablation"] = Table(
            "Ablation: paired differences of accuracy, in points, on the same splits (t interval, p by Holm)",
            ("setting", "weighting", "against", "difference", "low", "high", "splits", "p"),
            ablation,
        )
    spread = spread_rows(config, outcomes)
    if spread:
        made["spread"] = Table(
            "Both forms of ± (points): the standard deviation over splits, and the half width of the 95 % bootstrap "
            "interval of the mean over splits; the papers print the latter over 100 runs, 20 splits by 5 "
            "initialisations (AdaGCN's README calls it Std)",
            ("setting", "method", "mean", "standard deviation", "bootstrap half width", "splits"),
            spread,
        )
    boosted = boosting_rows(outcomes)
    if boosted:
        made["hops"] = Table(
            "Hop by hop, means over splits: accuracy of the sum of the first hops and of each hop alone (%), and the "
            "effective sample size of the weights with which the hop was trained",
            ("setting", "weighting", "sum over hops", "hop alone", "effective sample size"),
            boosted,
        )
    built = architecture_rows(outcomes)
    if built:
        made["architecture"] = Table(
            "Architectures, read off the programs: where propagation happens, sums over edges in one forward pass, "
            "propagations of all features outside the steps, parameters, what is summed",
            ("setting", "method", "propagation", "sums a forward pass", "outside", "parameters", "what is summed"),
            built,
        )
    deep = depth_rows(outcomes)
    if deep:
        made["depth"] = Table(
            "Test accuracy (%) by depth: hops or layers", ("setting", "method", "depth", "mean", "splits"), deep
        )
    return made


def ablation_rows(outcomes: Sequence[Outcome]) -> tuple[tuple[Any, ...], ...]:
    """Every weighting against samme_r (the algorithm) and against uniform (no boosting)."""
    from jaxkit.evaluation import compare

    found = []
    for setting in dict.fromkeys(one.cell.setting for one in main_outcomes(outcomes)):
        done = {name: percent(result["test"]) for name, result in weightings(setting, outcomes).items()}
        if len(done) < 2 or len({len(values) for values in done.values()}) > 1:
            continue
        for baseline in [name for name in ("uniform", "samme_r") if name in done]:
            pairs = compare(done, baseline)
            if pairs[0].n > 1:
                found += [
                    (setting, pair.method, pair.against, pair.difference, pair.low, pair.high, pair.n, pair.p_holm)
                    for pair in pairs
                    if (baseline, pair.method) != ("samme_r", "uniform")  # it stands there the other way round
                ]
    return tuple(found)


def order_rows(outcomes: Sequence[Outcome]) -> tuple[tuple[Any, ...], ...]:
    """The selected weighting and samme_r against the best single hop and every baseline, on their common splits."""
    from jaxkit.evaluation import holm, mean_interval, paired_t_test

    found = []
    for setting in dict.fromkeys(one.cell.setting for one in main_outcomes(outcomes)):
        done, choice = weightings(setting, outcomes), selected(setting, outcomes)
        others = {
            TITLES[one.cell.method]: one.result["test"]
            for one in main_outcomes(outcomes)
            if one.cell.setting == setting and one.result is not None and not one.cell.method.startswith("adagcn_")
        }
        if "uniform" in done:
            others = {TITLES["best_hop"]: done["uniform"]["best_hop"], **others}
        lines, p = [], []
        for name in dict.fromkeys([choice, "samme_r"]) if choice is not None else list(done)[:1]:
            for other, values in others.items() if name in done else ():
                common = min(len(values), len(done[name]["test"]))
                if common < 2:
                    continue
                one, two = percent(done[name]["test"][:common]), percent(values[:common])
                low_high = mean_interval([a - b for a, b in zip(one, two, strict=True)])
                lines.append((setting, TITLES[f"adagcn_{name}"], other, *low_high))
                p.append(paired_t_test(one, two).p)
        corrected = holm(p).tolist() if p else []
        found += [(*line, "< 0.0001" if value < 1e-4 else round(value, 4)) for line, value in zip(lines, corrected)]
    return tuple(found)


def spread_rows(config: Any, outcomes: Sequence[Outcome]) -> tuple[tuple[Any, ...], ...]:
    """Mean, standard deviation and bootstrap half width of every finished method with two splits or more."""
    from jaxkit.graphs import half_widths

    found = []
    for one in main_outcomes(outcomes):
        if one.result is None or len(one.result["test"]) < 2:
            continue
        values = percent(one.result["test"])
        std, half = half_widths(values)
        found.append((one.cell.setting, TITLES[one.cell.method], sum(values) / len(values), std, half, len(values)))
    return tuple(found)


def _mean(values: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*values, strict=True)]


def boosting_rows(outcomes: Sequence[Outcome]) -> tuple[tuple[Any, ...], ...]:
    """What each hop adds, for each weighting, hop 0 first."""
    found = []
    for setting in dict.fromkeys(one.cell.setting for one in main_outcomes(outcomes)):
        for name, result in weightings(setting, outcomes).items():
            line = lambda values, digits: " ".join(f"{value:.{digits}f}" for value in values)
            together, alone = (line(percent(_mean(result[name])), 1) for name in ("depth", "single"))
            found.append((setting, name, together, alone, line(_mean(result["ess"]), 0)))
    return tuple(found)


WHERE = {
    "adagcn": ("between the trainings of hops", "h of every hop's network"),
    "released": ("between the trainings of hops", "h of every hop's network"),
    "mlp": ("nowhere", "nothing"),
    "hop_regression": ("before training", "a linear map of each hop"),
    "sgc": ("before training", "nothing: the last hop alone"),
    "gcn": ("in every layer of every step", "nothing: layers are composed"),
    "gat": ("in every layer of every step, by learned weights", "nothing: layers are composed"),
    "appnp": ("after the network, in every step", "the predictions of hops, with geometric weights"),
    "ppnp": ("after the network, by a dense inverse", "the predictions of all nodes, by PageRank"),
    "jknet": ("in every layer of every step", "the layers' features, concatenated"),
    "gcnii": ("in every layer of every step", "layers with the first one added"),
    "mixhop": ("in every layer of every step, several powers", "powers, concatenated"),
}


def architecture_rows(outcomes: Sequence[Outcome]) -> tuple[tuple[Any, ...], ...]:
    """One line for each architecture of a setting; the weightings of AdaGCN share one."""
    found = {}
    for one in main_outcomes(outcomes):
        if one.result is None:
            continue
        method = "adagcn" if one.cell.method.startswith("adagcn_") else one.cell.method
        about, (where, summed) = one.result["architecture"], WHERE[method]
        title = "AdaGCN" if method == "adagcn" else TITLES[method]
        counts = about["per_step"], about["before"], about["parameters"]
        found.setdefault((one.cell.setting, title), (where, *counts, summed))
    return tuple((*key, *values) for key, values in found.items())


def depth_rows(outcomes: Sequence[Outcome]) -> tuple[tuple[Any, ...], ...]:
    """The numbers of the depth figure."""
    found = []
    for one in outcomes:
        if one.cell.method.endswith("_depth") and one.result is not None:
            title = _depth_title(one)
            for depth, values in zip(one.cell.options["depths"], one.result["depth"], strict=True):
                found.append((one.cell.setting, title, depth, 100 * sum(values) / len(values), len(values)))
    return tuple(found)


def _depth_title(one: Outcome) -> str:
    method = one.cell.method.removesuffix("_depth")
    return TITLES["adagcn_samme_r"] if method == "adagcn" else TITLES[method]


def figures(config: Any, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Accuracies beside the published ones, hops, accuracy against depth, and against labels a class."""
    from jaxkit.evaluation import bars_with_published, learning_curves

    drawn = {}
    main, metric = main_outcomes(outcomes), accuracy_name(config)
    slug = lambda text: re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if main:
        bars = bars_with_published([row for row in rows(config, outcomes) if row.metric == metric], metric)
        drawn["accuracy"] = bars, f"{metric.split(',')[0].capitalize()}, mean and 95 % interval over splits."
    for setting in dict.fromkeys(one.cell.setting for one in main):
        done = weightings(setting, outcomes)
        if done:
            curves = {
                name: (list(range(len(result["depth"][0]))), [percent(split) for split in result["depth"]])
                for name, result in done.items()
            }
            if "uniform" in done:
                alone = [percent(split) for split in done["uniform"]["single"]]
                curves["hop alone (uniform)"] = (list(range(len(alone[0]))), alone)
            figure = learning_curves(curves, metric, title=setting, xlabel="hop", over="splits")
            drawn[f"hops_{slug(setting)}"] = figure, f"{setting}: the sum over the first hops, by weighting."
    deep = [one for one in outcomes if one.cell.method.endswith("_depth")]
    for setting in dict.fromkeys(one.cell.setting for one in deep):
        curves = {
            _depth_title(one): (one.cell.options["depths"], list(zip(*map(percent, one.result["depth"]), strict=True)))
            for one in deep
            if one.cell.setting == setting
        }
        figure = learning_curves(curves, metric, title=setting, xlabel="depth", over="splits")
        caption = f"{setting}: accuracy against depth (hops of AdaGCN, SGC and APPNP; layers of GCN)."
        drawn[slug(f"depth_{setting.split(',')[0]}")] = figure, caption
    drawn.update(_label_figures(main, metric, slug))
    return drawn


def _label_figures(main: Sequence[Outcome], metric: str, slug: Any) -> dict[str, Any]:
    """Accuracy against training nodes a class, where several numbers were asked for."""
    from jaxkit.evaluation import learning_curves

    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for one in main:
        data, title = one.cell.setting.split(",")[0], TITLES[one.cell.method]
        found.setdefault(data, {}).setdefault(title, {})[one.cell.options["labels"]] = percent(one.result["test"])
    drawn = {}
    for data, methods in found.items():
        if max(len(series) for series in methods.values()) < 2:
            continue
        curves = {}
        for title, series in methods.items():  # by split, as many as every number of labels has
            splits = min(map(len, series.values()))
            curves[title] = sorted(series), list(zip(*(series[n][:splits] for n in sorted(series)), strict=True))
        figure = learning_curves(curves, metric, title=data, xlabel="training nodes a class", over="splits")
        drawn[f"labels_{slug(data)}"] = figure, f"{data}: accuracy against training nodes a class."
    return drawn


def remarks(config: Any, outcomes: Sequence[Outcome]) -> list[str]:
    """What the ablation says, in one sentence a setting, from its numbers alone."""
    from jaxkit.evaluation import compare

    said = []
    for setting in dict.fromkeys(one.cell.setting for one in main_outcomes(outcomes)):
        done, choice = weightings(setting, outcomes), selected(setting, outcomes)
        if choice is None:
            continue
        text = f"{setting}: by the stopping nodes the weighting {choice!r} is selected."
        if choice in RANDOM:
            text += " It deals the weights to the nodes at random at every epoch: what it gains comes from random "
            text += "reweighting and not from boosting."
        paired = lambda one, two: compare({name: percent(done[name]["test"]) for name in (one, two)}, two)[0]
        for one, two, what in (
            (choice, "uniform", "its accuracy"),
            ("samme_r", "uniform", "boosting as the paper states it (samme_r)"),
        ):
            same = one in done and two in done and len(done[one]["test"]) == len(done[two]["test"]) > 1
            if one == two or not same or (one == "samme_r" and what == "its accuracy"):
                continue
            pair = paired(one, two)
            where = "above" if pair.low > 0 else "below" if pair.high < 0 else "not distinguishable from"
            text += (
                f" {what[0].upper()}{what[1:]} is {where} that of a plain sum over hops: {pair.difference:+.2f} points "
                f"({pair.low:.2f} to {pair.high:.2f}, {pair.n} splits)."
            )
        said.append(text)
    return said


def notes(config: Any, outcomes: Sequence[Outcome]) -> str:
    """How the numbers were made."""
    done = {one.cell.setting: one for one in main_outcomes(outcomes) if one.result is not None}
    where = "validation nodes of the protocol's other splits" if config.validation else "the test nodes"
    parts = [
        f"Accuracy on {where}; an interval is over splits (training and stopping nodes; the means of their "
        "initialisations) and says nothing of the choice of test nodes, which are the same in every split. The best "
        "state of every baseline is chosen on the stopping nodes."
    ]
    boosted = next((one for one in main_outcomes(outcomes) if one.cell.method.startswith("adagcn_")), None)
    if boosted is not None:
        options = boosted.cell.options
        ends = {"hop": "its best state on the stopping nodes", "none": "its last state", "run": "the best state so far"}
        parts.append(
            f"AdaGCN: {options['layers']} hops (0 to {options['layers'] - 1}), {options['hidden']} hidden units, "
            f"{options['epochs']} epochs a hop, each ending with {ends[options['restore']]}; Adam 0.01, weight decay "
            f"{options['weight_decay']:g}, dropout {options['dropout']:g} of the features"
            + (", a ReLU on the logits." if options["output_relu"] else ".")
        )
    for setting, one in done.items():
        train, stopping, asked = one.result["sizes"]
        said = "".join(f" {note[0].upper()}{note[1:]}." for note in one.result["notes"])
        fixed = " The split is fixed: runs differ in their initialisation." if one.result["fixed"] else ""
        parts.append(
            f"{setting}: {one.result['nodes']:,} nodes, {train} to train on, {stopping} to stop by, {asked} to "
            f"measure on.{fixed}{said}"
        )
    if config.dataset == ("auto",) and config.data is None:
        found = next(iter(dict.fromkeys(one.cell.setting for one in outcomes)), "")
        if found.startswith("digits_knn"):
            parts.append(
                "Citeseer could not be had (python -m jaxkit.data get citeseer), so this is the embedded graph of "
                "scikit-learn's digits and their nearest neighbours, for which nothing is published."
            )
    return " ".join(parts)
