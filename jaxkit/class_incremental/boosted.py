"""FOSTER: a second network learns what the first gets wrong, then both become one again."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import new_columns, plan_of
from jaxkit.class_incremental.memory import Memory
from jaxkit.class_incremental.phases import Phase, Run, Settings, View, make_run
from jaxkit.class_incremental.readout import among, distillation
from jaxkit.class_incremental.task import Task
from jaxkit.learner import Batch, Key, Network, Outputs, Params, Plan, PyTree, TrainState, batch_mean
from jaxkit.losses import cross_entropy, soft_cross_entropy
from jaxkit.networks import part_of
from jaxkit.networks.heads import Linear


def effective_weights(
    counts: Float[Array, " classes"], seen: Int[Array, ""] | int, beta: Scalar
) -> Float[Array, " classes"]:
    """w_c = (1 - beta) / (1 - beta^n_c), scaled to a sum of K over the K seen classes; 1 elsewhere.

    Source: Cui et al. 2019, eq. 4; Wang et al. 2022 use it for logits alignment.
    """
    member = (jnp.arange(counts.size) < seen) & (counts > 0)
    weight = jnp.where(member, (1.0 - beta) / (1.0 - jnp.power(beta, jnp.maximum(counts, 1.0))), 0.0)
    return jnp.where(member, weight * member.sum() / jnp.maximum(weight.sum(), 1e-12), 1.0)


def balanced_distillation(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    weights: Float[Array, " classes"],
    temperature: Scalar = 2.0,
) -> Float[Array, "*batch"]:
    """- sum_c q_c log softmax(z / T)_c with q_c proportional to w_c softmax(z^t / T)_c. (Wang et al. 2022, eq. 15.)"""
    target = weights * jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature)
    return soft_cross_entropy(student / temperature, target / target.sum(-1, keepdims=True))


def two_networks(network: Network, num_classes: int) -> Network:
    """The single network (``student``), which answers; and beside it the one frozen before the task (``old`` in the
    variables), a new backbone, a head on both (``head``) and one on the new features alone (``aux``).

    In training the outputs have ``logits`` of the head on both, ``logits_aux``, ``logits_old`` and ``logits_student``;
    in prediction ``logits`` and ``features`` are the student's, and ``logits_both`` those of the head on both.
    """
    backbone, head = part_of(network), Linear(num_classes)

    def init(key: Key, x: PyTree) -> tuple[Params, Any]:
        keys = jax.random.split(key, 4)
        (params, variables), (twin, twin_variables) = backbone.init(keys[0], x), backbone.init(keys[1], x)
        features = jax.eval_shape(lambda: backbone.apply(params, variables, x)[0]["features"])
        one = jnp.zeros((1, features.shape[-1]), jnp.float32)
        fresh = lambda key, rows: head.init(key, rows)["params"]
        on_both, on_new = fresh(keys[2], jnp.tile(one, 2)), fresh(keys[3], one)
        student = {"backbone": params, "head": fresh(keys[2], one)}
        return (
            {"backbone": twin, "head": on_both, "aux": on_new, "student": student},
            {
                "backbone": twin_variables,
                "student": variables,
                "old": jax.tree.map(jnp.copy, (student, variables)),
            },
        )

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None) -> tuple[Outputs, Any]:
        keys = (None, None) if key is None else jax.random.split(key)
        answer = lambda own, features: head.apply({"params": own}, features)
        student, student_variables = backbone.apply(
            params["student"]["backbone"], variables["student"], x, train=train, key=keys[0], valid=valid
        )
        new, new_variables = backbone.apply(
            params["backbone"], variables["backbone"], x, train=train, key=keys[1], valid=valid
        )
        old_params, old_variables = jax.lax.stop_gradient(variables["old"])
        old = backbone.apply(old_params["backbone"], old_variables, x, train=False, valid=valid)[0]["features"]
        both = answer(params["head"], jnp.concatenate([old, new["features"]], axis=-1))
        logits_student = answer(params["student"]["head"], student["features"])
        if not train:
            return {"logits": logits_student, "features": student["features"], "logits_both": both}, variables
        outputs = {
            "logits": both,
            "features": new["features"],
            "logits_aux": answer(params["aux"], new["features"]),
            "logits_old": answer(old_params["head"], old),
            "logits_student": logits_student,
        }
        return outputs, {**variables, "backbone": new_variables, "student": student_variables}

    return Network(init, apply)


def rows_of_classes(task: Task, run: Run) -> Float[Array, " classes"]:
    """About the rows of each class in the pool: its exemplars, or those of a new class of average size."""
    place = jnp.arange(run.stream.num_classes)
    kept = task.memory.counts if isinstance(task.memory, Memory) else jnp.zeros_like(place)
    return jnp.where(place < task.old, kept, jnp.where(place < task.seen, run.stream.mean_rows, 0.0))


def beside(state: TrainState, fresh: TrainState, key: Key) -> TrainState:
    """A task begins: the student is frozen as ``old``, and a copy of it goes on beside it."""
    student, statistics = state.params["student"], state.variables["student"]
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    width = student["head"]["kernel"].shape[0]
    kernel = fresh.params["head"]["kernel"].at[:width].set(student["head"]["kernel"])
    head = {"kernel": kernel, "bias": student["head"]["bias"]}
    params = {**state.params, "backbone": copy(student["backbone"]), "head": head, "aux": fresh.params["aux"]}
    variables = {**state.variables, "backbone": copy(statistics), "old": copy((student, statistics))}
    return new_columns(state._replace(params=params, variables=variables), fresh, key)


def foster(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 1.0,
    temperature: Scalar = 2.0,
    beta_boosting: Scalar = 0.96,
    beta_compression: Scalar = 0.97,
    compression_share: float = 130 / 170,
    **settings: Unpack[Settings],
) -> Plan:
    """Two phases. Boost: min CE(z / w) + CE(z_aux) + strength KD(z_old, z of the model before; T), z of a head on the
    frozen features and on those of a new backbone. Compress: one network learns from both by
    ``balanced_distillation``. It answers, so the size of the model never grows.

    Args:
      network: its backbone is used, of ``jaxkit.networks``.
      optimizer: of both phases.
      strength: lambda of the distillation. May be traced.
      temperature: T. May be traced.
      beta_boosting, beta_compression: of ``effective_weights``, which count exemplars and new rows. May be traced.
      compression_share: epochs of the second phase for one of the first, 130 / 170 in the released code of the survey.
      settings: see ``Settings``.

    Source: Wang et al. 2022, FOSTER: feature boosting and compression for class-incremental learning, ECCV; the
    released code of the survey.
    """
    check.number("strength", strength, 0.0), check.positive("temperature", temperature)
    for name, beta in (("beta_boosting", beta_boosting), ("beta_compression", beta_compression)):
        check.number(name, beta, 0.0, 0.99999)
    run = make_run(**settings)
    two = two_networks(network, run.stream.num_classes)

    def alone(view: View, batch: Batch):
        logits = among(view.outputs["logits_student"], 0, view.task.seen)
        return batch_mean(cross_entropy(logits, batch["y"]), batch), {}

    def boost(view: View, batch: Batch):
        task, outputs = view.task, view.outputs
        logits = outputs["logits"]
        weights = effective_weights(rows_of_classes(task, run), task.seen, beta_boosting)
        aligned = among(logits / weights, 0, task.seen)
        new = among(outputs["logits_aux"], 0, task.seen)
        kept = batch_mean(distillation(logits, outputs["logits_old"], task.old, temperature), batch)
        value = batch_mean(cross_entropy(aligned, batch["y"]) + cross_entropy(new, batch["y"]), batch)
        return value + strength * kept, {"distillation": kept}

    def compress(view: View, batch: Batch):
        weights = effective_weights(rows_of_classes(view.task, run), view.task.seen, beta_compression)
        student = among(view.outputs["logits_student"], 0, view.task.seen)
        outputs = two.apply(view.params, view.variables, batch["x"], train=False, valid=batch.get("valid"))[0]
        teacher = among(outputs["logits_both"], 0, view.task.seen)
        return batch_mean(balanced_distillation(student, teacher, weights, temperature), batch), {}

    phases = (
        Phase("train", alone, freeze="^(?!student)", tasks="first"),
        Phase("boost", boost, freeze="^(student|old)", tasks="later"),
        Phase("compress", compress, share=compression_share, freeze="^(?!student)", tasks="later"),
    )
    return plan_of(two, optimizer, phases, run, grow=beside)
