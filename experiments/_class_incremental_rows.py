"""The rows of the class-incremental study: which methods there are, what is read off their cells, what is in print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.runner import Outcome, choices
from jaxkit import check

STUDY = "class_incremental"
METRICS = ("average", "last", "average_ncm", "last_ncm", "forgetting", "intransigence")
FREE = ("finetune", "joint", "ewc", "si", "mas", "lwf", "fetril", "simplecil", "ranpac", "acil", "l2p")
"""Methods without exemplars: one cell serves every memory."""
PRETRAINED = ("simplecil", "ranpac", "acil")
"""Methods that train no backbone: run on ``features`` alone."""
PICTURES = ("l2p", "dytox")
"""Methods of transformers, whose bytes are not those of the others: run on pictures with a fixed memory."""
ON_FEATURES = ("finetune", "replay", "icarl", "joint", "fetril", *PRETRAINED)
TOUR = ("finetune", "replay", "icarl", "wa", "joint")
QUICK = ("finetune", "replay", "joint", "ewc", "lwf", "icarl", "wa", "bic", "der")
"""Those that the claims compare: every method compiles for some ten seconds, and the quick run has three minutes."""
BRANCHES = ("baseline", "data-centric", "model-centric", "algorithm-centric")
PRINTED = "cifar100_b0_inc10"


class Line(NamedTuple):
    """A method as the study shows it.

    Attributes:
      title: what it is called.
      categories: the survey's.
      exemplars: whether it keeps some.
      study: whether it is of the study alone.
    """

    title: str
    categories: tuple[str, ...]
    exemplars: bool
    study: bool = False

    @property
    def branch(self) -> int:
        """The survey's first level, to sort by."""
        return BRANCHES.index(self.categories[0]) if self.categories[0] in BRANCHES else len(BRANCHES)


def catalogue() -> dict[str, Line]:
    """Every method by name, those of ``jaxkit.class_incremental`` and the study's."""
    from jaxkit.class_incremental import METHODS

    made = {name: Line(method.title, method.categories, name not in FREE) for name, method in METHODS.items()}
    about = ("data-centric", "data replay")
    made["balanced_replay"] = Line("Replay by balanced softmax", about, True, True)
    return made


def families() -> dict[str, tuple[str, ...]]:
    """Names for several methods: the survey's categories, and ``all``."""
    known = {name: line for name, line in catalogue().items() if not line.study}
    word = lambda category: category.replace("-", "_").replace(" ", "_")
    names = dict.fromkeys(word(category) for line in known.values() for category in line.categories)
    found = {kind: tuple(n for n, line in known.items() if kind in map(word, line.categories)) for kind in names}
    return {**found, "all": tuple(known)}


def methods_of(config: Any, network: str) -> tuple[str, ...]:
    """The methods that are run on a setting of this network, families written out, without what does not apply."""
    known, several = catalogue(), families()
    words = config.methods or {"tour": TOUR, "quick": QUICK}.get(config.preset, ("all",))
    if not config.methods and config.long_tailed is not None:
        words = (*words, "balanced_replay")
    asked = choices("method", words, (*known, *several))
    names = [name for word in asked for name in several.get(word, (word,))]
    if network == "linear":
        return tuple(name for name in known if name in names and name in ON_FEATURES)
    pictures = network != "mlp" and config.data is None and check.fold(config.budget) == "fixed"
    left_out = (*PRETRAINED, *(() if pictures else PICTURES))
    return tuple(name for name in known if name in names and name not in left_out)


def what_runs(network: str) -> str:
    """Which methods a setting of this network takes, for those who asked for others."""
    if network == "linear":
        return f"frozen features take {', '.join(ON_FEATURES)}"
    pictures, frozen = " and ".join(PICTURES), ", ".join(PRETRAINED)
    return (
        f"{frozen} need --settings features; {pictures} need pictures, such as --settings mnist5k, and a fixed memory"
    )


class Entry(NamedTuple):
    """A method in a setting; a method without exemplars stands in every setting of its stream.

    Attributes:
      setting: with the memory.
      stream: without it.
      method: its name.
      line: of the catalogue.
      outcome: of its cell.
      values: metric -> per cent, a list over orders; None where the cell was not run.
    """

    setting: str
    stream: str
    method: str
    line: Line
    outcome: Outcome
    values: dict[str, list[float]] | None


def entries(outcomes: Sequence[Outcome]) -> list[Entry]:
    """Every method of every setting, in the order of the catalogue."""
    known, made = catalogue(), []
    for stream in dict.fromkeys(one.cell.options["stream"] for one in outcomes):
        here = [one for one in outcomes if one.cell.options["stream"] == stream]
        free = [one for one in here if one.cell.setting == stream]
        reference = next((one.result for one in free if one.cell.method == "joint"), None)
        settings = [name for name in dict.fromkeys(one.cell.setting for one in here) if name != stream] or [stream]
        for setting in settings:
            cells = {one.cell.method: one for one in (*free, *(one for one in here if one.cell.setting == setting))}
            for name in (name for name in known if name in cells):
                result, other = cells[name].result, None if name == "joint" else reference
                values = None if result is None else measures(result, other)
                made.append(Entry(setting, stream, name, known[name], cells[name], values))
    return made


def measures(result: dict[str, Any], joint: dict[str, Any] | None) -> dict[str, list[float]]:
    """The metrics of a cell in per cent, a list over orders; intransigence against joint training on the same orders,
    where there is some."""
    import numpy as np

    from jaxkit import class_incremental as cil

    found: dict[str, Any] = {}
    for read_out, suffix in (("classifier", ""), ("nearest_mean", "_ncm")):
        seen = np.asarray(result["curves"][read_out]["seen"])
        found[f"average{suffix}"] = cil.average_accuracy(seen)
        found[f"last{suffix}"] = cil.last_accuracy(seen)
    by_task = np.asarray(result["curves"]["classifier"]["by_task"])
    found["forgetting"] = cil.forgetting(by_task)
    reference = None if joint is None else np.asarray(joint["curves"]["classifier"]["by_task"])
    if reference is not None and reference.shape == by_task.shape:
        found["intransigence"] = cil.intransigence(by_task, reference)
    return {name: (100 * values).tolist() for name, values in found.items()}


def published_of(one: Entry, metric: str) -> dict[str, Any]:
    """The number in print as arguments of ``make_row``, beside the read-out that it is likely of: from the survey's
    CIFAR-100 B0 Inc10, and where memory is made equal from its comparison aligned to DER."""
    from jaxkit.class_incremental import published

    options = one.outcome.cell.options
    if one.method not in published.METHODS or "data" in options or options["long_tailed"] is not None:
        return {}
    aligned = one.setting.endswith(" as large as der")
    setting = PRINTED + "_aligned" * aligned
    found = published.published(one.method, setting, metric.removesuffix("_ncm"))
    if found is None or metric.endswith("_ncm") != ("nearest mean" in found.note):
        return {}
    scale = 100.0 if metric in ("forgetting", "intransigence") else 1.0
    tag = found.tag + f" ({found.note})" * bool(found.note) + "; not comparable" * (one.method in PICTURES)
    trained_alike = one.stream in ("cifar100, paper recipe", "cifar100, code recipe") and one.method not in PICTURES
    same = trained_alike and (aligned or options["memory"] in (None, 2000))
    return {"published": round(scale * found.value, 4), "tag": tag, "comparable": same}


def rows(config: Any, outcomes: Sequence[Outcome]) -> list[Any]:
    """Every metric of every method."""
    from jaxkit.evaluation import make_row

    made = []
    for one in entries(outcomes):
        for metric in METRICS if one.values is None else (m for m in METRICS if m in one.values):
            values = None if one.values is None else one.values[metric]
            made.append(make_row(STUDY, one.setting, one.method, metric, values, **published_of(one, metric)))
    return made
