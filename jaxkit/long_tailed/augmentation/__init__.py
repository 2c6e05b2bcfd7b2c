"""Information augmentation on long-tailed data: more for rare classes from what there is.

Rows are mixed (``mixing``: mixup, Remix), pasted (``oversampling``: CMO), translated (``translation``: M2m) or
generated among features (``generator``: RSG); the backbone is pre-trained without labels (``pretraining``: SSP); and
mixup goes with a classifier whose labels are smoothed by class size (``calibration``: MiSLAS).
"""

from jaxkit.learner import Method
from jaxkit.long_tailed.augmentation.calibration import label_aware_smoothing, mislas, smoothing_of
from jaxkit.long_tailed.augmentation.generator import head_classes, rsg
from jaxkit.long_tailed.augmentation.mixing import mixup, remix, remix_share
from jaxkit.long_tailed.augmentation.oversampling import cmo
from jaxkit.long_tailed.augmentation.pretraining import ssp
from jaxkit.long_tailed.augmentation.translation import m2m

_AUGMENTATION = ("information augmentation", "data augmentation")
_TRANSFER = ("information augmentation", "transfer learning")

METHODS: dict[str, Method] = {
    "mixup": Method(
        make=mixup,
        title="mixup",
        paper="H. Zhang et al. mixup: beyond empirical risk minimization. ICLR",
        year=2018,
        categories=_AUGMENTATION,
        evidence="eq. 1; alpha = 0.2 of MiSLAS on ImageNet-LT (1 on CIFAR-LT)",
        traced=("alpha",),
    ),
    "remix": Method(
        make=remix,
        title="Remix",
        paper="H.-P. Chou et al. Remix: rebalanced mixup. ECCV workshops",
        year=2020,
        categories=_AUGMENTATION,
        evidence="eq. 10; kappa = 3, tau = 0.5, alpha = 1, as in Bag of tricks for long-tailed recognition",
        traced=("alpha", "kappa", "tau"),
        not_reproduced="Remix on CutMix and manifold mixup",
    ),
    "cmo": Method(
        make=cmo,
        title="CMO",
        paper="S. Park et al. The majority can help the minority: context-rich minority oversampling. CVPR",
        year=2022,
        categories=_AUGMENTATION,
        evidence="algorithm 1; alpha = 1, probability 0.5 of the released code; q(r, k) of the text with r = 1",
        traced=("alpha", "probability"),
        not_reproduced="the first and the last three epochs without pasting, as in the released code",
    ),
    "m2m": Method(
        make=m2m,
        title="M2m",
        paper="J. Kim et al. M2m: imbalanced classification via major-to-minor translation. CVPR",
        year=2020,
        categories=_AUGMENTATION,
        evidence="algorithm 1; the settings of the released script for CIFAR-10-LT; the sign of the text's second term",
        traced=("gamma", "away"),
        not_reproduced="g trained beforehand on other data or with another network",
    ),
    "ssp": Method(
        make=ssp,
        title="SSP",
        paper="Y. Yang and Z. Xu. Rethinking the value of labels for improving class-imbalanced learning. NeurIPS",
        year=2020,
        categories=_TRANSFER,
        evidence="section 3; rotation prediction of the released code for CIFAR, half of all epochs",
        traced=("noise", "temperature"),
        not_reproduced="MoCo with its queue and momentum encoder; pretext='contrastive' has SimCLR's loss in its place",
    ),
    "rsg": Method(
        make=rsg,
        title="RSG",
        paper="J. Wang et al. RSG: a simple but effective module for learning imbalanced datasets. CVPR",
        year=2021,
        categories=_AUGMENTATION,
        evidence="released code; K = 3, ratio 0.2, max margin 0.3, weights 0.1 and 0.01, generation in the last fifth",
        traced=("centre_weight", "vector_weight"),
        not_reproduced="the module works on the features before the head, not on the maps before the last stage of the "
        "network; a transfer strength other than 1",
    ),
    "mislas": Method(
        make=mislas,
        title="MiSLAS",
        paper="Z. Zhong et al. Improving calibration for long-tailed recognition. CVPR",
        year=2021,
        categories=("module improvement", "decoupled training"),
        evidence="released code: mixup 0.2, smoothing 0.3 to 0, concave, head at 0.05 of the rate, as on ImageNet-LT",
        traced=("smooth_head", "head_rate"),
        not_reproduced="the trainable last block of the backbone on Places-LT",
    ),
}
"""The methods of this branch, and MiSLAS, which begins with one of them."""

__all__ = [
    "METHODS",
    "cmo",
    "head_classes",
    "label_aware_smoothing",
    "m2m",
    "mislas",
    "mixup",
    "remix",
    "remix_share",
    "rsg",
    "smoothing_of",
    "ssp",
]
