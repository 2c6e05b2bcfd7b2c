"""Class-incremental learning: classes come task after task, and the rows of the old ones are gone.

>>> from jaxkit import class_incremental as cil
>>> stream = cil.make_stream(y, increment=2)
>>> plan = cil.METHODS["icarl"].make(network, optimizer, stream=stream, memory=200)
>>> fitted = jaxkit.training.fit(plan, {"x": x, "y": y}, key=0, steps=cil.steps_of(plan, 40, 128))

Every method is a plan with a stage, or a few, for each task (``incremental``). A class is its place in the stream
(``stream``); exemplars are fixed arrays (``memory``), chosen by ``herding``; both read-outs, the classifier and the
nearest mean, stand in the outputs (``readout``); ``protocol`` has the measures.
"""

from jaxkit.class_incremental import baselines, boosted, cosine, distilled, expanding, projected, rectified, regularised
from jaxkit.class_incremental.distilled import weight_alignment
from jaxkit.class_incremental.herding import herding
from jaxkit.class_incremental.incremental import Phase, Run, View, make_run, plan_of, steps_of
from jaxkit.class_incremental.memory import Keep, Memory
from jaxkit.class_incremental.protocol import (
    average_accuracy,
    curves,
    forgetting,
    intransigence,
    last_accuracy,
    measure,
)
from jaxkit.class_incremental.readout import among, class_means, distillation, nearest_mean
from jaxkit.class_incremental.stream import Stream, bounds_of, class_order, in_order, make_stream
from jaxkit.class_incremental.task import Task
from jaxkit.learner import Method

_SURVEY = "D.-W. Zhou et al. Class-incremental learning: a survey. TPAMI"
_CODE = "the survey's released code"

METHODS = {
    "finetune": Method(
        make=baselines.finetune,
        title="Finetune",
        paper=f"baseline of {_SURVEY}",
        year=2024,
        categories=("baseline",),
        evidence=f"{_CODE}: cross-entropy among the new classes alone",
    ),
    "replay": Method(
        make=baselines.replay,
        title="Replay",
        paper=f"baseline of {_SURVEY}",
        year=2024,
        categories=("data-centric", "data replay"),
        evidence="section 4.1; exemplars by herding",
    ),
    "joint": Method(
        make=baselines.joint,
        title="Joint training",
        paper="A. Chaudhry et al. Riemannian walk for incremental learning. ECCV",
        year=2018,
        categories=("baseline",),
        evidence="section 3, the reference model of intransigence",
    ),
    "ewc": Method(
        make=regularised.ewc,
        title="EWC",
        paper="J. Kirkpatrick et al. Overcoming catastrophic forgetting in neural networks. PNAS",
        year=2017,
        categories=("model-centric", "parameter regularization"),
        evidence=f"eq. 3; {_CODE}: lambda 1000, F at most 1e-4",
        traced=("strength", "most"),
    ),
    "si": Method(
        make=regularised.si,
        title="SI",
        paper="F. Zenke et al. Continual learning through synaptic intelligence. ICML",
        year=2017,
        categories=("model-centric", "parameter regularization"),
        evidence="eq. 4 and 5; c = 1, xi = 0.1 (permuted MNIST)",
        traced=("strength", "damping", "most"),
    ),
    "mas": Method(
        make=regularised.mas,
        title="MAS",
        paper="R. Aljundi et al. Memory aware synapses: learning what (not) to forget. ECCV",
        year=2018,
        categories=("model-centric", "parameter regularization"),
        evidence="eq. 3 to 5; lambda = 1",
        traced=("strength", "most"),
    ),
    "lwf": Method(
        make=distilled.lwf,
        title="LwF",
        paper="Z. Li and D. Hoiem. Learning without forgetting. ECCV",
        year=2016,
        categories=("algorithm-centric", "knowledge distillation"),
        evidence=f"{_CODE}: T = 2, weight 3, no factor T^2",
        traced=("strength", "temperature"),
    ),
    "icarl": Method(
        make=distilled.icarl,
        title="iCaRL",
        paper="S.-A. Rebuffi et al. iCaRL: incremental classifier and representation learning. CVPR",
        year=2017,
        categories=("algorithm-centric", "data replay", "knowledge distillation", "template-based classification"),
        evidence=f"algorithms 1 to 5; {_CODE}: cross-entropy in place of the binary one, T = 2",
        traced=("temperature",),
    ),
    "wa": Method(
        make=distilled.wa,
        title="WA",
        paper="B. Zhao et al. Maintaining discrimination and fairness in class incremental learning. CVPR",
        year=2020,
        categories=("algorithm-centric", "knowledge distillation", "model rectify"),
        evidence=f"eq. 7 and 8; {_CODE}: weight 2, T = 2",
        traced=("strength", "temperature"),
        not_reproduced="the clipping of weights at 0",
    ),
    "bic": Method(
        make=rectified.bic,
        title="BiC",
        paper="Y. Wu et al. Large scale incremental learning. CVPR",
        year=2019,
        categories=("algorithm-centric", "knowledge distillation", "model rectify"),
        evidence=f"eq. 2 to 5; {_CODE}: T = 2, a tenth held back",
        traced=("temperature",),
    ),
    "lucir": Method(
        make=cosine.lucir,
        title="LUCIR",
        paper="S. Hou et al. Learning a unified classifier incrementally via rebalancing. CVPR",
        year=2019,
        categories=("algorithm-centric", "knowledge distillation", "model rectify"),
        evidence="eq. 3, 6 and 8; lambda 5, m = 0.5, K = 2 of its released code for CIFAR-100",
        traced=("strength", "margin"),
        not_reproduced="the class-balanced finetuning, which the paper leaves out for its main results",
    ),
    "podnet": Method(
        make=cosine.podnet,
        title="PODNet",
        paper="A. Douillard et al. PODNet: pooled outputs distillation for small-tasks incremental learning. ECCV",
        year=2020,
        categories=("algorithm-centric", "knowledge distillation"),
        evidence=f"eq. 5 to 10; {_CODE}: 10 proxies, lambda 5 and 1, margin 0.6",
        traced=("spatial", "flat", "margin"),
    ),
    "der": Method(
        make=expanding.der,
        title="DER (expandable)",
        paper="S. Yan et al. DER: dynamically expandable representation for class incremental learning. CVPR",
        year=2021,
        categories=("model-centric", "dynamic networks", "backbone expansion"),
        evidence=f"eq. 3 to 6; {_CODE}",
        traced=("strength",),
        not_reproduced="the pruning by channel masks; the temperature and the warm-up of the paper's text",
    ),
    "memo": Method(
        make=expanding.memo,
        title="MEMO",
        paper="D.-W. Zhou et al. A model or 603 exemplars: towards memory-efficient class-incremental learning. ICLR",
        year=2023,
        categories=("model-centric", "dynamic networks", "backbone expansion"),
        evidence=f"eq. 6 and 7; {_CODE}",
        traced=("strength",),
    ),
    "foster": Method(
        make=boosted.foster,
        title="FOSTER",
        paper="F.-Y. Wang et al. FOSTER: feature boosting and compression for class-incremental learning. ECCV",
        year=2022,
        categories=("model-centric", "dynamic networks", "backbone expansion", "knowledge distillation"),
        evidence=f"{_CODE}: beta 0.96 and 0.97, lambda 1, T = 2",
        traced=("strength", "temperature", "beta_boosting", "beta_compression"),
    ),
    "gem": Method(
        make=projected.gem,
        title="GEM",
        paper="D. Lopez-Paz and M. Ranzato. Gradient episodic memory for continual learning. NeurIPS",
        year=2017,
        categories=("data-centric", "data regularization"),
        evidence="eq. 8 to 11; all exemplars of each task at each step",
        traced=("margin",),
    ),
    "agem": Method(
        make=projected.agem,
        title="A-GEM",
        paper="A. Chaudhry et al. Efficient lifelong learning with A-GEM. ICLR",
        year=2019,
        categories=("data-centric", "data regularization"),
        evidence="eq. 11; 256 exemplars at each step",
    ),
}

__all__ = [
    "METHODS",
    "Keep",
    "Memory",
    "Phase",
    "Run",
    "Stream",
    "Task",
    "View",
    "among",
    "average_accuracy",
    "bounds_of",
    "class_means",
    "class_order",
    "curves",
    "distillation",
    "forgetting",
    "herding",
    "in_order",
    "intransigence",
    "last_accuracy",
    "make_run",
    "make_stream",
    "measure",
    "nearest_mean",
    "plan_of",
    "steps_of",
    "weight_alignment",
]
