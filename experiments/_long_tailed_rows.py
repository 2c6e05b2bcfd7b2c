"""The rows of the long-tailed study: which there are, what each is read from, and its measures in per cent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.runner import Outcome, choices

STUDY = "long_tailed"
EPOCHS = 200
TAG = f"Zhang et al. 2023, Table 5: ImageNet-LT, ResNeXt-50, {EPOCHS} epochs"
METRICS = ("accuracy", "many", "medium", "few", "relative_accuracy", "calibration_error")
SHIFTED = tuple(f"{way}{rho}{told}" for told in ("", "_told") for way in ("forward", "backward") for rho in (50, 10, 2))
OWN_METHODS = ("softmax", "logit_adjustment", "balanced_softmax", "crt", "tau_norm")
DEFAULT_METHODS = {
    "tour": ("softmax", "weighted_softmax", "balanced_softmax", "balanced_softmax_la", "crt", "tau_norm"),
    "quick": ("losses", "decoupled", "posthoc"),
    "standard": ("all",),
    "paper": ("all",),
}
BRANCHES = ("baseline", "class re-balancing", "information augmentation", "module improvement")
ALIASES = {"decouple_ib_crt": "crt"}
_ADJUSTMENT, _DECOUPLED = ("class re-balancing", "logit adjustment"), ("module improvement", "decoupled training")


class Line(NamedTuple):
    """A row of the study.

    Attributes:
      title: what it is called.
      categories: the survey's.
      training: the cell that it is read from.
      posthoc: that cell, where the row is a correction of its trained model; else empty.
      survey: its name in the survey's tables; empty where it is not one of the 23.
    """

    title: str
    categories: tuple[str, ...]
    training: str
    posthoc: str = ""
    survey: str = ""


def catalogue() -> dict[str, Line]:
    """Every row by name: the methods of ``jaxkit.long_tailed``, the study's cRT rows, and the post-hoc rows."""
    from jaxkit.long_tailed import METHODS
    from jaxkit.long_tailed.published import IMAGENET_LT

    made = {}
    for name, method in METHODS.items():
        survey = "decouple_ib_crt" if name == "crt" else {"ldam": "", "ldam_drw": "ldam"}.get(name, name)
        made[name] = Line(method.title, method.categories, name, survey=survey if survey in IMAGENET_LT else "")
        if name == "softmax":
            made["logit_adjustment"] = Line("Softmax, post-hoc logit adjustment", _ADJUSTMENT, name, name)
        if name == "balanced_softmax":
            title = "Balanced softmax, adjusted once more"
            made["balanced_softmax_la"] = Line(title, _ADJUSTMENT, name, name)
        for sampler in ("cb", "sr", "pb") if name == "crt" else ():
            title = f"Decoupled, cRT after {sampler.upper()} sampling"
            made[f"decouple_{sampler}_crt"] = Line(title, _DECOUPLED, f"decouple_{sampler}_crt",
                                                   survey=f"decouple_{sampler}_crt")  # fmt: skip
    return made


def families() -> dict[str, tuple[str, ...]]:
    """Names for several rows."""
    from jaxkit import long_tailed as lt

    known = catalogue()
    posthoc = tuple(name for name, line in known.items() if line.posthoc)
    more = tuple(name for name in known if name.startswith("decouple_"))
    parts = {name: tuple(getattr(lt, name).METHODS) for name in ("augmentation", "representation", "ensembles")}
    return {
        "losses": tuple(lt.LOSS_METHODS),
        "decoupled": (*lt.DECOUPLED_METHODS, *more),
        "posthoc": posthoc,
        **parts,
        "all": tuple(known),
    }


def methods_of(config: Any) -> tuple[str, ...]:
    """The rows asked for, by name, families written out."""
    known, several = catalogue(), families()
    words = config.methods or (OWN_METHODS if config.data is not None else DEFAULT_METHODS[config.preset])
    asked = choices("method", words, (*known, *several, *ALIASES))
    names = [name for word in asked for name in several.get(word, (ALIASES.get(word, word),))]
    return tuple(name for name in known if name in names)


class Entry(NamedTuple):
    """A row of a setting with its measures (fractions, a list over seeds each), None where it was not computed."""

    setting: str
    method: str
    line: Line
    values: dict[str, Any] | None
    outcome: Outcome

    def percent(self, metric: str) -> list[float] | None:
        """A measure in per cent; None where there is none."""
        found = None if self.values is None else self.values.get(metric)
        return None if found is None else [100 * value for value in found]


def entries(config: Any, outcomes: Sequence[Outcome]) -> list[Entry]:
    """The rows of every setting, in the order of the catalogue, with relative accuracy where it can be had."""
    known, asked, made = catalogue(), methods_of(config), []
    for setting in dict.fromkeys(one.cell.setting for one in outcomes):
        cells = {one.cell.method: one for one in outcomes if one.cell.setting == setting}
        vanilla = cells.get("softmax")
        for name, line in known.items():
            one = cells.get(line.training)
            if one is None or (line.posthoc and name not in asked):
                continue
            values = None
            if one.result is not None:
                if (name if line.posthoc else "") not in one.result["readouts"]:  # a run of before there was this row
                    continue
                values = dict(one.result["readouts"][name if line.posthoc else ""])
                relative = _relative(values, vanilla)
                if relative is not None:
                    values["relative_accuracy"] = relative
            made.append(Entry(setting, name, line, values, one))
    return made


def _relative(values: dict[str, Any], vanilla: Outcome | None) -> list[float] | None:
    """A_r by seed; None without the twin's trainings, or with another number of seeds than softmax has."""
    from jaxkit.long_tailed import relative_accuracy

    if vanilla is None or vanilla.result is None or "twin_accuracy" not in values:
        return None
    reference = vanilla.result["readouts"][""].get("twin_accuracy")
    if reference is None or len(reference) != len(values["accuracy"]):
        return None
    import numpy as np

    arrays = (np.asarray(part) for part in (values["accuracy"], reference, values["twin_accuracy"]))
    return np.asarray(relative_accuracy(*arrays)).tolist()


def metrics_of(config: Any, one: Entry) -> tuple[str, ...]:
    """What is in the table of an entry."""
    names = METRICS if one.outcome.cell.options["relative"] else tuple(m for m in METRICS if m != "relative_accuracy")
    if config.data is not None:
        names = ("accuracy", "macro_accuracy", *names[1:])
    return (*names, *(SHIFTED if config.agnostic else ()))


def published_of(one: Entry, metric: str) -> dict[str, Any]:
    """The survey's figure as arguments of ``make_row``, always of another setting; none beside the user's own data."""
    from jaxkit.long_tailed import published

    field = {"relative_accuracy": "relative"}.get(metric, metric)
    survey = one.line.survey
    if not survey or field not in published.Cell._fields or "data" in one.outcome.cell.options:
        return {}
    return {"published": getattr(published.cell(survey, EPOCHS), field), "tag": TAG, "comparable": False}


def rows(config: Any, outcomes: Sequence[Outcome]) -> list[Any]:
    """Every measure of every row; a group without a class has none."""
    from jaxkit.evaluation import make_row

    made = []
    for one in entries(config, outcomes):
        for metric in metrics_of(config, one):
            values = one.percent(metric)
            if values is None and (one.values is not None or metric not in METRICS[:5]):
                continue
            made.append(make_row(STUDY, one.setting, one.method, metric, values, **published_of(one, metric)))
    return made


def category(line: Line) -> tuple[int, str]:
    """The survey's first level, to sort by."""
    return (*BRANCHES, line.categories[0]).index(line.categories[0]), line.categories[0]


def group_sizes(counts: Any, rule: str) -> list[int]:
    """How many classes are many-, medium- and few-shot."""
    import numpy as np

    from jaxkit.long_tailed import class_groups

    return np.bincount(np.asarray(class_groups(np.asarray(counts), by=rule)), minlength=3).tolist()
