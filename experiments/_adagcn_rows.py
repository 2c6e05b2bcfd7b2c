"""Rows of the AdaGCN study, from what its cells computed, with the published numbers beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.runner import Outcome

TITLES = {
    "adagcn_samme_r": "AdaGCN, samme_r",
    "adagcn_uniform": "AdaGCN, uniform (plain sum)",
    "adagcn_official": "AdaGCN, official",
    "adagcn_inverted": "AdaGCN, inverted",
    "adagcn_shuffled": "AdaGCN, shuffled",
    "selected": "AdaGCN, selected",
    "best_hop": "Best single hop",
    "released": "AdaGCN as released (CPU)",
    "mlp": "MLP without a graph",
    "hop_regression": "Logistic regression on hops",
    "sgc": "SGC",
    "gcn": "GCN",
    "gat": "GAT",
    "appnp": "APPNP",
    "ppnp": "PPNP",
    "jknet": "JK-Net",
    "gcnii": "GCNII",
    "mixhop": "MixHop",
}
RANDOM = ("official", "shuffled")
README = "AdaGCN's released README"
PPNP = "PPNP, Table 2, as GammaGL's page repeats it"
MEMORY = "PPNP, Table 2, from memory"


class Published(NamedTuple):
    """A number in print (per cent, 20 labels a class, largest component), and where it stands."""

    value: float
    tag: str


PUBLISHED = {
    **{
        (name, row): Published(value, README)
        for row in ("selected", "released")
        for name, value in (("citeseer", 76.68), ("cora_ml", 85.97), ("pubmed", 79.95), ("ms_academic", 93.17))
    },
    **{(name, "ppnp"): Published(value, PPNP) for name, value in (("citeseer", 75.83), ("cora_ml", 85.29))},
    ("pubmed", "appnp"): Published(79.73, PPNP),
    **{
        (name, "appnp"): Published(value, MEMORY)
        for name, value in (("citeseer", 75.73), ("cora_ml", 85.09), ("ms_academic", 93.27))
    },
    **{
        (name, "gcn"): Published(value, MEMORY)
        for name, value in (("citeseer", 75.40), ("cora_ml", 83.41), ("pubmed", 78.68), ("ms_academic", 92.10))
    },
    **{
        (name, "gat"): Published(value, MEMORY)
        for name, value in (("citeseer", 75.39), ("cora_ml", 84.37), ("pubmed", 77.76), ("ms_academic", 91.22))
    },
    **{
        (name, "jknet"): Published(value, MEMORY)
        for name, value in (("citeseer", 73.03), ("cora_ml", 82.69), ("pubmed", 77.88), ("ms_academic", 91.71))
    },
    **{
        (f"planetoid_{name}", method): Published(value, "Planetoid split, peers' reports, from memory")
        for method, values in {
            "gcn": (81.5, 70.3, 79.0),
            "sgc": (81.0, 71.9, 78.9),
            "gat": (83.0, 72.5, 79.0),
            "appnp": (83.3, 71.8, 80.1),
            "gcnii": (85.5, 73.4, 80.2),
            "mixhop": (81.9, 71.4, 80.8),
        }.items()
        for name, value in zip(("cora", "citeseer", "pubmed"), values)
    },
}
STOPPING = "stopping accuracy, %"


def accuracy_name(config: Any) -> str:
    """The metric: on test nodes, or on validation nodes where those were asked for."""
    return "validation accuracy, %" if config.validation else "test accuracy, %"


def main_outcomes(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if not one.cell.method.endswith("_depth")]


def percent(values: Sequence[float]) -> list[float]:
    """Fractions as per cent."""
    return [100 * value for value in values]


def weightings(setting: str, outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """weighting -> result, for the finished AdaGCN cells of a setting that differ in nothing else from the first."""
    done = [
        one
        for one in main_outcomes(outcomes)
        if one.cell.setting == setting and one.cell.method.startswith("adagcn_") and one.result is not None
    ]
    rest = lambda one: {name: value for name, value in one.cell.options.items() if name != "weighting"}
    return {one.cell.method.removeprefix("adagcn_"): one.result for one in done if rest(one) == rest(done[0])}


def selected(setting: str, outcomes: Sequence[Outcome]) -> str | None:
    """The weighting with the best mean stopping accuracy over the splits; None where fewer than two were run."""
    done = weightings(setting, outcomes)
    if len(done) < 2:
        return None
    mean = lambda name: sum(done[name]["stopping"]) / len(done[name]["stopping"])
    return max(done, key=mean)


def named_setting(setting: str, outcomes: Sequence[Outcome]) -> str:
    """The setting, and which weighting the stopping nodes select in it: one choice for all its splits."""
    choice = selected(setting, outcomes)
    return setting if choice is None else f"{setting} (selected: {choice})"


def rows(config: Any, outcomes: Sequence[Outcome]) -> list[Any]:
    """Test and stopping accuracy of every method; the selected weighting repeated; the best single hop.

    A published number is always of another setting: no preset repeats the papers' runs in everything (patience, epochs,
    the search for hyper-parameters), so only the order of methods is compared, by the paired tests of ``tables``.
    """
    from jaxkit.evaluation import make_row

    metric, made = accuracy_name(config), []

    def add(setting: str, key: str, result: dict[str, Any] | None, test: str = "test", stopping: str = "stopping"):
        known = PUBLISHED.get((setting, key))
        given = {} if known is None else {"published": known.value, "tag": known.tag, "comparable": False}
        for name, field in ((metric, test), (STOPPING, stopping)):
            values = None if result is None else percent(result[field])
            more = given if name == metric else {}
            made.append(make_row("adagcn", named_setting(setting, outcomes), TITLES[key], name, values, **more))

    for setting in dict.fromkeys(one.cell.setting for one in main_outcomes(outcomes)):
        choice = selected(setting, outcomes)
        members = [one for one in main_outcomes(outcomes) if one.cell.setting == setting]
        boosted = [one for one in members if one.cell.method.startswith("adagcn_")]
        for one in boosted:
            add(setting, one.cell.method, one.result)
        if choice is not None:
            add(setting, "selected", weightings(setting, outcomes)[choice])
        for one in boosted:
            if one.cell.method == "adagcn_uniform" and one.result is not None:
                add(setting, "best_hop", one.result, "best_hop", "best_hop_stopping")
        for one in members:
            if one not in boosted:
                add(setting, one.cell.method, one.result)
    return made
