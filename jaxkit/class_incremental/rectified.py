"""BiC: a linear correction of each task's logits, learnt on rows held back."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.class_incremental.baselines import seen_classes
from jaxkit.class_incremental.distilled import Scalar, taught
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run
from jaxkit.class_incremental.readout import among
from jaxkit.class_incremental.stream import Stream
from jaxkit.learner import Batch, Data, Key, Network, Outputs, Plan, TrainState, batch_mean
from jaxkit.losses import cross_entropy

NAMES = ("alpha", "beta")


def corrected(
    logits: Float[Array, "*batch classes"],
    alpha: Float[Array, " tasks"],
    beta: Float[Array, " tasks"],
    task_of: Int[Array, " classes"],
) -> Float[Array, "*batch classes"]:
    """alpha_t z_c + beta_t for the classes c of task t. (Wu et al. 2019, eq. 5; there old tasks keep 1 and 0.)"""
    return alpha[task_of] * logits + beta[task_of]


def nothing_to_correct() -> dict[str, Array]:
    """The numbers of a task whose logits stay as they are."""
    return {"alpha": jnp.ones((), jnp.float32), "beta": jnp.zeros((), jnp.float32)}


def with_correction(network: Network, stream: Stream) -> Network:
    """The network with the corrections of all tasks behind its logits, which stay as ``logits_raw``.

    Variables: those of the network as ``network``, and ``alpha`` and ``beta``, [tasks]. Parameters: ``rectify``, the
    two numbers of the task at hand while they are learnt.
    """
    task_of = jnp.asarray(stream.task_of())

    def init(key, x):
        params, variables = network.init(key, x)
        ones = jnp.ones((stream.num_tasks,), jnp.float32)
        table = {"alpha": ones, "beta": jnp.zeros_like(ones)}
        return {**params, "rectify": nothing_to_correct()}, {"network": variables, **table}

    def apply(params, variables, x, **options) -> tuple[Outputs, object]:
        inner = {name: value for name, value in params.items() if name != "rectify"}
        outputs, after = network.apply(inner, variables["network"], x, **options)
        logits = corrected(outputs["logits"], variables["alpha"], variables["beta"], task_of)
        return {**outputs, "logits": logits, "logits_raw": outputs["logits"]}, {**variables, "network": after}

    return network._replace(init=init, apply=apply)


def uncorrected(state: TrainState, data: Data, key: Key) -> TrainState:
    """A correction begins: 1 and 0."""
    return state._replace(params={**state.params, "rectify": nothing_to_correct()})


def entered(state: TrainState, data: Data, key: Key) -> TrainState:
    """What was learnt stands in the table, at the task's place; those of other tasks stay."""
    learnt, number = state.params["rectify"], state.extra.number
    table = {name: state.variables[name].at[number].set(learnt[name]) for name in NAMES}
    return state._replace(variables={**state.variables, **table})


def bic(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    temperature: Scalar = 2.0,
    held: float = 0.1,
    bias_share: float = 1.0,
    compat: bool = False,
    **settings: Unpack[Settings],
) -> Plan:
    """Two phases. Train: min (1 - lambda) CE(z_seen) + lambda KD(z_old, z_old before the task; T), lambda = K_old / K,
    without the rows held back. Correct: min CE(alpha_t z_c + beta_t for the classes of the task) on those rows, over
    alpha_t and beta_t alone.

    Args:
      network, optimizer: of both phases.
      temperature: T. May be traced.
      held: the share of the exemplars that is held back, and as many rows of each new class; of the first task none.
      bias_share: epochs of the second phase for one of the first.
      compat: take the cross-entropy of softmax(z) in the second phase, so the softmax twice, as the released code of
        the survey does.
      settings: see ``Settings``.

    Source: Wu et al. 2019, Large scale incremental learning, CVPR; lambda, T = 2 and the equal length of both phases
    as in the released code of the survey.
    """
    check.positive("temperature", temperature), check.number("held", held, 0.01, 0.5)
    run = make_run(**settings)
    if run.keep.quota(run.stream.bounds[-2] if run.stream.num_tasks > 1 else 1) < 2:
        raise check.UsageError("bic holds back one exemplar of each class, and needs two; take a larger memory")
    task_of = jnp.asarray(run.stream.task_of())

    def train(view: View, batch: Batch):
        share = view.task.old / view.task.seen
        kept = taught(view, batch, temperature)
        return (1.0 - share) * seen_classes(view, batch) + share * kept, {"distillation": kept}

    def correct(view: View, batch: Batch):
        table = {name: view.variables[name].at[view.task.number].set(view.params["rectify"][name]) for name in NAMES}
        logits = corrected(view.outputs["logits_raw"], **table, task_of=task_of)
        logits = among(logits, 0, view.task.seen)
        logits = jax.nn.softmax(logits) if compat else logits
        return batch_mean(cross_entropy(logits, batch["y"]), batch), {}

    phases = (
        Phase("train", train, held=held, freeze="^rectify"),
        Phase(
            "correct",
            correct,
            "validation",
            bias_share,
            freeze="^(?!rectify)",
            begin=uncorrected,
            end=entered,
            train=False,
            tasks="later",
            held=held,
        ),
    )
    return plan_of(with_correction(network, run.stream), optimizer, phases, run, teacher=True)
