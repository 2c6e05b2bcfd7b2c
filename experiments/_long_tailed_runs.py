"""What a cell of the long-tailed study computes: one method trained on the data of all seeds, and its measures."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import optax

from experiments._long_tailed_data import Part, Task
from experiments.runner import Skip
from jaxkit import check, data, long_tailed, networks, training
from jaxkit.data import transforms
from jaxkit.evaluation import expected_calibration_error, per_class_accuracy
from jaxkit.learner import Learner, Network, Plan, Stage
from jaxkit.networks import heads

SHIFTS = tuple((way, rho) for way in ("forward", "backward") for rho in (50, 10, 2))

SAMPLERS = {"decouple_cb_crt": "class_balanced", "decouple_sr_crt": "square_root", "decouple_pb_crt": "progressive"}
"""cRT after other samplers; the study's Decouple-IB-cRT is ``crt`` itself."""
MARGINS = ("ldam", "ldam_drw", "rsg", "ride")
"""Losses that presume a cosine head of scale 30, as their papers have it."""
PICTURES = ("cmo",)
"""Methods that paste one picture into another."""
GROUPED = ("lfme", "reslt")
"""Methods that form groups of classes; on the balanced twin, where all counts are equal, by rank."""
SMALL = {"paco": {"dim": 32, "queue_size": 256, "key_momentum": 0.99, "alpha": 0.003}}
"""Settings for ten classes, some hundreds of rows and steps. The weight of a centre is 1 / (1 + alpha n) for a row with
n positives; alpha makes alpha n of the largest class what it is for CIFAR-100-LT in the released code, about 0.5."""
SLOWER = {"paco": 0.4}
"""The share of the study's learning rate: at all of it a network without normalisation died in one of five seeds, under
a contrast of temperature 0.07 (every unit 0, 10 % accuracy)."""
UNIFORM = ("balanced_softmax", "logit_adjusted", "lade", "logit_adjustment", "uno_ic")
"""Rows whose logits are for a uniform prior, so that ``for_prior`` turns them to a known one."""
NO_PROBABILITIES = ("ncm",)
"""Rows whose scores are no log-probabilities: no calibration error."""


def network_of(kind: str, classes: int, head: Any = "linear") -> Network:
    """The network of a setting: one for all its methods."""
    if kind == "mlp":
        return networks.mlp(classes, hidden=(64, 64), head=head)
    if kind == "convnet":  # 0.7 MFLOP for a picture of 28x28
        return networks.convnet(classes, width=16, head=head)
    if kind == "linear":
        return networks.mlp(classes, hidden=(), head=head)
    return networks.resnet32(classes, head=head)


def plan_of(method: str, options: Any, counts: np.ndarray, *, twin: bool = False) -> Plan:
    """The method as a plan of so many steps, with the optimizer of the study in each of its stages.

    ``options`` has network, batch_size, steps, learning_rate, groups. The learning rate of every optimizer falls by a
    half cosine over the steps that it has.
    """
    make = long_tailed.METHODS["crt" if method in SAMPLERS else method].make
    known = inspect.signature(make).parameters
    settings: dict[str, Any] = dict(SMALL.get(method, {})) if options.steps < 10_000 else {}
    head: Any = heads.cosine(scale=30.0, learn_scale=False) if method in MARGINS else "linear"
    stages = [name.removesuffix("_optimizer") for name in known if name.endswith("_optimizer")]
    shares = [known[f"{name}_share"].default for name in [*stages, *(["experts"] if method == "lfme" else [])]]
    first = options.steps - sum(round(share * options.steps) for share in shares)
    for name in stages:
        settings[f"{name}_optimizer"] = optimizer_of(options, round(known[f"{name}_share"].default * options.steps))
    if method in SAMPLERS:
        settings["sampler"] = SAMPLERS[method]
    if "total_steps" in known and (known["total_steps"].default is inspect.Parameter.empty
                                   or method in ("decouple_pb_crt", "progressive_sampling")):  # fmt: skip
        settings["total_steps"] = first
    if "by" in known:
        settings["by"] = "rank" if twin else options.groups
    if "head" in known:
        settings["head"] = head
    batch_size = min(options.batch_size, int(counts.sum()))
    if "batch_size" in known:
        settings["batch_size"] = batch_size
    network = network_of(options.network, counts.size, head)
    share = SLOWER.get(method, 1.0) if options.network == "convnet" else 1.0
    made = make(network, optimizer_of(options, first, share), class_counts=counts, **settings)
    plan = (Stage("train", made, data.epochs(batch_size)),) if isinstance(made, Learner) else tuple(made)
    if options.network != "resnet32":
        return plan
    augment = transforms.chain(transforms.random_crop(4), transforms.horizontal_flip())
    return tuple(stage._replace(source=data.views(stage.source, augment)) for stage in plan)


def optimizer_of(options: Any, steps: int, share: float = 1.0) -> optax.GradientTransformation:
    """SGD with momentum 0.9 and weight decay; the rate, a ``share`` of the study's, falls to 0 by a half cosine over
    ``steps``; ResNet-32 has a warm-up of 5 of 200 epochs."""
    deep = options.network == "resnet32"
    schedule = training.cosine(share * options.learning_rate, max(steps, 1), warmup=0.025 if deep else 0.0)
    return optax.chain(optax.add_decayed_weights(2e-4 if deep else 5e-4), optax.sgd(schedule, 0.9))


def unsuited(method: str, task: Task, groups: str) -> str:
    """Why a method cannot be trained on such rows; empty where it can."""
    if method in PICTURES and task.train["x"].ndim != 5:
        return "it needs pictures [height, width, channels]"
    if method in GROUPED:
        sizes = np.bincount(np.asarray(long_tailed.class_groups(task.counts, by=groups)), minlength=3)
        if (sizes == 0).any():
            empty = long_tailed.groups.GROUPS[int(np.argmin(sizes))]
            return f"it needs classes in each group and none is {empty}-shot; take --groups rank"
    return ""


def train_and_measure(
    method: str, task: Task, options: Any, readouts: dict[str, Callable], context: Any
) -> dict[str, Any]:
    """Train on the long tail, and where the options say ``relative`` on the twin; measure every read-out.

    Returns ``readouts`` (name -> measures, each a list over seeds), ``fit`` (accuracy on the training rows) and
    ``seconds`` by training set.
    """
    sets = {"tail": (task.train, task.counts)}
    if options.relative and task.twin is not None:
        sets["twin"] = (task.twin, task.twin_counts)
    found: dict[str, Any] = {"readouts": {name: {} for name in readouts}, "fit": {}, "seconds": {}}

    def one(where: str) -> tuple[np.ndarray, np.ndarray, float]:
        begin = time.perf_counter()
        logits, fits = _trained(method, *sets[where], task, options, context, where)
        return logits, fits, round(time.perf_counter() - begin, 2)

    # Two programs to compile, and small steps: on a CPU the twin has the other core.
    with ThreadPoolExecutor(1) as aside:
        later = aside.submit(one, "twin") if "twin" in sets and jax.default_backend() == "cpu" else None
        for where, (_, counts) in sets.items():
            logits, fits, seconds = later.result() if later is not None and where == "twin" else one(where)
            for name, read in readouts.items():
                values = np.asarray(read(logits, counts))
                if where == "twin":
                    accuracy = (values.argmax(-1) == task.test["y"]).mean(-1)
                    found["readouts"][name]["twin_accuracy"] = accuracy.tolist()
                else:
                    found["readouts"][name] |= measures(name or method, values, task.test["y"], counts, options.groups)
            found["fit"][where], found["seconds"][where] = fits.tolist(), seconds
            context.log({"event": "trained", "set": where, "seconds": seconds})
    return found


def _trained(
    method: str, rows: Part, counts: np.ndarray, task: Task, options: Any, context: Any, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the test rows [seeds, rows, C], and accuracies on the training rows [seeds]."""
    seeds = len(rows["y"])
    reason = unsuited(method, task, options.groups)
    if reason:
        raise Skip(f"{method} does not apply here: {reason}")
    try:
        plan = plan_of(method, options, counts, twin=where == "twin")
        fitted = training.fit(
            plan, rows, key=0, steps=options.steps, seeds=seeds, per_seed=True, progress=False,
            profile=context.profile if where == "tail" else None,
        )  # fmt: skip
    except check.UsageError as error:
        raise Skip(f"{method} does not apply here: {error}") from None
    run = _reader(plan[-1].learner.predict, task.shared)
    logits, accuracy = run(fitted.state, rows, task.test["x"])
    return np.asarray(logits), np.asarray(accuracy)


def _reader(predict: Callable, shared: bool) -> Callable:
    """``(states, training rows, test x) -> (logits of the test rows, accuracy on the training rows)`` of all seeds."""

    def one(state: Any, rows: Part, x: Any) -> tuple[jax.Array, jax.Array]:
        known = training.predict_all(predict, state, rows["x"])["logits"]
        return training.predict_all(predict, state, x)["logits"], (known.argmax(-1) == rows["y"]).mean()

    def run(states: Any, rows: Part, x: Any) -> tuple[jax.Array, jax.Array]:
        if shared:
            return jax.lax.map(lambda own: one(*own, x), (states, rows))
        return jax.lax.map(lambda own: one(*own), (states, rows, x))

    return jax.jit(run)


def adjusted(logits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Post-hoc logit adjustment, tau = 1."""
    return np.asarray(long_tailed.logit_adjustment(logits, counts))


def measures(row: str, logits: np.ndarray, labels: np.ndarray, counts: np.ndarray, groups: str) -> dict[str, Any]:
    """What is read off logits [seeds, rows, C] with labels [seeds, rows]: fractions, a list over seeds each; None for
    a group without a class.

    ``forward50`` and so on are accuracies on test sets that are long-tailed themselves, and ``forward50_told`` those of
    logits that are told the prior of such a test set.
    """
    each = lambda measure: [measure(z, y) for z, y in zip(logits, labels, strict=True)]
    by_seed = each(lambda z, y: long_tailed.group_accuracies(z, y, counts, by=groups))
    stacked = {name: np.asarray([one[name] for one in by_seed]) for name in by_seed[0]}
    found: dict[str, Any] = dict(long_tailed.present(stacked))
    of_class = np.asarray(each(per_class_accuracy))
    found |= {"class_accuracy": of_class, "macro_accuracy": of_class.mean(-1)}
    if row not in NO_PROBABILITIES:
        found["calibration_error"] = np.asarray(each(expected_calibration_error))
    found["uniform"] = found["macro_accuracy"]
    for way, rho in SHIFTS:
        prior = long_tailed.shifted_prior(counts, way, rho)
        found[f"{way}{rho}"] = np.asarray(long_tailed.accuracy_under(of_class, prior))
        if row in UNIFORM:
            told = np.asarray(each(lambda z, y: per_class_accuracy(long_tailed.for_prior(z, prior), y)))
            found[f"{way}{rho}_told"] = np.asarray(long_tailed.accuracy_under(told, prior))
    return {name: None if value is None else value.tolist() for name, value in found.items()}
