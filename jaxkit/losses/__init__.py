"""Losses and regularisers that more than one part uses: pure functions of arrays, so that a user takes one and
nothing else.

Losses of examples give one value per row, to be averaged by ``jaxkit.learner.batch_mean``. Those that compare the
rows of a batch with each other take ``valid``; rows that are not valid are neither compared nor compared with, and
lose nothing.
"""

from jaxkit.losses.classification import (
    balanced_cross_entropy,
    binary_cross_entropy,
    cross_entropy,
    soft_cross_entropy,
    squared_error,
)
from jaxkit.losses.contrastive import nt_xent, supervised_contrastive
from jaxkit.losses.distillation import cosine_distillation, feature_distillation, kd
from jaxkit.losses.mixing import Mixed, cutmix, mixed_loss, mixup
from jaxkit.losses.regularisers import centre, coral, entropy, l2, mmd

__all__ = [
    "Mixed",
    "balanced_cross_entropy",
    "binary_cross_entropy",
    "centre",
    "coral",
    "cosine_distillation",
    "cross_entropy",
    "cutmix",
    "entropy",
    "feature_distillation",
    "kd",
    "l2",
    "mixed_loss",
    "mixup",
    "mmd",
    "nt_xent",
    "soft_cross_entropy",
    "squared_error",
    "supervised_contrastive",
]
