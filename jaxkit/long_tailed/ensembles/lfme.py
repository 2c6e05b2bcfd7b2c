"""LFME: a student learns from three experts, each of the many-, the medium- or the few-shot classes alone.

Xiang et al. 2020, Learning from multiple experts: self-paced knowledge distillation for long-tailed classification,
ECCV, and the released code. A reference row: what it leaves out stands in its record.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.data import class_balanced
from jaxkit.learner import (
    Batch,
    Data,
    Gradient,
    Key,
    Learner,
    Network,
    Outputs,
    Params,
    Plan,
    PyTree,
    Source,
    Stage,
    State,
    TrainState,
    batch_mean,
    from_loss,
    plain,
)
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.counts import Counts, Labels, Scalar, check_counts
from jaxkit.long_tailed.ensembles.experts import ExpertLogits, name_of, replicated, rows_valid, shot_groups
from jaxkit.long_tailed.groups import GROUPS
from jaxkit.long_tailed.samplers import by_class_weight
from jaxkit.losses import cross_entropy, kd
from jaxkit.training import predict_all

Groups = Int[Array, " classes"]
Rows = Float[Array | np.ndarray, "*batch"]
OfGroup = Float[Array | np.ndarray, " groups"]

EXPERTS = len(GROUPS)
MEMORY = 0.9
"""The student's accuracy in a group is that of its recent batches, weighted by 0.9^age."""

HASTE = 2.0
"""All rows count alike after 1 / HASTE of the student's steps: after half of them, as in the released code."""

# The logit of a class that is not of the group: its softmax is 0 and its gradient too, where -inf would give NaN.
_AWAY = -1e30


class Teaching(NamedTuple):
    """``TrainState.extra`` of the student's stage.

    Attributes:
      params, variables: of the experts.
      accuracy: of each expert on the training rows of its group, [3].
      low, high: for each class the least and the largest probability that its expert gives a training row's label, [C].
      right, seen: of the student in each group, fading, [3].
    """

    params: Params
    variables: PyTree
    accuracy: Array
    low: Array
    high: Array
    right: Array
    seen: Array


def within(logits: Float[Array, "*batch classes"], member: Bool[Array, " classes"]) -> Float[Array, "*batch classes"]:
    """The logits with nothing left for classes that are not of the group."""
    return jnp.where(member, logits, _AWAY)


def of_own_expert(logits_experts: ExpertLogits, groups: Groups) -> Float[Array, "*batch classes"]:
    """z_{g(c), c}: of each class the logit of the expert for its group."""
    return jnp.asarray(logits_experts)[..., groups, jnp.arange(groups.size)]


def label_confidence(
    logits_experts: ExpertLogits, labels: Labels, groups: Groups
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """The probability of the label, and whether it is the largest, for the expert of its group among its classes."""
    labels = jnp.asarray(labels)
    own = groups == groups[labels][..., None]
    logits = jnp.where(own, of_own_expert(logits_experts, groups), _AWAY)
    return jnp.exp(-cross_entropy(logits, labels)), logits.argmax(-1) == labels


def distillation_weights(student: OfGroup, expert: OfGroup, threshold: Scalar = 0.3) -> Float[Array, " groups"]:
    """w_g = 1 while the student's accuracy is below threshold times the expert's, then falls to 0 where both are equal.

    w_g = (1 - a_student / a_expert) / (1 - threshold), held in [0, 1]; 0 for an expert that is never right.

    Source: Xiang et al. 2020, self-paced expert selection; threshold = 0.3 in the released configuration.
    """
    student, expert = jnp.asarray(student), jnp.asarray(expert)
    ratio = jnp.where(expert > 0, student / jnp.where(expert > 0, expert, 1.0), 1.0)
    return jnp.clip((1.0 - ratio) / (1.0 - threshold), 0.0, 1.0)


def curriculum_weights(easiness: Rows, start: Rows, progress: Scalar) -> Float[Array, "*batch"]:
    """v = u + (1 - u) t / E with u = start + (1 - start) h: easy rows count from the first step, hard ones later.

    Args:
      easiness: h in [0, 1], 1 for the row of its class that the expert is surest of.
      start: of the row's group, (mean count of few-shot classes) / (mean count of its classes): 1 for few-shot rows.
      progress: t / E; from E on all rows count alike. In the released code E is half of the training.

    Source: Xiang et al. 2020, curriculum instance selection, with the linear schedule.
    """
    first = jnp.asarray(start) + (1.0 - start) * easiness
    return first + (1.0 - first) * jnp.minimum(progress, 1.0)


def _expert_learner(
    network: Network, optimizer: optax.GradientTransformation, counts: Array, groups: Groups, gradient: Gradient
) -> Learner:
    """min sum_g mean_{i: g(y_i) = g} CE(z_g among the classes of g): for each expert the rows of others are padding."""
    ensemble = replicated(network, EXPERTS)

    def loss(params, state, batch, key):
        value, after = 0.0, {}
        for group in range(EXPERTS):
            own, own_key = name_of(group), jax.random.fold_in(key, group)
            half = {**batch, "valid": rows_valid(batch) & (groups[batch["y"]] == group)}
            outputs, after[own] = loss_methods.applied(
                network, params[own], state.variables[own], half, own_key, counts
            )
            value += batch_mean(cross_entropy(within(outputs["logits"], groups == group), batch["y"]), half)
        return value, (state._replace(variables=after), {})

    learner = from_loss(ensemble, loss, optimizer, gradient=gradient)

    def predict(state: State, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        return {**outputs, "logits": of_own_expert(outputs["logits_experts"], groups)}

    return learner._replace(predict=predict)


def _subsets(batch_size: int, groups: Groups) -> Source:
    """A third of the draws for each group, within it every row alike."""

    def weight(counts: Array, step: Array) -> Array:
        total = jax.ops.segment_sum(counts, groups, EXPERTS)
        return counts / jnp.maximum(total, 1.0)[groups]

    return by_class_weight(batch_size, groups.size, weight)


def lfme(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    total_steps: int,
    by: str = "shots",
    temperature: Scalar = 2.0,
    threshold: Scalar = 0.3,
    experts_share: float = 0.5,
    batch_size: int = 128,
    gradient: Gradient = plain,
) -> Plan:
    """A plan: experts of the three groups; then min mean_i v_i CE(z_i) + sum_g w_g mean_i KL(p_g(x_i) || q_g(x_i)).

    p_g and q_g are the softmax at temperature T of the expert's and of the student's logits of the classes of group g;
    w_g are ``distillation_weights``, v_i ``curriculum_weights``. The student's batches are class-balanced.

    Args:
      network: of each expert and of the student.
      optimizer: of both stages, started anew for the student.
      class_counts: n; the groups follow from them.
      total_steps: the steps of the student's stage; the curriculum goes over the first half of them.
      by: ``shots`` or ``rank``, see ``class_groups``.
      temperature: T, 2 in the released configuration. May be traced.
      threshold: see ``distillation_weights``.
      experts_share: share of the steps of the experts' stage.
      batch_size: rows of a step; a third of them, more or less, for each expert.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, a group without a class, settings out of range.

    Source: Xiang et al. 2020, section 3, and the released code.
    """
    check.positive("temperature", temperature), check.number("threshold", threshold, 0.0, 0.999)
    if not 0 < check.fraction("experts_share", experts_share) < 1:
        raise check.UsageError(f"experts_share must lie between 0 and 1, for example 0.5, got {experts_share!r}")
    counts, total = check_counts(class_counts), check.count("total_steps", total_steps)
    groups = shot_groups(class_counts, by)
    ensemble = replicated(network, EXPERTS)
    sizes = jax.ops.segment_sum(counts, groups, EXPERTS) / jax.ops.segment_sum(jnp.ones_like(counts), groups, EXPERTS)
    starts = sizes[-1] / sizes

    def loss(params, state, batch, key):
        outputs, variables = loss_methods.applied(network, params, state.variables, batch, key, counts)
        taught, valid = state.extra, batch.get("valid")
        logits, labels, row_group = outputs["logits"], batch["y"], groups[batch["y"]]
        expert = ensemble.apply(taught.params, taught.variables, batch["x"], train=False, valid=valid)[0]
        expert_logits = jax.lax.stop_gradient(expert["logits_experts"])
        sure, _ = label_confidence(expert_logits, labels, groups)
        span = taught.high[labels] - taught.low[labels]
        easiness = jnp.where(span > 0, (sure - taught.low[labels]) / jnp.where(span > 0, span, 1.0), 1.0)
        v = curriculum_weights(jnp.clip(easiness, 0.0, 1.0), starts[row_group], HASTE * state.step / total)
        value = batch_mean(v * cross_entropy(logits, labels), batch)
        student = taught.right / jnp.maximum(taught.seen, 1e-6)
        w = distillation_weights(student, taught.accuracy, threshold)
        for group in range(EXPERTS):
            pair = (within(logits, groups == group), within(expert_logits[:, group], groups == group))
            apart = batch_mean(kd(*pair, temperature=temperature), batch) / temperature**2
            value += w[group] * apart
        counted = rows_valid(batch).astype(jnp.float32)
        right = counted * (logits.argmax(-1) == labels)
        sums = [jax.ops.segment_sum(one, row_group, EXPERTS) for one in (right, counted)]
        taught = taught._replace(right=MEMORY * taught.right + sums[0], seen=MEMORY * taught.seen + sums[1])
        return value, (state._replace(variables=variables, extra=taught), {"distillation": w.mean()})

    def nothing_taught(params: Params, variables: PyTree) -> Teaching:
        copies = lambda tree: {name_of(expert): jax.tree.map(jnp.copy, tree) for expert in range(EXPERTS)}
        of_group, of_class = jnp.zeros((EXPERTS,), jnp.float32), jnp.zeros((counts.size,), jnp.float32)
        return Teaching(copies(params), copies(variables), of_group, of_class, of_class, of_group, of_group)

    def begin(state: TrainState, data: Data, key: Key) -> TrainState:
        outputs = predict_all(experts.predict, state, data["x"])
        labels = jnp.asarray(data["y"])
        sure, right = label_confidence(outputs["logits_experts"], labels, groups)
        rows = jnp.ones(labels.shape, jnp.float32)
        mean = lambda values: jax.ops.segment_sum(values, groups[labels], EXPERTS)
        started = student.init(key, data)
        taught = started.extra._replace(
            params=state.params,
            variables=state.variables,
            accuracy=mean(right.astype(jnp.float32)) / jnp.maximum(mean(rows), 1.0),
            low=jax.ops.segment_min(sure, labels, counts.size),
            high=jax.ops.segment_max(sure, labels, counts.size),
        )
        return started._replace(extra=taught)

    experts = _expert_learner(network, optimizer, counts, groups, gradient)
    student = from_loss(network, loss, optimizer, gradient=gradient, init_extra=nothing_taught)
    return (
        Stage("experts", experts, _subsets(batch_size, groups), share=experts_share),
        Stage("student", student, class_balanced(batch_size, counts.size), share=1.0 - experts_share, begin=begin),
    )
