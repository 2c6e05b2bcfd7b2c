"""ResLT: one head for all classes, and heads that add to it for the classes of fewer rows.

Cui et al. 2022, ResLT: Residual learning for long-tailed recognition, TPAMI, and the released code.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.learner import Batch, Gradient, Learner, Network, Outputs, State, batch_mean, from_loss, plain
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.counts import Counts, Labels, Scalar, check_counts
from jaxkit.long_tailed.ensembles.experts import ExpertLogits, ensemble_of, rows_valid, shot_groups
from jaxkit.long_tailed.groups import GROUPS
from jaxkit.losses import cross_entropy


def nested(groups: Int[Array | np.ndarray, " classes"], experts: int = len(GROUPS)) -> Bool[Array, "experts classes"]:
    """Which classes an expert is for: expert e for those of group e and of all groups behind it.

    With the groups of ``class_groups``: all classes; medium and few; few.
    """
    return jnp.asarray(groups) >= jnp.arange(experts)[:, None]


def residual_losses(
    logits_experts: ExpertLogits, labels: Labels, members: Bool[Array | np.ndarray, "experts classes"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    """For each row CE(sum_e z_e), the sum of CE(z_e) over the experts that are for its class, and how many these are.

    The loss of a batch is L = (1 - beta) mean_i CE(sum_e z_ie) + beta sum_i sum_{e for y_i} CE(z_ie) / sum_i m_i: each
    pair of a row and an expert counts once, so that the expert of few classes is not drowned in its own few rows.

    Source: Cui et al. 2022, eq. 3-5, and the released code.
    """
    logits_experts, labels, members = jnp.asarray(logits_experts), jnp.asarray(labels), jnp.asarray(members)
    counted = jnp.moveaxis(members[:, labels], 0, -1).astype(logits_experts.dtype)
    each = cross_entropy(logits_experts, jnp.broadcast_to(labels[..., None], logits_experts.shape[:-1]))
    return cross_entropy(logits_experts.sum(-2), labels), (counted * each).sum(-1), counted.sum(-1)


def reslt(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    experts: int | None = 3,
    by: str = "shots",
    beta: Scalar = 0.99,
    gradient: Gradient = plain,
) -> Learner:
    """``residual_losses`` of three experts: for all classes, for medium- and few-shot ones, for few-shot ones.

    ``predict`` gives the sum of the three as ``logits``.

    Args:
      network: one expert; or, with ``experts=None``, a network that has three. The paper's have one backbone:
        ``with_experts(network, 3)``.
      optimizer: SGD with momentum 0.9 in the paper.
      class_counts: n; the groups follow from them, not from the order of the labels.
      experts: 3 copies of the network (``replicated``), or None (``with_experts``).
      by: ``shots`` or ``rank``, see ``class_groups``.
      beta: in [0, 1]; 0.99 in the survey's configuration for ImageNet-LT, 0.995 in the name of the released script for
        CIFAR-100-LT. May be traced.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, a group without a class, beta outside [0, 1], another number of experts.

    Source: Cui et al. 2022, section 3, and the released code.
    """
    check.fraction("beta", beta)
    counts = check_counts(class_counts)
    members = nested(shot_groups(class_counts, by))
    ensemble = ensemble_of(network, experts, needed=len(GROUPS))

    def loss(params, state, batch, key):
        outputs, variables = loss_methods.applied(ensemble, params, state.variables, batch, key, counts)
        together, own, pairs = residual_losses(outputs["logits_experts"], batch["y"], members)
        fusion = batch_mean(together, batch)
        total = batch_mean(pairs, {"valid": rows_valid(batch)})
        individual = batch_mean(own, batch) / jnp.where(total > 0, total, 1.0)
        value = (1.0 - beta) * fusion + beta * individual
        return value, (state._replace(variables=variables), {"fusion": fusion, "individual": individual})

    learner = from_loss(ensemble, loss, optimizer, gradient=gradient)

    def predict(state: State, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        return {**outputs, "logits": outputs["logits_experts"].sum(1)}

    return learner._replace(predict=predict)
