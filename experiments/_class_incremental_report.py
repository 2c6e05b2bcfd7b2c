"""Tables and sentences of the class-incremental study, from the cells that it computed. All in per cent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments import _class_incremental_search as search
from experiments._class_incremental_figures import figures
from experiments._class_incremental_rows import METRICS, Entry, entries, published_of
from experiments.runner import Outcome, Table

__all__ = ["CLAIMS", "Claim", "figures", "notes", "remarks", "tables"]

MEGABYTE = 2**20
BASELINE = "replay"


class Claim(NamedTuple):
    """That one row's last accuracy is above another's, by so many points at least.

    Attributes:
      better, worse: method and read-out ("" the classifier, "_ncm" the nearest mean).
      by: points.
      where: the one setting that it is made of; empty: wherever both rows are.
    """

    better: tuple[str, str]
    worse: tuple[str, str]
    by: float = 0.0
    where: str = ""


GATES = (
    Claim(("replay", ""), ("finetune", ""), 20.0, "digits, memory 50"),
    Claim(("replay", ""), ("ewc", ""), 20.0, "digits, memory 50"),
    Claim(("replay", ""), ("lwf", ""), 20.0, "digits, memory 50"),
    Claim(("wa", ""), ("replay", ""), 8.0, "digits, memory 20"),
    Claim(("der", ""), ("replay", ""), 5.0, "digits, memory 20"),
    Claim(("icarl", "_ncm"), ("icarl", ""), 12.0, "digits, memory 20"),
    Claim(("replay", ""), ("finetune", ""), 20.0, "fashion_mnist, memory 200"),
)
"""With room below what an independent NumPy prototype reached on paired orders (38 points on
ten, 14, 13.3 and 23 on five)."""
CORRECTED = (("icarl", "_ncm"), ("wa", ""), ("bic", ""))
SURVEY = (
    Claim(("replay", ""), ("finetune", "")),
    Claim(("icarl", "_ncm"), ("replay", "")),
    Claim(("wa", ""), ("replay", "")),
    Claim(("bic", ""), ("replay", "")),
    *(Claim((grown, ""), other) for grown in ("der", "foster", "memo") for other in CORRECTED),
    Claim(("balanced_replay", ""), ("replay", "")),
)
"""The order of the survey's Table 5, and that of balanced softmax on a long tail."""
CLAIMS = (*GATES, *SURVEY)


def tables(config: Any, outcomes: Sequence[Outcome]) -> dict[str, Table]:
    """All metrics with the published figures; claims and differences as paired; what is kept; areas."""
    found, made = entries(outcomes), {}
    made["methods"] = Table(
        "Per cent, mean ± half width of the 95 % interval over orders. Last column: average / last in the survey for "
        "CIFAR-100, B0 Inc10, ResNet-32 (aligned: its comparison at DER's memory)",
        ("setting", "method", *(name.replace("_", " ") for name in METRICS), "survey"),
        tuple(_line(one) for one in found),
    )
    claims = tuple(_claims(found))
    if claims:
        made["claims"] = Table(
            "Last accuracy, paired differences over orders in points with their t interval, and how much was asked for",
            ("setting", "above", "below", "difference", "low", "high", "asked", "orders", ""),
            claims,
        )
    pairs = tuple(_pairs(found))
    if pairs:
        made["paired"] = Table(
            f"Last accuracy against {BASELINE}: paired differences in points (t interval; p by Holm in a setting)",
            ("setting", "method", "classifier", "low", "high", "p", "nearest mean", "low (nm)", "high (nm)", "orders"),
            pairs,
        )
    made["memory"] = Table(
        "What is kept after the last task: exemplars, MB (2^20 bytes) of backbones and exemplars by the survey's rule "
        "(four bytes a parameter, heads left out), of everything by the full rule; training operations of the "
        "backbones for one order; seconds for all orders, compiling included",
        ("setting", "method", "exemplars", "model MB", "exemplar MB", "full MB", "TFLOP", "steps", "seconds"),
        tuple(_kept(found)),
    )
    areas = tuple(_areas(found))
    if areas:
        made["areas"] = Table(
            "Accuracy (a fraction) times MB: the areas under average (AUC-A) and last accuracy (AUC-L) against memory, "
            "and both divided by the range of the memory; the survey's are for CIFAR-100, 7.6 to 23.5 MB",
            ("stream", "method", "AUC-A", "AUC-L", "mean average", "mean last", "survey AUC-A", "survey AUC-L"),
            areas,
        )
    return made


def _line(one: Entry) -> tuple[Any, ...]:
    printed = [published_of(one, metric) for metric in METRICS]
    given = {m.removesuffix("_ncm"): p["published"] for m, p in zip(METRICS, printed, strict=True) if p}
    survey = " / ".join(f"{given[name]:g}" for name in ("average", "last") if name in given)
    shown = ["missing" if one.values is None else interval(one.values.get(metric)) for metric in METRICS]
    return one.setting, one.method, *shown, survey or None


def interval(values: Sequence[float] | None) -> str:
    """Mean and half width with one decimal; - where there is nothing."""
    from jaxkit.evaluation import mean_interval

    if values is None:
        return "-"
    mean, low, high, n = mean_interval(values)
    return f"{mean:.1f} ± {(high - low) / 2:.1f}" if n > 1 else f"{mean:.1f}"


def _values(found: Sequence[Entry], setting: str, suffix: str = "") -> dict[str, list[float]]:
    """method -> last accuracy by order, of one read-out."""
    here = [one for one in found if one.setting == setting and one.values is not None]
    return {one.method: one.values[f"last{suffix}"] for one in here}


def _claims(found: Sequence[Entry]) -> Iterator[tuple[Any, ...]]:
    from jaxkit.evaluation import mean_interval

    for setting in dict.fromkeys(one.setting for one in found):
        gates = [claim for claim in GATES if claim.where == setting]
        asked = {(claim.better, claim.worse) for claim in gates}
        for claim in (*gates, *(one for one in SURVEY if (one.better, one.worse) not in asked)):
            sides = [_values(found, setting, suffix).get(method) for method, suffix in (claim.better, claim.worse)]
            if None in sides or len(sides[0]) != len(sides[1]) or len(sides[0]) < 2:
                continue
            mean, low, high, n = mean_interval([a - b for a, b in zip(*sides, strict=True)])
            verdict = "holds" if mean >= claim.by and low > 0 else "does not hold" if high < claim.by else "not shown"
            name = lambda side: f"{side[0]}, nearest mean" if side[1] else side[0]
            shown = (round(mean, 2), round(low, 2), round(high, 2), claim.by)
            yield setting, name(claim.better), name(claim.worse), *shown, n, verdict


def _pairs(found: Sequence[Entry]) -> Iterator[tuple[Any, ...]]:
    from jaxkit.evaluation import compare, mean_interval

    for setting in dict.fromkeys(one.setting for one in found):
        values, means = _values(found, setting), _values(found, setting, "_ncm")
        orders = len(values.get(BASELINE, ()))
        values = {name: own for name, own in values.items() if len(own) == orders}
        if orders < 2 or len(values) < 2:
            continue
        for pair in compare(values, BASELINE):
            ncm = mean_interval([a - b for a, b in zip(means[pair.method], values[BASELINE], strict=True)])
            ends = (round(value, 2) for value in (pair.difference, pair.low, pair.high))
            p = "< 0.0001" if pair.p_holm < 1e-4 else f"{pair.p_holm:.4f}"
            yield setting, pair.method, *ends, p, *(round(value, 2) for value in ncm[:3]), pair.n


def _kept(found: Sequence[Entry]) -> Iterator[tuple[Any, ...]]:
    for one in found:
        if one.outcome.result is None:
            continue
        kept, result = one.outcome.result["kept"], one.outcome.result
        sizes = (round(kept[name] / MEGABYTE, 4) for name in ("model_bytes", "exemplar_bytes", "full_bytes"))
        work = None if result["tflops"] is None else float(f"{result['tflops']:.3g}")
        yield one.setting, one.method, round(kept["exemplars"]), *sizes, work, result["steps"], result["seconds"]


def curve_of(found: Sequence[Entry], stream: str, method: str, metric: str) -> tuple[list[float], list[float]]:
    """(MB that the budgets allow, mean of the metric at each), in the order of the budgets."""
    points = []
    for one in found:
        if one.stream == stream and one.method == method and one.values is not None and one.setting.endswith(" MB"):
            megabytes = float(one.setting.rsplit(", ", 1)[1].removesuffix(" MB"))
            points.append((megabytes, sum(one.values[metric]) / len(one.values[metric])))
    points.sort()
    return [m for m, _ in points], [value for _, value in points]


def _areas(found: Sequence[Entry]) -> Iterator[tuple[Any, ...]]:
    import numpy as np

    from jaxkit.class_incremental.budget import area_under_curve
    from jaxkit.class_incremental.published import AREAS

    for stream in dict.fromkeys(one.stream for one in found):
        budgets = {one.setting for one in found if one.stream == stream and one.setting.endswith(" MB")}
        for method in dict.fromkeys(one.method for one in found if one.stream == stream):
            areas = []
            for metric in ("average", "last"):
                megabytes, values = curve_of(found, stream, method, metric)
                if len(megabytes) == len(budgets) >= 2:
                    curve = np.asarray(megabytes), np.asarray(values) / 100
                    areas.append([float(area_under_curve(*curve, normalised=n)) for n in (False, True)])
            if len(areas) == 2:
                rounded = [float(f"{areas[i][n]:.3g}") for n in (0, 1) for i in (0, 1)]
                yield stream, method, *rounded, *((AREAS.get(method) or (None,))[0] or (None, None))


def remarks(config: Any, outcomes: Sequence[Outcome]) -> list[str]:
    """What the numbers say of each setting: which claims do not hold, how near joint training is, the order."""
    found, made = entries(outcomes), []
    claims = list(_claims(found))
    for setting in dict.fromkeys(one.setting for one in found):
        mine = [claim for claim in claims if claim[0] == setting]
        asked = lambda c: f"{c[1]} above {c[2]}" + f" by {c[6]:g}" * bool(c[6])
        said = lambda c: f"{asked(c)} ({c[3]:+.1f}, {c[4]:.1f} to {c[5]:.1f})"
        for verdict in ("holds", "not shown", "does not hold"):
            told = [said(claim) for claim in mine if claim[-1] == verdict]
            if told:
                made.append(f"{setting}: {verdict}: {'; '.join(told)} (points of last accuracy, paired).")
        for text in (_joint(found, setting), _order(found, setting), _room(found, setting)):
            if text:
                made.append(f"{setting}: {text}")
    return made


def _joint(found: Sequence[Entry], setting: str) -> str:
    """How far the best row is below joint training."""
    rows = {(name, suffix): own for suffix in ("", "_ncm") for name, own in _values(found, setting, suffix).items()}
    joint = rows.get(("joint", ""))
    others = {key: own for key, own in rows.items() if key[0] != "joint" and joint and len(own) == len(joint)}
    if not others or joint is None:
        return ""
    mean = lambda own: sum(own) / len(own)
    (name, suffix), best = max(others.items(), key=lambda item: mean(item[1]))
    gap = mean(joint) - mean(best)
    above = "above" if gap > 0 else "not above"
    return (
        f"joint training is {above} all: {mean(joint):.1f} %, and next {name}{', nearest mean,' * bool(suffix)} "
        f"{mean(best):.1f} %."
    )


def _room(found: Sequence[Entry], setting: str) -> str:
    """Which methods were given more exemplars than there are rows, so that they kept them all."""
    over = []
    for one in found:
        if one.setting == setting and one.outcome.result is not None:
            given, rows = one.outcome.cell.options.get("memory") or 0, one.outcome.result["train_rows"]
            if given > rows:
                over.append(f"{one.method} ({given:,})")
    return f"room for more exemplars than there are rows, which are all kept: {', '.join(over)}." if over else ""


def _order(found: Sequence[Entry], setting: str) -> str:
    """Kendall's tau between our last accuracies and the survey's, of the read-out that the survey's is likely of."""
    from scipy.stats import kendalltau

    pairs = []
    for one in found:
        for metric in ("last", "last_ncm") if one.setting == setting and one.values is not None else ():
            given = published_of(one, metric).get("published")
            if given is not None:
                pairs.append((sum(one.values[metric]) / len(one.values[metric]), given))
    if len(pairs) < 4:
        return ""
    tau, p = kendalltau(*zip(*pairs, strict=True))
    if not tau == tau:
        return ""
    shown = "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"
    return (
        f"the order of last accuracies against the survey's on CIFAR-100 (B0 Inc10): Kendall's tau {tau:.2f} over "
        f"{len(pairs)} methods ({shown})."
    )


def trained(options: dict[str, Any]) -> str:
    """How a stream's methods are trained, in words."""
    batches = f"batches of {options['batch_size']}"
    if "recipe" in options:
        shorter = "" if options["epochs"] is None else f", shortened to {options['epochs']:g} epochs of a later task"
        source = {"paper": "text", "code": "released code"}[options["recipe"]]
        return f"{batches}, epochs and rates of the survey's {source}{shorter}"
    return (
        f"{options['epochs']:g} epochs of {batches}, learning rate {options['learning_rate']:g}, weight decay "
        f"{options['weight_decay']:g}"
    )


def notes(config: Any, outcomes: Sequence[Outcome]) -> str:
    """How the numbers were made."""
    parts = [
        "All in per cent, mean and 95 % t-interval over orders of the classes. Order i of every method has the same "
        "classes in the same tasks, the same training rows and the same test rows; the first is that of seed 1993. "
        "Average and last are accuracies on all classes seen so far, by the classifier and by the nearest mean (ncm); "
        "forgetting and intransigence are of the classifier, intransigence against joint training on the same orders. "
        "Methods without exemplars stand in every setting of their stream. SGD with momentum 0.9 and weight decay, "
        "anew in each phase of each task; a method with several phases has the epochs in each that its paper has in "
        "proportion. DER++ has 0.3 and MAS 0.1 of the learning rate, above which they diverge on some streams. The "
        "survey does not say of which read-out its figures are; those of iCaRL, and of GEM but for the comparison at "
        "equal memory, are likely of the nearest mean and stand there."
    ]
    for stream in dict.fromkeys(one.cell.options["stream"] for one in outcomes):
        done = [one for one in outcomes if one.cell.options["stream"] == stream and one.result is not None]
        if not done:
            continue
        result, options = done[0].result, done[0].cell.options
        sizes = [b - a for a, b in zip((0, *result["bounds"]), result["bounds"])]
        equal = f"{len(sizes)} tasks of {sizes[0]} classes" if len(set(sizes)) == 1 else f"tasks of {sizes} classes"
        text = (
            f"{stream}: {equal}, {result['train_rows']:,} training rows, {result['test_rows']:,} test rows "
            f"({result['source']}); {options['network']}, {trained(options)}; {options['seeds']} orders."
        )
        if any(one.cell.options.get("width") for one in done):
            widths = {one.cell.setting.rsplit(", ", 1)[1]: one.cell.options["width"] for one in done
                      if one.cell.options.get("width")}  # fmt: skip
            text += " Methods that grow have networks of width " + ", ".join(f"{w} at {s}" for s, w in widths.items())
            text += "."
        parts += [text, search.sentence(done)]
    return " ".join(part for part in parts if part)
