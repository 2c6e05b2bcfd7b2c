"""BBN: a branch for the data as they are, one for the data turned round, and a weight that goes from one to the other.

Zhou et al. 2020, BBN: Bilateral-branch network with cumulative learning for long-tailed visual recognition, CVPR, and
the released code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.data import epochs, pair
from jaxkit.learner import Batch, Gradient, Network, Outputs, Plan, Stage, State, batch_mean, from_loss, plain
from jaxkit.long_tailed import loss_methods
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.ensembles.experts import name_of, replicated, rows_valid
from jaxkit.long_tailed.samplers import reversed_sampling
from jaxkit.losses import cross_entropy


def cumulative_weight(step: Int[Array, ""] | int, total_steps: int) -> Float[Array, ""]:
    """alpha = 1 - (t / T)^2: 1 at first, 0 from step T on. (Zhou et al. 2020, eq. 4, with the step for the epoch.)"""
    return 1.0 - jnp.minimum(jnp.asarray(step, jnp.float32) / total_steps, 1.0) ** 2


def bilateral_logits(
    conventional: Float[Array, "*batch classes"], rebalancing: Float[Array, "*batch classes"], alpha: Scalar
) -> Float[Array, "*batch classes"]:
    """z = 2 [alpha z_c + (1 - alpha) z_r], which is a linear classifier of 2 [alpha f_c; (1 - alpha) f_r].

    alpha = 1/2 is z_c + z_r, the logits at test. (The code's classifier has one bias, here each branch has its own.)
    """
    check.fraction("alpha", alpha)
    return 2.0 * (alpha * conventional + (1.0 - alpha) * rebalancing)


def bbn(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    total_steps: int,
    batch_size: int = 128,
    gradient: Gradient = plain,
) -> Plan:
    """min alpha CE(z, y_c) + (1 - alpha) CE(z, y_r), z = ``bilateral_logits`` of rows x_c and x_r.

    x_c comes from every row once per epoch, x_r (``batch["second"]``) from ``reversed_sampling``; alpha falls with the
    step (``cumulative_weight``). ``predict`` has alpha = 1/2.

    Args:
      network: one branch; two copies of it are trained (``expert_0`` conventional, ``expert_1`` re-balancing).
      optimizer: SGD with momentum 0.9 in the paper.
      class_counts: n.
      total_steps: T, the steps of the training.
      batch_size: rows of each of the two batches of a step.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, T below 1.

    Source: Zhou et al. 2020, section 4, and the released code.
    """
    counts, total = check_counts(class_counts), check.count("total_steps", total_steps)

    def loss(params, state, batch, key):
        halves, after = [], {}
        second = loss_methods.second_of(batch, "bbn", "jaxkit.data.pair")
        for branch, half in enumerate((batch, second)):
            own, own_key = name_of(branch), jax.random.fold_in(key, branch)
            outputs, after[own] = loss_methods.applied(
                network, params[own], state.variables[own], half, own_key, counts
            )
            halves.append(outputs["logits"])
        alpha = cumulative_weight(state.step, total)
        logits = bilateral_logits(*halves, alpha)
        valid = rows_valid(batch) & rows_valid(second)
        one, two = (batch_mean(cross_entropy(logits, half["y"]), {**half, "valid": valid}) for half in (batch, second))
        return alpha * one + (1.0 - alpha) * two, (state._replace(variables=after), {"alpha": alpha})

    learner = from_loss(replicated(network, 2), loss, optimizer, gradient=gradient)

    def predict(state: State, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        return {**outputs, "logits": outputs["logits_experts"].sum(1)}

    source = pair(epochs(batch_size), reversed_sampling(batch_size, counts.size))
    return (Stage("bilateral", learner._replace(predict=predict), source),)
