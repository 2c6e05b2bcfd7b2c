"""Learning on graphs: AdaGCN, its ablations and its baselines, under the protocol of PPNP.

>>> from jaxkit import fit, data, networks
>>> from jaxkit.graphs import adagcn, build, node_data, ppnp_split, standardize
"""

import functools

from jaxkit.graphs.adagcn import Boosting, HopState, adagcn, boosting_of, hop_plan
from jaxkit.graphs.boosting import (
    WEIGHTINGS,
    effective_sample_size,
    inverted_weights,
    log_probabilities,
    next_weights,
    samme_r_scores,
    samme_r_weights,
)
from jaxkit.graphs.compiled import HopRows, Run, ensemble, run
from jaxkit.graphs.full_graph import node_classification
from jaxkit.graphs.precomputed import hop_regression, node_mlp, on_features, sgc
from jaxkit.graphs.protocol import (
    KNOWN,
    TEST_SEEDS,
    VALIDATION_SEEDS,
    Split,
    half_widths,
    planetoid_split,
    ppnp_split,
    split_seeds,
)
from jaxkit.graphs.standardize import Standardized, standardize
from jaxkit.graphs.stopping import keep_best
from jaxkit.graphs.structure import (
    Nodes,
    Sparse,
    build,
    dense_nodes,
    hops,
    node_data,
    normalized,
    propagate,
    with_pagerank,
)
from jaxkit.learner import Method

uniform_sum = functools.partial(adagcn, weighting="uniform")
"""``adagcn`` without boosting: the sum of h over hops with equal sample weights."""

best_hop = functools.partial(adagcn, weighting="uniform", combine="best")
"""``adagcn`` without boosting and without the sum: the single hop with the best accuracy on the stopping nodes."""

_ADAGCN = "K. Sun, Z. Zhu and Z. Lin. AdaGCN: Adaboosting graph convolutional networks into deep models. ICLR"
_TRACED = ("l2", "weight_decay")

METHODS = {
    "adagcn": Method(
        make=adagcn,
        title="AdaGCN",
        paper=_ADAGCN,
        year=2021,
        categories=("boosting", "propagation between trainings"),
        evidence="SAMME.R: Zhu et al. 2009, Algorithm 4; defaults: the released code's, hops by its README's commands",
        traced=_TRACED,
        not_reproduced="the paper's adaptive threshold for the number of layers",
        layout="graph",
    ),
    "uniform_sum": Method(
        make=uniform_sum,
        title="Uniform sum over hops",
        paper=f"ablation of {_ADAGCN}",
        year=2021,
        categories=("ensemble", "propagation between trainings"),
        evidence="AdaGCN with w = 1/n throughout",
        traced=_TRACED,
        layout="graph",
    ),
    "best_hop": Method(
        make=best_hop,
        title="Best single hop",
        paper=f"ablation of {_ADAGCN}",
        year=2021,
        categories=("propagation between trainings",),
        evidence="the hop of the uniform sum with the highest accuracy on the stopping nodes",
        traced=_TRACED,
        layout="graph",
    ),
    "node_mlp": Method(
        make=node_mlp,
        title="MLP without a graph",
        paper="J. Gasteiger, A. Bojchevski and S. Guennemann. Predict then propagate. ICLR (its protocol)",
        year=2019,
        categories=("baseline", "no propagation"),
        evidence="definition; protocol: PPNP, appendix B",
        traced=_TRACED,
        layout="graph",
    ),
    "hop_regression": Method(
        make=hop_regression,
        title="Logistic regression on hops",
        paper="F. Frasca et al. SIGN: Scalable inception graph neural networks. ICML workshop",
        year=2020,
        categories=("baseline", "propagation before training"),
        evidence="eq. 3 with linear layers",
        traced=_TRACED,
        layout="graph",
    ),
    "sgc": Method(
        make=sgc,
        title="SGC",
        paper="F. Wu et al. Simplifying graph convolutional networks. ICML",
        year=2019,
        categories=("baseline", "propagation before training"),
        evidence="eq. 8",
        traced=_TRACED,
        not_reproduced="the paper's L-BFGS and tuned weight decay",
        layout="graph",
    ),
    "node_classification": Method(
        make=node_classification,
        title="A graph network on the labelled nodes",
        paper="J. Gasteiger, A. Bojchevski and S. Guennemann. Predict then propagate. ICLR (its protocol)",
        year=2019,
        categories=("baseline", "propagation inside every step"),
        evidence="PPNP, appendix B; the network is GCN, GAT, APPNP, PPNP, JK-Net, GCNII or MixHop",
        traced=_TRACED,
        layout="graph",
    ),
}

__all__ = [
    "KNOWN",
    "METHODS",
    "TEST_SEEDS",
    "VALIDATION_SEEDS",
    "WEIGHTINGS",
    "Boosting",
    "HopRows",
    "HopState",
    "Nodes",
    "Run",
    "Sparse",
    "Split",
    "Standardized",
    "adagcn",
    "best_hop",
    "boosting_of",
    "build",
    "dense_nodes",
    "effective_sample_size",
    "ensemble",
    "half_widths",
    "hop_plan",
    "hop_regression",
    "hops",
    "inverted_weights",
    "keep_best",
    "log_probabilities",
    "next_weights",
    "node_classification",
    "node_data",
    "node_mlp",
    "normalized",
    "on_features",
    "planetoid_split",
    "ppnp_split",
    "propagate",
    "run",
    "samme_r_scores",
    "samme_r_weights",
    "sgc",
    "split_seeds",
    "standardize",
    "uniform_sum",
    "with_pagerank",
]
