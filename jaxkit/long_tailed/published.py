"""Published results of deep long-tailed learning, as data: what the study's tables show beside our own numbers.

Zhang, Kang, Hooi, Yan and Feng 2023, Deep long-tailed learning: a survey, TPAMI 45(9) (arXiv 2110.04596v2), its
empirical study on ImageNet-LT with ResNeXt-50: 23 methods, trained for 90 epochs (table 4) and 200 epochs (table 5).
All in per cent.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxkit import check

SOURCE = "Zhang et al. 2023, tables 4 and 5 (ImageNet-LT, ResNeXt-50)"
EPOCHS = (90, 200)


class Cell(NamedTuple):
    """What the survey prints for one method and one length of training, in per cent.

    Attributes:
      accuracy: A_t, on the balanced test set.
      upper: A_u = max(A_v, A_b).
      relative: A_r, as printed.
      many: accuracy on the head classes.
      medium: on the middle classes.
      few: on the tail classes.
    """

    accuracy: float
    upper: float
    relative: float
    many: float
    medium: float
    few: float


IMAGENET_LT: dict[str, tuple[Cell, Cell]] = {
    "softmax": (Cell(45.5, 57.3, 79.4, 66.5, 39.0, 8.6), Cell(46.8, 57.8, 81.0, 66.9, 40.4, 12.6)),
    "weighted_softmax": (Cell(47.9, 57.3, 83.6, 66.3, 42.2, 15.6), Cell(49.1, 57.8, 84.9, 57.9, 46.2, 34.0)),
    "focal": (Cell(45.8, 57.3, 79.9, 66.9, 39.2, 9.2), Cell(47.2, 57.8, 81.7, 67.0, 41.0, 13.1)),
    "ldam": (Cell(51.1, 57.3, 89.2, 62.3, 47.4, 32.5), Cell(51.1, 57.8, 88.4, 60.0, 49.2, 31.9)),
    "esql": (Cell(47.3, 57.3, 82.5, 62.5, 44.0, 15.7), Cell(48.0, 57.8, 83.0, 63.1, 44.6, 17.2)),
    "uno_ic": (Cell(45.7, 57.3, 81.4, 66.3, 38.7, 9.3), Cell(46.8, 58.6, 79.9, 67.0, 40.3, 12.7)),
    "balanced_softmax": (Cell(50.8, 57.3, 88.7, 61.7, 48.0, 29.9), Cell(51.2, 57.8, 88.6, 62.4, 47.7, 32.1)),
    "lade": (Cell(51.5, 57.8, 89.1, 62.2, 48.6, 31.8), Cell(51.6, 57.8, 89.3, 63.1, 47.7, 32.7)),
    "ssp": (Cell(53.1, 59.6, 89.1, 65.6, 49.6, 30.3), Cell(53.3, 59.9, 89.0, 67.3, 49.1, 28.3)),
    "rsg": (Cell(49.6, 57.3, 86.7, 68.7, 43.7, 16.2), Cell(52.9, 57.8, 91.5, 65.0, 49.4, 31.1)),
    "oltr": (Cell(46.7, 57.3, 81.5, 58.2, 45.5, 19.5), Cell(48.0, 58.4, 82.2, 62.9, 44.6, 18.8)),
    "paco": (Cell(52.7, 58.7, 89.9, 59.7, 51.7, 36.6), Cell(54.4, 59.6, 91.3, 63.2, 51.6, 39.2)),
    "de_confound": (Cell(51.8, 57.7, 89.8, 63.0, 48.5, 31.4), Cell(51.3, 57.8, 88.8, 64.9, 46.9, 28.1)),
    "decouple_ib_crt": (Cell(49.9, 57.3, 87.1, 62.6, 46.2, 26.7), Cell(50.3, 58.1, 86.6, 64.2, 46.1, 26.0)),
    "decouple_cb_crt": (Cell(44.9, 57.3, 78.4, 62.4, 39.3, 14.9), Cell(43.0, 57.8, 74.4, 60.9, 36.9, 13.5)),
    "decouple_sr_crt": (Cell(49.3, 57.3, 86.0, 64.1, 43.9, 19.5), Cell(48.5, 57.8, 83.9, 66.0, 42.3, 18.0)),
    "decouple_pb_crt": (Cell(48.4, 57.3, 84.5, 63.9, 45.0, 23.2), Cell(48.1, 57.8, 83.2, 64.9, 43.1, 20.6)),
    "mislas": (Cell(51.4, 58.3, 88.2, 62.1, 48.9, 32.6), Cell(53.4, 59.7, 89.4, 65.3, 50.6, 33.0)),
    "bbn": (Cell(41.2, 57.3, 71.9, 40.0, 43.3, 40.8), Cell(44.7, 57.8, 77.3, 43.3, 45.9, 43.7)),
    "lfme": (Cell(47.0, 57.3, 82.0, 60.6, 43.5, 22.0), Cell(48.0, 57.8, 83.0, 64.1, 42.3, 22.8)),
    "reslt": (Cell(51.6, 57.3, 90.1, 57.8, 50.4, 40.0), Cell(53.2, 58.1, 91.6, 61.6, 51.4, 38.8)),
    "ride": (Cell(55.5, 60.2, 92.2, 66.9, 52.3, 34.5), Cell(56.1, 60.9, 92.1, 67.9, 52.3, 36.0)),
    "sade": (Cell(57.3, 61.9, 92.6, 65.3, 55.2, 42.0), Cell(58.8, 63.2, 93.0, 67.2, 55.3, 40.0)),
}
"""method -> (90 epochs, 200 epochs)."""

MISPRINTS: tuple[tuple[str, int], ...] = (("uno_ic", 90), ("rsg", 90), ("paco", 90))
"""Cells whose printed A_r is not the quotient of their printed accuracies, by more than the 0.1 of rounding."""


def cell(method: str, epochs: int) -> Cell:
    """The survey's cell of a method after 90 or 200 epochs.

    Raises:
      UsageError: a method that is not of the 23, or another number of epochs.
    """
    if epochs not in EPOCHS:
        raise check.UsageError(f"the survey trained for 90 or 200 epochs, got {epochs!r}")
    return IMAGENET_LT[check.choose("method of the survey", method, IMAGENET_LT)][EPOCHS.index(epochs)]
