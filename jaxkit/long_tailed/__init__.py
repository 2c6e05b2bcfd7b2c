"""Long-tailed learning: training data with few rows in many classes, judged on all classes alike.

>>> from jaxkit.long_tailed import balanced_softmax, rescue
>>> rows = balanced_softmax(logits, labels, class_counts)  # a loss by itself: one value per row
>>> print(rescue(logits, labels, class_counts).table())  # a model already trained

Losses, corrections and methods take ``class_counts``, the training rows of each class. The functions of this package
are losses of logits; the method of the same name is ``METHODS[name].make(network, optimizer, class_counts=...)``.

Beside them stand the samplers (``samplers``), decoupled training (``decoupled``), and the protocol: training sets and
their balanced twins (``profiles``), many-, medium- and few-shot accuracy (``groups``), relative accuracy (``relative``)
and the survey's figures (``published``). Methods of three families have a subpackage each: ``augmentation`` (more rows,
or features, for rare classes), ``representation`` (what the network learns) and ``ensembles`` (several experts).
"""

from jaxkit.learner import Method
from jaxkit.long_tailed import augmentation, decoupled, ensembles, loss_methods, representation
from jaxkit.long_tailed.augmentation import label_aware_smoothing, remix_share, smoothing_of
from jaxkit.long_tailed.counts import check_counts, check_prior, log_prior, prior
from jaxkit.long_tailed.decoupled import class_means, crt, joint_training, lws, ncm, nearest_mean, tau_norm
from jaxkit.long_tailed.ensembles import (
    adapted_weights,
    aggregate,
    aggregation_weights,
    replicated,
    with_aggregation,
    with_experts,
)
from jaxkit.long_tailed.groups import accuracy_under, class_groups, group_accuracies, measure, present
from jaxkit.long_tailed.lade import lade_regulariser
from jaxkit.long_tailed.losses import (
    balanced_softmax,
    class_balanced,
    effective_number_weights,
    equalization,
    focal,
    inverse_weights,
    ldam,
    ldam_margins,
    logit_adjusted,
    seesaw,
    softmax,
    vector_scaling,
    weighted_softmax,
)
from jaxkit.long_tailed.posthoc import for_prior, logit_adjustment, tau_normalize, uno_ic
from jaxkit.long_tailed.profiles import AGNOSTIC, LongTail, long_tailed_task, row_weights, shifted_prior, shifted_test
from jaxkit.long_tailed.relative import (
    Training,
    describe,
    plan_trainings,
    relative_accuracy,
    relative_interval,
    upper_reference,
)
from jaxkit.long_tailed.representation import choose_beta, cosine_logits, paco_loss, tde_logits
from jaxkit.long_tailed.rescue import Rescue, rescue
from jaxkit.long_tailed.samplers import (
    SAMPLERS,
    by_class_weight,
    power_weights,
    progressive_weights,
    progressively_balanced,
    reversed_sampling,
    sampler,
    square_root,
)
from jaxkit.losses import cross_entropy

_SURVEY = "Y. Zhang et al. Deep long-tailed learning: a survey. TPAMI"
_REWEIGHTING = ("class re-balancing", "re-weighting")
_ADJUSTMENT = ("class re-balancing", "logit adjustment")
_MARGIN = ("class re-balancing", "re-margin")

LOSS_METHODS = {
    "softmax": Method(
        make=loss_methods.softmax,
        title="Softmax",
        paper=f"baseline of {_SURVEY}",
        year=2023,
        categories=("baseline",),
        evidence="definition",
    ),
    "weighted_softmax": Method(
        make=loss_methods.weighted_softmax,
        title="Weighted softmax",
        paper=f"baseline of {_SURVEY}",
        year=2023,
        categories=_REWEIGHTING,
        evidence="the released code's 1 - ln(pi / pi_max); form='paper' is the text's 1 / pi",
    ),
    "focal": Method(
        make=loss_methods.focal,
        title="Focal loss",
        paper="T.-Y. Lin et al. Focal loss for dense object detection. ICCV",
        year=2017,
        categories=_REWEIGHTING,
        evidence="eq. 4; gamma = 2 as in the paper (3 and no gradient through the factor in the survey's file)",
        traced=("gamma",),
        not_reproduced="the class balance factor alpha",
    ),
    "class_balanced": Method(
        make=loss_methods.class_balanced,
        title="Class-balanced loss",
        paper="Y. Cui et al. Class-balanced loss based on effective number of samples. CVPR",
        year=2019,
        categories=_REWEIGHTING,
        evidence="section 4; beta = 0.9999 as in the code of LDAM and RIDE",
        traced=("beta",),
        not_reproduced="the sigmoid form",
    ),
    "ldam": Method(
        make=loss_methods.ldam,
        title="LDAM",
        paper="K. Cao et al. Learning imbalanced datasets with label-distribution-aware margin loss. NeurIPS",
        year=2019,
        categories=_MARGIN,
        evidence="section 3.2; max margin 0.5 and s = 30 of the released code",
        traced=("max_margin", "scale"),
    ),
    "ldam_drw": Method(
        make=loss_methods.ldam_drw,
        title="LDAM-DRW",
        paper="K. Cao et al. Learning imbalanced datasets with label-distribution-aware margin loss. NeurIPS",
        year=2019,
        categories=_MARGIN,
        evidence="algorithm 1; weights from 160 of 200 epochs on, beta = 0.9999, of the released code",
        traced=("max_margin", "scale", "beta"),
    ),
    "esql": Method(
        make=loss_methods.esql,
        title="Equalization loss (softmax form)",
        paper="J. Tan et al. Equalization loss for long-tailed object recognition. CVPR",
        year=2020,
        categories=_REWEIGHTING,
        evidence="the survey's released code: gamma = 0.9, lambda = 4.3e-4 at 1000 classes, here 0.43 / C",
        traced=("gamma", "threshold"),
        not_reproduced="the sigmoid form for detection",
    ),
    "balanced_softmax": Method(
        make=loss_methods.balanced_softmax,
        title="Balanced softmax",
        paper="J. Ren et al. Balanced meta-softmax for long-tailed visual recognition. NeurIPS",
        year=2020,
        categories=_ADJUSTMENT,
        evidence="theorem 1",
        not_reproduced="the meta sampler",
    ),
    "lade": Method(
        make=loss_methods.lade,
        title="LADE",
        paper="Y. Hong et al. Disentangling label distribution for long-tailed visual recognition. CVPR",
        year=2021,
        categories=_ADJUSTMENT,
        evidence="released code; alpha = penalty = 0.1 of the survey's configuration",
        traced=("alpha", "penalty"),
    ),
    "logit_adjusted": Method(
        make=loss_methods.logit_adjusted,
        title="Logit adjusted loss",
        paper="A. Menon et al. Long-tail learning via logit adjustment. ICLR",
        year=2021,
        categories=_ADJUSTMENT,
        evidence="the logit adjusted softmax cross-entropy, tau = 1",
        traced=("tau",),
    ),
    "vector_scaling": Method(
        make=loss_methods.vector_scaling,
        title="Vector-scaling (VS) loss",
        paper="G. Kini et al. Label-imbalanced and group-sensitive classification under overparameterization. NeurIPS",
        year=2021,
        categories=_ADJUSTMENT,
        evidence="released code: gamma = 0.3, tau = 1",
        traced=("gamma", "tau"),
        not_reproduced="the group-sensitive form",
    ),
    "seesaw": Method(
        make=loss_methods.seesaw,
        title="Seesaw loss",
        paper="J. Wang et al. Seesaw loss for long-tailed instance segmentation. CVPR",
        year=2021,
        categories=_REWEIGHTING,
        evidence="released code: p = 0.8, q = 2, counts accumulated in training",
        traced=("p", "q"),
        not_reproduced="the objectness branch and the normalised classifier for detection",
    ),
}
"""The methods that are a loss."""

_KANG = "B. Kang et al. Decoupling representation and classifier for long-tailed recognition. ICLR"
_SAMPLING = ("class re-balancing", "re-sampling")
_DECOUPLED = ("module improvement", "decoupled training")
_CLASSIFIER = ("module improvement", "classifier design")

DECOUPLED_METHODS = {
    "class_balanced_sampling": Method(
        make=decoupled.class_balanced_sampling,
        title="Class-balanced sampling",
        paper=_KANG,
        year=2020,
        categories=_SAMPLING,
        evidence="section 3 with q = 0",
    ),
    "square_root_sampling": Method(
        make=decoupled.square_root_sampling,
        title="Square-root sampling",
        paper=_KANG,
        year=2020,
        categories=_SAMPLING,
        evidence="section 3 with q = 1/2",
    ),
    "progressive_sampling": Method(
        make=decoupled.progressive_sampling,
        title="Progressively-balanced sampling",
        paper=_KANG,
        year=2020,
        categories=_SAMPLING,
        evidence="section 3, eq. 2, with the step for the epoch; total_steps is to be given",
    ),
    "crt": Method(
        make=decoupled.crt,
        title="Decoupled, classifier re-training (cRT)",
        paper=_KANG,
        year=2020,
        categories=_DECOUPLED,
        evidence="section 4; stage 2 is 10 of 100 epochs; sampler= gives the study's IB, CB, SR and PB rows",
        not_reproduced="batch normalisation of the frozen backbone is not in training mode, as it is in the code",
    ),
    "lws": Method(
        make=decoupled.lws,
        title="Decoupled, learnable weight scaling (LWS)",
        paper=_KANG,
        year=2020,
        categories=_DECOUPLED,
        evidence="section 4; stage 2 is 5 epochs after 90, as in the released configuration",
        not_reproduced="batch normalisation of the frozen backbone is not in training mode, as it is in the code",
    ),
    "tau_norm": Method(
        make=decoupled.tau_norm,
        title="Decoupled, tau-normalised classifier",
        paper=_KANG,
        year=2020,
        categories=_CLASSIFIER,
        evidence="section 4, without the bias, as in the released code",
        traced=("tau",),
        not_reproduced="the choice of tau on validation data",
    ),
    "ncm": Method(
        make=decoupled.ncm,
        title="Decoupled, nearest class mean (NCM)",
        paper=_KANG,
        year=2020,
        categories=_CLASSIFIER,
        evidence="section 4: cosine, or Euclidean distance to the class means",
        not_reproduced="the released code's centred and normalised features",
    ),
}
"""The samplers by themselves, and the methods that balance the classifier alone."""

METHODS = {
    **LOSS_METHODS,
    **DECOUPLED_METHODS,
    **augmentation.METHODS,
    **representation.METHODS,
    **ensembles.METHODS,
}

__all__ = [
    "AGNOSTIC",
    "DECOUPLED_METHODS",
    "LOSS_METHODS",
    "METHODS",
    "SAMPLERS",
    "LongTail",
    "Rescue",
    "Training",
    "accuracy_under",
    "adapted_weights",
    "aggregate",
    "aggregation_weights",
    "balanced_softmax",
    "by_class_weight",
    "check_counts",
    "check_prior",
    "choose_beta",
    "class_balanced",
    "class_groups",
    "class_means",
    "cosine_logits",
    "cross_entropy",
    "crt",
    "describe",
    "effective_number_weights",
    "equalization",
    "focal",
    "for_prior",
    "group_accuracies",
    "inverse_weights",
    "joint_training",
    "label_aware_smoothing",
    "lade_regulariser",
    "ldam",
    "ldam_margins",
    "log_prior",
    "logit_adjusted",
    "logit_adjustment",
    "long_tailed_task",
    "lws",
    "measure",
    "ncm",
    "nearest_mean",
    "paco_loss",
    "plan_trainings",
    "power_weights",
    "present",
    "prior",
    "progressive_weights",
    "progressively_balanced",
    "relative_accuracy",
    "relative_interval",
    "remix_share",
    "replicated",
    "rescue",
    "reversed_sampling",
    "row_weights",
    "sampler",
    "seesaw",
    "shifted_prior",
    "shifted_test",
    "smoothing_of",
    "softmax",
    "square_root",
    "tau_norm",
    "tau_normalize",
    "tde_logits",
    "uno_ic",
    "upper_reference",
    "vector_scaling",
    "weighted_softmax",
    "with_aggregation",
    "with_experts",
]
