"""Published results of class-incremental learning, as data: what the study's tables show beside our own numbers.

Zhou, Wang, Qi, Ye, Zhan and Liu 2024, Class-incremental learning: a survey, TPAMI (arXiv 2302.03648v2), and a few
numbers of small data sets. Accuracies are in per cent, forgetting and intransigence fractions, areas per cent / 100
times MB, all as printed. The survey's numbers are of one order of the classes (seed 1993) and one run.

The survey does not say which read-out a row has. For GEM it cannot be the same one throughout: a curve that a user of
PyCIL posted (issue 53 there) ends at 12.0 with the classifier and at 27.9 with the nearest mean, while GEM has 23.03 in
the benchmark and 10.72 with more exemplars in the aligned comparison. The notes of these rows say which is likely; ours
are to be set beside them in both read-outs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from jaxkit import check

METRICS = (
    "average",
    "last",
    "forgetting",
    "intransigence",
    "auc_average",
    "auc_last",
    "exemplars",
    "parameters",
)
"""Average and last accuracy; F and I; the areas under both accuracies against memory; exemplars of the aligned
comparison; millions of parameters after the last task."""

Pair = tuple[float | None, float | None]  # (average, last)


class Published(NamedTuple):
    """A number in print.

    Attributes:
      value: in the unit of the source, see above.
      tag: where it stands.
      note: what to know before it is compared; may be empty.
    """

    value: float
    tag: str
    note: str = ""


CIFAR100_SETTINGS = (
    "cifar100_b0_inc5",
    "cifar100_b0_inc10",
    "cifar100_b0_inc20",
    "cifar100_b50_inc10",
    "cifar100_b50_inc25",
)
CIFAR100: dict[str, tuple[Pair | None, ...]] = {
    "finetune": ((17.59, 4.83), (26.25, 9.09), (37.90, 17.07), (22.79, 9.09), (None, 20.88)),
    "ewc": ((18.42, 5.58), (29.73, 12.44), (39.19, 19.87), (25.77, 11.47), (None, 23.85)),
    "lwf": ((30.93, 12.60), (43.56, 23.25), (48.96, 30.00), (41.12, 25.06), (None, 37.31)),
    "gem": ((31.73, 19.48), (40.18, 23.03), (50.33, 34.09), (33.28, 21.33), (None, 37.29)),
    "replay": ((58.20, 38.69), (59.31, 41.01), (60.03, 43.08), (52.37, 41.26), (None, 44.07)),
    "rmm": ((65.72, 51.10), (68.54, 56.64), (70.64, 61.81), (67.53, 59.75), (None, 64.63)),
    "icarl": ((63.51, 45.12), (64.42, 49.52), (67.00, 54.23), (61.29, 52.04), (None, 57.59)),
    "podnet": ((47.88, 27.99), (55.22, 36.78), (62.96, 49.08), (64.45, 55.21), (None, 59.10)),
    "coil": ((57.68, 34.33), (60.27, 39.85), (63.33, 45.54), (55.71, 41.24), (None, 51.08)),
    "wa": ((64.65, 48.46), (67.09, 52.30), (68.51, 57.97), (64.32, 55.85), (None, 61.49)),
    "bic": ((62.38, 43.08), (65.08, 50.79), (67.03, 56.22), (61.01, 49.19), (None, 59.77)),
    "foster": ((63.38, 49.42), (66.49, 53.21), (68.60, 58.67), (65.73, 57.82), (None, 62.38)),
    "aanets": ((59.34, 42.42), (61.73, 45.53), None, (None, 59.36), (None, 61.85)),
    "der": ((67.99, 53.95), (69.74, 58.59), (70.82, 62.40), (68.24, 61.94), (None, 65.10)),
    "memo": ((68.10, 54.23), (70.20, 58.49), (70.43, 61.39), (69.39, 62.83), (None, 66.06)),
    "dytox": ((68.06, 52.23), (71.07, 58.72), (73.05, 64.22), (69.07, 60.35), (None, 66.49)),
    "l2p": ((84.00, 78.96), (89.35, 83.39), (90.17, 86.91), (85.21, 79.34), (None, 86.29)),
}
"""Table 5, ResNet-32, 2,000 exemplars: (average, last) for each of ``CIFAR100_SETTINGS``. ``rmm`` is RMM with FOSTER,
``aanets`` AANets with LUCIR; L2P has a backbone pre-trained on ImageNet-21k."""

CIFAR100_BY_TASK: dict[str, tuple[float, ...]] = {
    "finetune": (90.8, 40.75, 30.63, 22.48, 18.56, 15.08, 13.47, 11.24, 10.41, 9.09),
    "ewc": (90.8, 42.0, 33.77, 24.48, 24.24, 19.58, 18.90, 16.35, 15.17, 12.44),
    "lwf": (90.8, 69.7, 57.17, 43.38, 39.30, 31.88, 30.09, 25.36, 24.70, 23.25),
    "gem": (90.8, 54.75, 47.93, 38.58, 34.96, 30.67, 28.40, 27.91, 25.37, 23.03),
    "replay": (90.8, 78.65, 71.40, 62.98, 57.86, 52.53, 50.83, 45.15, 41.89, 41.01),
    "rmm": (89.4, 77.6, 75.5, 70.62, 68.0, 64.67, 63.49, 60.80, 58.67, 56.64),
    "icarl": (90.8, 78.35, 73.97, 67.65, 63.94, 59.88, 57.77, 52.80, 51.04, 49.52),
    "podnet": (89.7, 72.1, 65.57, 57.45, 53.48, 49.57, 46.0, 42.1, 39.44, 36.78),
    "coil": (90.6, 79.25, 73.0, 65.0, 59.82, 55.40, 52.31, 45.76, 41.73, 39.85),
    "wa": (90.8, 79.5, 75.1, 69.95, 67.5, 63.38, 61.44, 57.08, 53.81, 52.30),
    "bic": (88.8, 76.45, 72.77, 67.88, 64.36, 61.90, 59.17, 55.98, 52.70, 50.79),
    "foster": (89.4, 80.3, 75.63, 68.75, 64.48, 61.52, 59.63, 56.88, 55.09, 53.21),
    "der": (90.8, 78.8, 75.97, 71.72, 69.22, 66.58, 64.99, 61.75, 60.21, 58.59),
    "memo": (89.6, 79.3, 77.17, 72.58, 69.76, 67.23, 65.47, 62.15, 60.28, 58.49),
    "dytox": (91.6, 80.0, 77.3, 74.35, 72.16, 67.68, 65.89, 62.63, 60.40, 58.72),
    "l2p": (98.5, 95.15, 93.47, 91.0, 89.84, 86.32, 85.71, 85.17, 84.97, 83.39),
}
"""Table 20, CIFAR-100 B0 Inc10: the accuracy on all classes seen after each task."""

OTHER_AVERAGE = ("ewc", "gem", "icarl", "der")
"""Methods whose average in Table 5 is not the mean of their row in Table 20, but 0.04 to 0.15 points less. All four
rows begin with the 90.8 that most methods share."""

IMAGENET100_SETTINGS = (
    "imagenet100_b0_inc5",
    "imagenet100_b0_inc10",
    "imagenet100_b0_inc20",
    "imagenet100_b50_inc10",
    "imagenet100_b50_inc25",
)
IMAGENET100: dict[str, tuple[Pair | None, ...]] = {
    "finetune": ((17.06, 4.70), (26.19, 9.30), (40.20, 17.86), (24.12, 9.26), None),
    "ewc": ((18.78, 6.14), (27.78, 11.10), (41.54, 18.98), (26.21, 11.54), None),
    "lwf": ((41.76, 17.74), (55.50, 33.10), (68.43, 53.00), (46.24, 31.42), None),
    "replay": ((56.37, 37.32), (59.21, 41.00), (64.53, 48.76), (55.73, 43.38), None),
    "rmm": ((69.70, 57.16), (74.07, 65.66), (80.08, 73.96), (73.02, 66.52), None),
    "icarl": ((62.36, 44.10), (67.11, 50.98), (73.57, 61.50), (62.56, 53.68), None),
    "podnet": ((53.70, 33.34), (64.03, 45.40), (71.99, 58.04), (73.83, 62.94), None),
    "coil": ((56.21, 34.00), (61.91, 41.50), (69.49, 53.54), (59.80, 43.40), None),
    "wa": ((62.96, 46.06), (68.60, 55.04), (74.44, 64.84), (65.81, 56.64), None),
    "bic": ((58.03, 34.56), (65.13, 42.40), (76.29, 66.92), (66.36, 49.90), None),
    "foster": ((64.45, 53.18), (69.36, 60.58), (75.27, 68.88), (69.85, 63.12), None),
    "aanets": ((None, 41.64), (None, 46.60), None, (None, 66.84), (None, 71.32)),
    "der": ((73.79, 63.66), (77.08, 66.84), (78.56, 72.10), (77.57, 71.10), None),
    "memo": ((68.19, 56.10), (71.00, 60.96), (76.59, 68.64), (76.66, 70.22), None),
    "dytox": ((69.57, 53.82), (73.40, 61.78), (76.81, 68.78), (74.65, 65.76), None),
}
"""Table 6, ResNet-18, 2,000 exemplars, top-1: (average, last) for each of ``IMAGENET100_SETTINGS``."""

SINGLE = ("finetune", "ewc", "lwf", "gem", "replay", "rmm", "icarl", "podnet", "coil", "wa", "bic", "foster")
PARAMETERS: dict[str, dict[str, float]] = {
    "cifar100_b0_inc10": dict.fromkeys(SINGLE, 0.46)
    | {"aanets": 0.99, "der": 4.60, "memo": 3.62, "dytox": 10.7, "l2p": 85.7},
    "imagenet100_b0_inc10": {name: 11.17 for name in SINGLE if name != "gem"}
    | {"der": 111.7, "memo": 86.72, "dytox": 11.0},
}
"""Tables 5 and 6: millions of parameters after ten tasks."""

ALIGNED_SETTINGS = ("cifar100_b0_inc5_aligned", "cifar100_b0_inc10_aligned", "imagenet100_b0_inc10_aligned")
ALIGNED: dict[str, tuple[tuple[int, float, float] | None, ...]] = {
    "gem": ((13466, 20.30, 7.99), (7431, 27.03, 10.72), None),
    "replay": ((13466, 74.25, 61.09), (7431, 69.97, 55.61), (4671, 67.46, 53.72)),
    "icarl": ((13466, 75.17, 61.88), (7431, 70.94, 58.52), (4671, 67.16, 51.58)),
    "podnet": ((13466, 59.03, 42.98), (7431, 60.80, 45.38), (4671, 68.43, 53.44)),
    "coil": ((13466, 74.39, 60.78), (7431, 70.69, 54.40), (4671, 69.97, 54.24)),
    "wa": ((13466, 74.07, 63.18), (7431, 69.55, 59.26), (4671, 72.62, 62.12)),
    "bic": ((13466, 71.27, 60.98), (7431, 70.69, 59.60), (4671, 72.83, 61.98)),
    "foster": ((13466, 75.06, 62.82), (7431, 72.28, 59.39), (4671, 71.55, 59.86)),
    "der": ((2000, 70.41, 57.85), (2000, 71.47, 60.26), (2000, 75.70, 67.14)),
    "memo": ((4771, 73.57, 62.97), (3312, 72.37, 61.98), (2652, 72.55, 64.08)),
}
"""Table 7, memory aligned to DER: (exemplars, average, last) for each of ``ALIGNED_SETTINGS``."""

AREA_SETTINGS = ("cifar100_b0_inc10", "imagenet100_b50_inc5")
AREAS: dict[str, tuple[tuple[float, float] | None, ...]] = {
    "gem": ((4.31, 1.70), None),
    "replay": ((10.49, 8.02), (553.6, 470.1)),
    "icarl": ((10.81, 8.64), (607.1, 527.5)),
    "podnet": ((9.42, 6.80), (701.8, 624.9)),
    "coil": ((10.60, 7.82), (601.9, 486.5)),
    "wa": ((10.80, 8.92), (666.0, 581.7)),
    "bic": ((10.73, 8.30), (592.7, 474.2)),
    "foster": ((11.12, 9.03), (638.7, 566.3)),
    "der": ((10.74, 8.95), (699.0, 639.1)),
    "memo": ((10.85, 9.03), (713.0, 654.6)),
}
"""Table 4: (AUC-A, AUC-L) for each of ``AREA_SETTINGS``; see ``budget.area_under_curve``."""

FORGETTING: dict[str, tuple[float, float]] = {
    "finetune": (0.883, -0.111),
    "ewc": (0.729, -0.005),
    "lwf": (0.598, 0.005),
    "gem": (0.499, 0.096),
    "replay": (0.504, -0.088),
    "rmm": (0.146, 0.078),
    "icarl": (0.335, -0.021),
    "podnet": (0.340, 0.102),
    "coil": (0.475, -0.051),
    "wa": (0.279, 0.001),
    "bic": (0.175, 0.140),
    "foster": (0.288, -0.016),
    "der": (0.184, 0.024),
    "memo": (0.208, 0.003),
    "aanets": (0.290, 0.059),
}
"""Table 27, CIFAR-100 B0 Inc10: (forgetting, intransigence), fractions."""

_VAN_DE_VEN = "github.com/GMvandeVen/continual-learning, issue 2: Split MNIST, class-incremental, an MLP"
_TUTORIAL = "van de Ven, a figure of his tutorial: Split MNIST, 20 seeds"
_MAMMOTH = "github.com/aimagelab/mammoth, scripts/reproduce.json"
_ZOO = "README of CIL-Zoo, CIFAR-100, ten tasks"
_REPLAY = "experience replay, without the survey's herding"
_500, _2000, _ABOUT = "buffer of 500", "buffer of 2,000", "read from a figure"

SMALL: dict[str, dict[str, tuple[float, str, str]]] = {
    "split_mnist": {
        "finetune": (19.94, _VAN_DE_VEN, ""),
        "ewc": (19.93, _VAN_DE_VEN, ""),
        "online_ewc": (19.91, _VAN_DE_VEN, ""),
        "si": (19.95, _VAN_DE_VEN, ""),
        "lwf": (24.00, _VAN_DE_VEN, ""),
        "dgr": (91.69, _VAN_DE_VEN, ""),
        "joint": (97.59, _VAN_DE_VEN, ""),
        "icarl": (94.0, _VAN_DE_VEN, "about 94 in the paper; 72.83 came of a mistake in the code"),
    },
    "split_mnist_tutorial": {
        "fromp": (77.0, _TUTORIAL, _ABOUT),
        "replay": (89.0, _TUTORIAL, f"{_ABOUT}; {_REPLAY}"),
        "dgr": (90.0, _TUTORIAL, _ABOUT),
        "icarl": (92.0, _TUTORIAL, _ABOUT),
        "joint": (98.0, _TUTORIAL, _ABOUT),
    },
    "seq_cifar10": {
        "agem": (19.94, _MAMMOTH, f"{_500}; in the paper of DER++"),
        "online_ewc": (20.11, _MAMMOTH, ""),
        "lwf": (19.61, _MAMMOTH, ""),
        "gem": (26.2, _MAMMOTH, _500),
        "gdumb": (45.8, _MAMMOTH, _500),
        "replay": (63.39, _MAMMOTH, f"{_500}; {_REPLAY}"),
        "er_ace": (42.6, _MAMMOTH, "buffer of 200"),
    },
    "seq_cifar100": {
        "bic": (56.69, _MAMMOTH, _2000),
        "icarl": (49.66, _MAMMOTH, _2000),
        "lucir": (50.0, _MAMMOTH, _2000),
        "derpp": (38.25, _MAMMOTH, _500),
    },
    "cifar100_zoo": {"icarl": (33.2, _ZOO, "unofficial"), "eeil": (45.5, _ZOO, "unofficial")},
}
"""Last accuracies elsewhere: (value, where it stands, note)."""

NOTES = {
    ("gem", "table"): "read-out not stated; likely the nearest mean",
    ("gem", "aligned"): "read-out not stated; likely the classifier",
    ("icarl", "table"): "read-out not stated; likely the nearest mean",
    ("rmm", "table"): "RMM with FOSTER",
    ("aanets", "table"): "AANets with LUCIR",
    ("l2p", "table"): "a transformer pre-trained on ImageNet-21k",
    ("dytox", "table"): "its repository has an erratum on the size of the memory",
}


@functools.cache
def numbers() -> dict[tuple[str, str, str], Published]:
    """Every number, by (method, setting, metric)."""
    found: dict[tuple[str, str, str], Published] = {}
    cifar, imagenet, accuracy = "CIFAR-100, ResNet-32", "ImageNet-100, ResNet-18", ("average", "last")
    lost = {method: (pair,) for method, pair in FORGETTING.items()}
    tables: tuple[tuple[str, tuple[str, ...], tuple[str, ...], dict[str, tuple]], ...] = (
        (f"Table 5: {cifar}", CIFAR100_SETTINGS, accuracy, CIFAR100),
        (f"Table 6: {imagenet}", IMAGENET100_SETTINGS, accuracy, IMAGENET100),
        ("Table 7: memory aligned to DER", ALIGNED_SETTINGS, ("exemplars", *accuracy), ALIGNED),
        ("Table 4: from small to large memory", AREA_SETTINGS, ("auc_average", "auc_last"), AREAS),
        (f"Table 27: {cifar}", ("cifar100_b0_inc10",), ("forgetting", "intransigence"), lost),
    )
    for tag, settings, metrics, rows in tables:
        kind = "aligned" if rows is ALIGNED or rows is AREAS else "table"
        for method, row in rows.items():
            for setting, cell in zip(settings, row):
                for metric, value in zip(metrics, cell or ()):
                    if value is not None:
                        note = NOTES.get((method, kind), "")
                        found[method, setting, metric] = Published(value, f"Zhou et al. 2024, {tag}", note)
    for setting, sizes in PARAMETERS.items():
        for method, millions in sizes.items():
            tag = f"Zhou et al. 2024, Table {5 if 'cifar' in setting else 6}"
            found[method, setting, "parameters"] = Published(millions, tag)
    for setting, small in SMALL.items():
        for method, number in small.items():
            found[method, setting, "last"] = Published(*number)
    return found


METHODS = tuple(dict.fromkeys(method for method, _, _ in numbers()))
SETTINGS = tuple(dict.fromkeys(setting for _, setting, _ in numbers()))


def published(method: str, setting: str, metric: str) -> Published | None:
    """The published number of a cell, or None where there is none.

    Args:
      method: one of ``METHODS`` here, named as in ``class_incremental.METHODS``.
      setting: one of ``SETTINGS``; with ``_aligned`` at its end the comparison at DER's memory.
      metric: one of ``METRICS``.

    Raises:
      UsageError: a name that is not among them.
    """
    method, setting = check.choose("published method", method, METHODS), check.choose("setting", setting, SETTINGS)
    return numbers().get((method, setting, check.choose("metric", metric, METRICS)))
