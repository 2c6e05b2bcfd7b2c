"""RIDE: experts that are each trained on all data and pushed apart, and a router that asks as few as it needs.

Wang et al. 2021, Long-tailed recognition by routing diverse distribution-aware experts, ICLR, and the released code.
The router is in ``jaxkit.long_tailed.ensembles.router``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.data import epochs
from jaxkit.learner import Gradient, Learner, Network, Plan, Source, Stage, batch_mean, from_loss, plain
from jaxkit.long_tailed import loss_methods, losses
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.ensembles.experts import ExpertLogits, ensemble_of
from jaxkit.long_tailed.ensembles.router import routing_stage


def class_temperatures(class_counts: Counts, *, factor: Scalar = 0.02) -> Float[Array, " classes"]:
    """T_c = w_c / max_k w_k with w_c = 1 - factor + factor C pi_c: the rarer the class, the lower.

    A lower temperature sharpens what the experts say of a class, so that they are pushed apart more on rare ones.
    factor = 0 is T = 1.

    Args:
      class_counts: n; only their ratios count.
      factor: in [0, 1]; 0.02 in the survey's configuration, 0.05 by default in the released code. May be traced.

    Source: Wang et al. 2021, eq. 3, and the released code, which divides by the largest.
    """
    check.fraction("factor", factor)
    counts = check_counts(class_counts)
    weights = 1.0 - factor + factor * counts.size * counts / counts.sum()
    return weights / weights.max()


def expert_diversity(
    logits_experts: ExpertLogits, temperature: Float[Array | np.ndarray, " classes"] | Scalar = 1.0
) -> Float[Array, "*batch"]:
    """mean(T)^2 sum_e KL(p || p_e): how far the experts are from what they say together.

    p_e = softmax(z_e / T) and p = softmax(mean_e z_e / T); no gradient through p, as in the released code. 0 for one
    expert, or for experts that agree.

    Args:
      logits_experts: z, [..., E, C].
      temperature: T, one number or one for each class.
    """
    logits_experts = jnp.asarray(logits_experts)
    temperature = jnp.asarray(temperature, logits_experts.dtype)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(logits_experts.mean(-2, keepdims=True)) / temperature)
    log_q = jax.nn.log_softmax(logits_experts / temperature)
    return temperature.mean() ** 2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=(-2, -1))


def _learner(
    network: Network,
    optimizer: optax.GradientTransformation,
    counts: Array,
    class_weights: Array | None,
    temperature: Array | float,
    gradient: Gradient,
    *,
    diversity: Scalar,
    max_margin: Scalar,
    scale: Scalar,
) -> Learner:
    def loss(params, state, batch, key):
        outputs, variables = loss_methods.applied(network, params, state.variables, batch, key, counts)
        logits, labels = outputs["logits_experts"], batch["y"]
        of_experts = jnp.broadcast_to(labels[:, None], logits.shape[:2])
        values = losses.ldam(logits, of_experts, counts, max_margin=max_margin, scale=scale).sum(1)
        weights = jnp.ones(labels.shape, values.dtype) if class_weights is None else class_weights[labels]
        apart = batch_mean(expert_diversity(logits, temperature), batch)
        value = loss_methods.weighted_mean(values, weights, batch) - diversity * apart
        return value, (state._replace(variables=variables), {"diversity": apart})

    return from_loss(network, loss, optimizer, gradient=gradient)


def ride(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    experts: int | None = 3,
    diversity: Scalar = 0.2,
    temperature_factor: Scalar = 0.02,
    max_margin: Scalar = 0.5,
    scale: Scalar = 30.0,
    beta: Scalar = 0.9999,
    deferred: float = 0.8,
    router: bool = False,
    router_share: float = 0.025,
    positive_weight: Scalar = 100.0,
    threshold: Scalar = 0.5,
    batch_size: int = 128,
    source: Source | None = None,
    gradient: Gradient = plain,
) -> Plan:
    """min sum_e LDAM(z_e) - diversity mean(T)^2 sum_e KL(p || p_e), each expert with its own loss.

    A plan as the code of the paper runs it: until ``deferred`` plain LDAM and T = 1; then LDAM with the class weights
    of ``losses.effective_number_weights`` and T = ``class_temperatures``; with ``router=True`` a last stage in which
    the experts are frozen and a router learns when another one is needed (``router.routing_stage``).

    Args:
      network: one expert, with the head that LDAM wants (``heads.cosine(scale=30.0, learn_scale=False)``); or, with
        ``experts=None``, a network that has experts.
      optimizer: SGD with momentum 0.9 in the paper; of every stage.
      class_counts: n.
      experts: copies of the network (``replicated``), or None (``with_experts``).
      diversity: weight of the diversity, 0.2 in the released code; 0 trains experts that know nothing of each other.
        (For 0 the released code trains the mean of their logits instead.) May be traced.
      temperature_factor: see ``class_temperatures``.
      max_margin, scale: see ``losses.ldam``.
      beta: of the class weights.
      deferred: share of the steps before re-weighting, router aside; 0.8 is 160 of 200 epochs.
      router: whether the plan has the routing stage; ``predict`` then asks for each row as few experts as it needs.
      router_share: share of the steps that the routing stage has; 5 of 205 epochs in the released code.
      positive_weight, threshold: see ``router.routing_stage``.
      batch_size: not used where a ``source`` is given, but for the routing stage.
      source: of the first two stages; None: ``epochs(batch_size)``.
      gradient: how the gradient is taken.

    Raises:
      UsageError: counts that are none, settings out of range, a router for one expert.

    Source: Wang et al. 2021, eq. 1-4, and the released code.
    """
    for name, share in (("deferred", deferred), ("router_share", router_share)):
        if not 0 < check.fraction(name, share) < 1:
            raise check.UsageError(f"{name} must lie between 0 and 1, the share of the steps, got {share!r}")
    check.number("diversity", diversity, 0.0), check.number("max_margin", max_margin, 0.0)
    check.positive("scale", scale)
    counts = check_counts(class_counts)
    weights = losses.effective_number_weights(class_counts, beta=beta)
    temperature = class_temperatures(class_counts, factor=temperature_factor)
    ensemble = ensemble_of(network, experts, least=2 if router else 1)
    settings = {"diversity": diversity, "max_margin": max_margin, "scale": scale}
    source = epochs(batch_size) if source is None else source
    first = _learner(ensemble, optimizer, counts, None, 1.0, gradient, **settings)
    second = _learner(ensemble, optimizer, counts, weights, temperature, gradient, **settings)
    left = 1.0 - router_share if router else 1.0
    plan = (
        Stage("ldam", first, source, share=left * deferred),
        Stage("re-weighted", second, source, share=left * (1.0 - deferred)),
    )
    if not router:
        return plan
    routing = routing_stage(
        ensemble, optimizer, class_counts=class_counts, positive_weight=positive_weight, threshold=threshold,
        batch_size=batch_size, share=router_share, gradient=gradient,
    )  # fmt: skip
    return (*plan, routing)
