"""Ensembles of experts on long-tailed data: methods that train several classifiers and let them decide together.

An ensemble is one network with the further outputs ``logits_experts`` [batch, E, C] and ``features_experts``
[batch, E, F] (``experts``): copies of a network, or heads on one backbone.
"""

from jaxkit.learner import Method
from jaxkit.long_tailed.ensembles.bbn import bbn, bilateral_logits, cumulative_weight
from jaxkit.long_tailed.ensembles.experts import replicated, with_experts
from jaxkit.long_tailed.ensembles.lfme import curriculum_weights, distillation_weights, lfme
from jaxkit.long_tailed.ensembles.reslt import nested, residual_losses, reslt
from jaxkit.long_tailed.ensembles.ride import class_temperatures, expert_diversity, ride
from jaxkit.long_tailed.ensembles.router import expert_needed, experts_used, routing_loss, routing_stage, with_router
from jaxkit.long_tailed.ensembles.sade import (
    adapted_weights,
    aggregate,
    aggregation_weights,
    expert_adjustments,
    reversed_prior,
    sade,
    view_similarity,
    with_aggregation,
)

_ENSEMBLE = ("module improvement", "ensemble")
_TRUNK = "a backbone whose first stages are shared and whose last are not (copies, or one backbone by with_experts)"

METHODS: dict[str, Method] = {
    "ride": Method(
        make=ride,
        title="RIDE",
        paper="X. Wang et al. Long-tailed recognition by routing diverse distribution-aware experts. ICLR",
        year=2021,
        categories=_ENSEMBLE,
        evidence="released code: diversity 0.2, weights from 160 of 200 epochs on; 0.02 of the survey's configuration",
        traced=("diversity",),
        not_reproduced=f"{_TRUNK}; distillation from a larger ensemble",
    ),
    "sade": Method(
        make=sade,
        title="SADE",
        paper="Y. Zhang et al. Self-supervised aggregation of diverse experts for test-agnostic recognition. NeurIPS",
        year=2022,
        categories=_ENSEMBLE,
        evidence="eq. 2-5 and released code, tau = 2; the test-time step is aggregation_weights",
        traced=("tau",),
        not_reproduced=_TRUNK,
    ),
    "reslt": Method(
        make=reslt,
        title="ResLT",
        paper="J. Cui et al. ResLT: Residual learning for long-tailed recognition. TPAMI",
        year=2022,
        categories=_ENSEMBLE,
        evidence="released code; beta = 0.99 of the survey's configuration, groups from counts",
        traced=("beta",),
        not_reproduced="1x1 convolutions before the pooling (with_experts: dense layers after it), one classifier for "
        "the three heads, and its normalisation by |w|^gamma at test",
    ),
    "bbn": Method(
        make=bbn,
        title="BBN",
        paper="B. Zhou et al. BBN: Bilateral-branch network with cumulative learning for long-tailed recognition. CVPR",
        year=2020,
        categories=_ENSEMBLE,
        evidence="released code: alpha = 1 - ((epoch - 1) / epochs)^2, with the step for the epoch; a reference row; "
        "total_steps is to be given",
        not_reproduced="the trunk that both branches share: they are two networks; one bias for both",
    ),
    "lfme": Method(
        make=lfme,
        title="LFME",
        paper="L. Xiang et al. Learning from multiple experts: self-paced knowledge distillation. ECCV",
        year=2020,
        categories=_ENSEMBLE,
        evidence="released code: T = 2, threshold 0.3; a reference row; total_steps is to be given",
        traced=("temperature",),
        not_reproduced="accuracies on validation data (here on training rows); confidences without augmentation; "
        "experts trained one by one; a curriculum that weighs logits, in the end above 1 (here the loss, up to 1)",
    ),
}

__all__ = [
    "METHODS",
    "adapted_weights",
    "aggregate",
    "aggregation_weights",
    "bbn",
    "bilateral_logits",
    "class_temperatures",
    "cumulative_weight",
    "curriculum_weights",
    "distillation_weights",
    "expert_adjustments",
    "expert_diversity",
    "expert_needed",
    "experts_used",
    "lfme",
    "nested",
    "replicated",
    "residual_losses",
    "reslt",
    "reversed_prior",
    "ride",
    "routing_loss",
    "routing_stage",
    "sade",
    "view_similarity",
    "with_aggregation",
    "with_experts",
    "with_router",
]
