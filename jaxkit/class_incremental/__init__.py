"""Class-incremental learning: classes come task after task, and the rows of the old ones are gone.

>>> from jaxkit import class_incremental as cil
>>> stream = cil.make_stream(y, increment=2)
>>> plan = cil.METHODS["icarl"].make(network, optimizer, stream=stream, memory=200)
>>> fitted = jaxkit.training.fit(plan, {"x": x, "y": y}, key=0, steps=cil.steps_of(plan, 40, 128))

Every method is a plan with a stage, or a few, for each task (``incremental``). A class is its place in the stream
(``stream``); exemplars are fixed arrays (``memory``), chosen by ``herding``; both read-outs, the classifier and the
nearest mean, stand in the outputs (``readout``); ``protocol`` has the measures.
"""

from jaxkit.class_incremental import (
    analytic,
    baselines,
    boosted,
    branches,
    cosine,
    dark,
    distilled,
    expanding,
    projected,
    prompted,
    rectified,
    regularised,
    rmm,
    tokens,
    translated,
    transported,
)
from jaxkit.class_incremental.distilled import weight_alignment
from jaxkit.class_incremental.herding import herding
from jaxkit.class_incremental.incremental import plan_of, steps_of
from jaxkit.class_incremental.memory import Keep, Memory
from jaxkit.class_incremental.model import Model, load, start
from jaxkit.class_incremental.phases import Phase, Run, View, make_run
from jaxkit.class_incremental.protocol import (
    average_accuracy,
    curves,
    forgetting,
    intransigence,
    last_accuracy,
    measure,
)
from jaxkit.class_incremental.readout import among, class_means, distillation, nearest_mean
from jaxkit.class_incremental.recipes import RECIPES, by_recipe
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
        not_reproduced="the clipping of weights at 0, unless `clip=True` asks for it",
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
        evidence=f"eq. 5 to 10; {_CODE}: 10 proxies, lambda 5 and 1, margin 0.6 on the truth alone",
        traced=("spatial", "flat", "margin"),
        not_reproduced="proxies of new classes from k-means, fresh ones in its place as in the survey's code; of a "
        "ResNet the last map before the mean over pixels takes no part in POD-spatial",
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
    "l2p": Method(
        make=prompted.l2p,
        title="L2P",
        paper="Z. Wang et al. Learning to prompt for continual learning. CVPR",
        year=2022,
        categories=("model-centric", "dynamic networks", "prompt expansion"),
        evidence="section 4; its released code: 10 prompts of 10 tokens, of which a batch chooses 4; lambda = 1",
        traced=("strength",),
        not_reproduced="not comparable: its published rows have a transformer pre-trained on ImageNet-21k, here it "
        "is trained in the first task or given; and they are measured task by task, so that a batch tells its task",
    ),
    "dytox": Method(
        make=tokens.dytox,
        title="DyTox",
        paper="A. Douillard et al. DyTox: transformers for continual learning with dynamic token expansion. CVPR",
        year=2022,
        categories=("model-centric", "dynamic networks", "prompt expansion", "knowledge distillation"),
        evidence="section 3; its released code: lambda 0.1, T = 1, one finetuning epoch for 25 of training",
        traced=("strength", "temperature"),
        not_reproduced="not comparable: its published rows have a ConViT, here attention has no gated positions; and "
        "its repository has an erratum on the size of the memory",
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
    "derpp": Method(
        make=dark.derpp,
        title="DER++ (dark experience replay)",
        paper="P. Buzzega et al. Dark experience for general continual learning: a strong, simple baseline. NeurIPS",
        year=2020,
        categories=("data-centric", "data replay", "knowledge distillation"),
        evidence="section 3; its released code for CIFAR-10 and 500 exemplars: alpha 0.2, beta 0.5, mean over logits",
        traced=("alpha", "beta"),
        not_reproduced="reservoir sampling: herding chooses exemplars, stored with the logits of the end of the task",
    ),
    "simplecil": Method(
        make=analytic.simplecil,
        title="SimpleCIL",
        paper="D.-W. Zhou et al. Revisiting class-incremental learning with pre-trained models. arXiv 2303.07338",
        year=2023,
        categories=("algorithm-centric", "template-based classification"),
        evidence="its released code: prototypes and cosines on frozen features",
    ),
    "ranpac": Method(
        make=analytic.ranpac,
        title="RanPAC",
        paper="M. McDonnell et al. RanPAC: random projections and pre-trained models for continual learning. NeurIPS",
        year=2023,
        categories=("algorithm-centric", "template-based classification"),
        evidence="algorithm 1; its released code: M = 10,000, lambda in 1e-8 to 1e8 by a fifth of the task's rows",
        not_reproduced="adapters tuned on the first task; the fifth is the last of each class, not drawn",
    ),
    "acil": Method(
        make=analytic.acil,
        title="ACIL",
        paper="H. Zhuang et al. ACIL: analytic class-incremental learning with absolute memorization. NeurIPS",
        year=2022,
        categories=("algorithm-centric", "template-based classification"),
        evidence="eq. 9 and 10, the recursion by its root; its released code: buffer 8192, gamma 0.1",
        traced=("ridge",),
        not_reproduced="the training of the embedding on the first task",
    ),
    "fetril": Method(
        make=translated.fetril,
        title="FeTrIL",
        paper="G. Petit et al. FeTrIL: feature translation for exemplar-free class-incremental learning. WACV",
        year=2023,
        categories=("data-centric", "data replay"),
        evidence="section 3; its released code: the nearest new class by Euclidean distance of means",
        not_reproduced="the linear SVM of its main variant: the linear head is trained by descent (FeTrIL fc)",
    ),
    "coil": Method(
        make=transported.coil,
        title="Coil",
        paper="D.-W. Zhou et al. Co-transport for class-incremental learning. ACM MM",
        year=2021,
        categories=("algorithm-centric", "knowledge distillation"),
        evidence=f"{_CODE}: epsilon 0.464, p = 3, weights 1e-3, T = 2",
        traced=("epochs", "prospective_strength", "retrospective_strength", "temperature", "regulariser"),
        not_reproduced="a new plan every 200 steps; old classes have the means of their exemplars, where the released "
        "code takes all their training rows",
    ),
    "rmm": Method(
        make=rmm.rmm,
        title="RMM",
        paper="Y. Liu et al. RMM: reinforced memory management for class-incremental learning. NeurIPS",
        year=2021,
        categories=("data-centric", "data replay"),
        evidence=f"{_CODE}: on FOSTER or iCaRL, with the rates of its scripts for CIFAR-100",
        traced=("temperature",),
        not_reproduced="the search (policy_search) has a linear softmax policy over a few rates, of the task alone",
    ),
    "aanets": Method(
        make=branches.aanets,
        title="AANets",
        paper="Y. Liu et al. Adaptive aggregation networks for class-incremental learning. CVPR",
        year=2021,
        categories=("model-centric", "dynamic networks", "backbone expansion"),
        evidence="its released code, on LUCIR: factors, what is frozen, alpha 0.5 at the start",
        traced=("strength", "margin"),
        not_reproduced="alpha moves at every step, by the same rows weighted to balance, where the released code has a "
        "pass over balanced rows after each epoch",
    ),
}

__all__ = [
    "METHODS",
    "RECIPES",
    "Keep",
    "Memory",
    "Model",
    "Phase",
    "Run",
    "Stream",
    "Task",
    "View",
    "among",
    "average_accuracy",
    "bounds_of",
    "by_recipe",
    "class_means",
    "class_order",
    "curves",
    "distillation",
    "forgetting",
    "herding",
    "in_order",
    "intransigence",
    "last_accuracy",
    "load",
    "make_run",
    "make_stream",
    "measure",
    "nearest_mean",
    "plan_of",
    "start",
    "steps_of",
    "weight_alignment",
]
