"""Representation learning and classifier design on long-tailed data, and the re-calibration of a trained posterior."""

from jaxkit.learner import Method
from jaxkit.long_tailed.representation.cosine import cosine_classifier, cosine_logits
from jaxkit.long_tailed.representation.de_confound import de_confound, multi_head_logits, tde_logits
from jaxkit.long_tailed.representation.oltr import centroid_loss, memory_logits, oltr
from jaxkit.long_tailed.representation.paco import paco, paco_loss
from jaxkit.long_tailed.representation.recalibration import choose_beta, uno_ic

_CLASSIFIER = ("module improvement", "classifier design")
_REPRESENTATION = ("module improvement", "representation learning")

METHODS: dict[str, Method] = {
    "cosine_classifier": Method(
        make=cosine_classifier,
        title="Cosine classifier",
        paper="S. Gidaris, N. Komodakis. Dynamic few-shot visual learning without forgetting. CVPR",
        year=2018,
        categories=_CLASSIFIER,
        evidence="eq. 2; scale 16 as in the code of OLTR and De-confound",
        traced=("scale",),
        not_reproduced="the learnt scale, which heads.cosine has; the weight generator for novel classes",
    ),
    "de_confound": Method(
        make=de_confound,
        title="De-confound-TDE",
        paper="K. Tang et al. Long-tailed classification by keeping the good and removing the bad momentum causal "
        "effect. NeurIPS",
        year=2020,
        categories=_CLASSIFIER,
        evidence="released code, the same in the survey's: K = 2, tau = 16, gamma = 1/32, alpha = 3",
        traced=("alpha", "tau", "gamma"),
        not_reproduced="the momentum of the average that follows the learning rate; the background class of detection",
    ),
    "oltr": Method(
        make=oltr,
        title="OLTR",
        paper="Z. Liu et al. Large-scale long-tailed recognition in an open world. CVPR",
        year=2019,
        categories=_REPRESENTATION,
        evidence="released code: stages of 30 and 60 epochs, scales 10 and 16, loss weight 0.01; a reference row",
        not_reproduced="modulated attention, four rows of a class in a row, learning rates of the parts; nothing tuned",
    ),
    "paco": Method(
        make=paco,
        title="PaCo",
        paper="J. Cui et al. Parametric contrastive learning. ICCV",
        year=2021,
        categories=_REPRESENTATION,
        evidence="released code; alpha = 0.05, beta = gamma = 1, T = 0.07, queue 8192 of the survey's script",
        traced=("alpha", "temperature"),
        not_reproduced="RandAugment and colour jitter as views, batch normalisation in the projector; places of the "
        "queue are empty at first, not random",
    ),
    "uno_ic": Method(
        make=uno_ic,
        title="UNO-IC",
        paper="J. Tian et al. Posterior re-calibration for imbalanced datasets. NeurIPS",
        year=2020,
        categories=("class re-balancing", "logit adjustment"),
        evidence="released code of the imbalance calibration; beta = 1, to be chosen by choose_beta; a reference row",
        traced=("beta",),
        not_reproduced="the uncertainty-aware temperature (UNO); the released beta above 1",
    ),
}

__all__ = [
    "METHODS",
    "centroid_loss",
    "choose_beta",
    "cosine_classifier",
    "cosine_logits",
    "de_confound",
    "memory_logits",
    "multi_head_logits",
    "oltr",
    "paco",
    "paco_loss",
    "tde_logits",
    "uno_ic",
]
