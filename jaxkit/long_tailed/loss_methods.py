"""The methods of long-tailed learning that are a loss: each is its loss on the network's logits, and nothing else.

All take ``class_counts``, the training rows of each class (``jaxkit.train`` fills them in), which must be as many as
the network has logits. ``predict`` gives the network's outputs: the argmax of ``logits`` is the decision for a test set
of equally frequent classes. For another one add its log prior (``for_prior``) where the loss has taken the training
prior out (balanced softmax, LADE, logit adjustment), or take ``logit_adjustment`` or ``uno_ic`` where it has not.

Methods with class weights minimise sum_i w_{y_i} l_i / sum_i w_{y_i} over a batch, as the code of LDAM and RIDE does
(torch's cross-entropy with weights): the learning rate means the same whatever the scale of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.data import epochs
from jaxkit.learner import (
    Batch,
    Gradient,
    Learner,
    Network,
    Outputs,
    Plan,
    Source,
    Stage,
    State,
    batch_mean,
    from_loss,
    plain,
)
from jaxkit.long_tailed import losses
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.lade import lade_regulariser

RowLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (logits, labels, key) -> one value per row


def learner_of(
    network: Network,
    optimizer: optax.GradientTransformation,
    class_counts: Counts,
    row_loss: RowLoss,
    *,
    class_weights: jax.Array | None = None,
    gradient: Gradient = plain,
) -> Learner:
    """Minimise the mean of ``row_loss(logits, labels, key)`` over the rows of a batch, weighted by their classes where
    there are ``class_weights``.
    """
    counts = check_counts(class_counts, empty=True)

    def loss(params, state, batch, key):
        outputs, variables = applied(network, params, state.variables, batch, key, counts)
        values = row_loss(outputs["logits"], batch["y"], jax.random.fold_in(key, 1))
        if class_weights is None:
            value = batch_mean(values, batch)
        else:
            value = weighted_mean(values, class_weights[batch["y"]], batch)
        return value, (state._replace(variables=variables), {})

    return from_loss(network, loss, optimizer, gradient=gradient)


def weighted_mean(values: Float[Array, " batch"], weights: Float[Array, " batch"], batch: Batch) -> Float[Array, ""]:
    """sum_i w_i l_i / sum_i w_i over the valid rows; a ``weight`` of the batch multiplies l_i alone."""
    total = batch_mean(weights, {name: batch[name] for name in batch if name != "weight"})
    return batch_mean(weights * values, batch) / jnp.where(total > 0, total, 1.0)


def applied(network: Network, params, variables, batch: Batch, key: jax.Array, counts: jax.Array):
    """The network in training, on a batch whose labels and whose number of classes were checked."""
    if "y" not in batch or not jnp.issubdtype(batch["y"].dtype, jnp.integer):
        got = f"y of dtype {batch['y'].dtype}" if "y" in batch else f"a batch of {', '.join(sorted(batch))}"
        raise check.UsageError(f"long-tailed methods need whole-number labels 'y' (0..classes-1, int32), got {got}")
    outputs, variables = network.apply(params, variables, batch["x"], train=True, key=key, valid=batch.get("valid"))
    classes = outputs["logits"].shape[-1]
    if classes != len(counts):
        raise check.UsageError(f"class_counts has {len(counts)} entries, the network gives logits of {classes} classes")
    return outputs, variables


def second_of(batch: Batch, method: str, made_by: str) -> Batch:
    """``batch["second"]``, the rows that go with those of the batch.

    Raises:
      UsageError: there are none; ``made_by`` is the source that brings them.
    """
    if "second" not in batch:
        raise check.UsageError(f"{method} needs a second row for each, batch['second']: {made_by} brings it")
    return batch["second"]


def softmax(
    network: Network, optimizer: optax.GradientTransformation, *, class_counts: Counts, gradient: Gradient = plain
) -> Learner:
    """The cross-entropy, blind to class counts: the baseline of the survey's tables (``supervised.erm``)."""
    row_loss = lambda logits, labels, key: losses.softmax(logits, labels)
    return learner_of(network, optimizer, class_counts, row_loss, gradient=gradient)


def weighted_softmax(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    form: str = "released",
    gradient: Gradient = plain,
) -> Learner:
    """The cross-entropy with ``losses.inverse_weights``: 1 - ln(pi / pi_max), or 1 / pi with ``form="paper"``."""
    weights = losses.inverse_weights(class_counts, form=form)
    row_loss = lambda logits, labels, key: losses.softmax(logits, labels)
    return learner_of(network, optimizer, class_counts, row_loss, class_weights=weights, gradient=gradient)


def focal(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    gamma: Scalar = 2.0,
    detach: bool = False,
    gradient: Gradient = plain,
) -> Learner:
    """``losses.focal``: (1 - p_y)^gamma CE. ``gamma=3, detach=True`` is the survey's released file."""
    check.number("gamma", gamma, 0.0)
    row_loss = lambda logits, labels, key: losses.focal(logits, labels, gamma=gamma, detach=detach)
    return learner_of(network, optimizer, class_counts, row_loss, gradient=gradient)


def class_balanced(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    beta: Scalar = 0.9999,
    gradient: Gradient = plain,
) -> Learner:
    """The cross-entropy with ``losses.effective_number_weights``."""
    weights = losses.effective_number_weights(class_counts, beta=beta)
    row_loss = lambda logits, labels, key: losses.softmax(logits, labels)
    return learner_of(network, optimizer, class_counts, row_loss, class_weights=weights, gradient=gradient)


def ldam(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    max_margin: Scalar = 0.5,
    scale: Scalar = 30.0,
    scale_logits: bool = False,
    gradient: Gradient = plain,
) -> Learner:
    """``losses.ldam``, without re-weighting. The paper's network has a cosine head of the same scale:
    ``mlp(C, head=heads.cosine(scale=30.0, learn_scale=False))``. With ``scale_logits`` the logits that ``predict``
    gives are scaled too.
    """
    settings = {"max_margin": max_margin, "scale": scale, "scale_logits": scale_logits}
    return _ldam(network, optimizer, class_counts, None, gradient, **settings)


def _ldam(
    network: Network,
    optimizer: optax.GradientTransformation,
    class_counts: Counts,
    class_weights: jax.Array | None,
    gradient: Gradient,
    *,
    max_margin: Scalar,
    scale: Scalar,
    scale_logits: bool,
) -> Learner:
    check.number("max_margin", max_margin, 0.0), check.positive("scale", scale)
    counts = check_counts(class_counts)
    settings = {"max_margin": max_margin, "scale": scale, "scale_logits": scale_logits}
    row_loss = lambda logits, labels, key: losses.ldam(logits, labels, counts, **settings)
    learner = learner_of(network, optimizer, counts, row_loss, class_weights=class_weights, gradient=gradient)
    if not scale_logits:
        return learner

    def predict(state: State, batch: Batch) -> Outputs:
        outputs = learner.predict(state, batch)
        return {**outputs, "logits": scale * outputs["logits"]}

    return learner._replace(predict=predict)


def ldam_drw(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    max_margin: Scalar = 0.5,
    scale: Scalar = 30.0,
    scale_logits: bool = False,
    beta: Scalar = 0.9999,
    deferred: float = 0.8,
    batch_size: int = 128,
    source: Source | None = None,
    gradient: Gradient = plain,
) -> Plan:
    """LDAM with deferred re-weighting: a plan of two stages, LDAM, then LDAM with the class weights of
    ``losses.effective_number_weights``; network, optimizer state and learning rate schedule go on from the one to the
    other.

    Args:
      network: see ``ldam``.
      optimizer: SGD with momentum 0.9 and a learning rate that falls to 1 % where re-weighting begins, in the paper.
      class_counts: n.
      max_margin: see ``losses.ldam``.
      scale: see ``losses.ldam``.
      scale_logits: see ``losses.ldam``.
      beta: of the weights.
      deferred: the share of the steps before re-weighting; 0.8 is 160 of 200 epochs.
      batch_size: 128 in the paper; not used where a ``source`` is given.
      source: of both stages; None: ``epochs(batch_size)``.
      gradient: how the gradient is taken.

    Source: Cao et al. 2019, algorithm 1, and the released code.
    """
    check.number("deferred", deferred, 0.0, 1.0, open_low=True)
    if deferred == 1:
        raise check.UsageError("deferred must be below 1, the share of the steps before re-weighting; else take ldam")
    weights = losses.effective_number_weights(class_counts, beta=beta)
    settings = {"max_margin": max_margin, "scale": scale, "scale_logits": scale_logits}
    make = lambda weights: _ldam(network, optimizer, class_counts, weights, gradient, **settings)
    source = epochs(batch_size) if source is None else source
    return (
        Stage("ldam", make(None), source, share=deferred),
        Stage("re-weighted", make(weights), source, share=1.0 - deferred),
    )


def esql(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    gamma: Scalar = 0.9,
    threshold: Scalar | None = None,
    gradient: Gradient = plain,
) -> Learner:
    """``losses.equalization``: rare classes are mostly left out of the softmax of other classes' rows."""
    check.fraction("gamma", gamma)
    if threshold is not None:
        check.fraction("threshold", threshold)
    counts, settings = check_counts(class_counts), {"gamma": gamma, "threshold": threshold}
    row_loss = lambda logits, labels, key: losses.equalization(logits, labels, counts, key, **settings)
    return learner_of(network, optimizer, counts, row_loss, gradient=gradient)


def balanced_softmax(
    network: Network, optimizer: optax.GradientTransformation, *, class_counts: Counts, gradient: Gradient = plain
) -> Learner:
    """``losses.balanced_softmax``: CE(z + log pi) in training, z at test."""
    return logit_adjusted(network, optimizer, class_counts=class_counts, gradient=gradient)


def logit_adjusted(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    tau: Scalar = 1.0,
    gradient: Gradient = plain,
) -> Learner:
    """``losses.logit_adjusted``: CE(z + tau log pi) in training, z at test."""
    check.number("tau", tau)
    counts = check_counts(class_counts)
    row_loss = lambda logits, labels, key: losses.logit_adjusted(logits, labels, counts, tau=tau)
    return learner_of(network, optimizer, counts, row_loss, gradient=gradient)


def vector_scaling(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    gamma: Scalar = 0.3,
    tau: Scalar = 1.0,
    gradient: Gradient = plain,
) -> Learner:
    """``losses.vector_scaling``: CE(z / D + tau log pi) in training, z at test."""
    check.number("gamma", gamma, 0.0), check.number("tau", tau)
    counts = check_counts(class_counts)
    row_loss = lambda logits, labels, key: losses.vector_scaling(logits, labels, counts, gamma=gamma, tau=tau)
    return learner_of(network, optimizer, counts, row_loss, gradient=gradient)


def lade(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    alpha: Scalar = 0.1,
    penalty: Scalar = 0.1,
    gradient: Gradient = plain,
) -> Learner:
    """Balanced softmax plus alpha times ``lade_regulariser``. At test z for equally frequent classes, and ``for_prior``
    for others.

    Args:
      network: its ``logits``.
      optimizer: an optax transformation.
      class_counts: n.
      alpha: 0.1 as in the survey's configuration. May be traced. Weights of rows do not enter the regulariser.
      penalty: see ``lade_regulariser``. May be traced.
      gradient: how the gradient is taken.

    Source: Hong et al. 2021, Disentangling label distribution for long-tailed visual recognition.
    """
    check.number("alpha", alpha, 0.0), check.number("penalty", penalty, 0.0)
    counts = check_counts(class_counts)

    def loss(params, state, batch, key):
        outputs, variables = applied(network, params, state.variables, batch, key, counts)
        logits, labels = outputs["logits"], batch["y"]
        adjusted = batch_mean(losses.balanced_softmax(logits, labels, counts), batch)
        extra = lade_regulariser(logits, labels, counts, penalty=penalty, valid=batch.get("valid"))
        return adjusted + alpha * extra, (state._replace(variables=variables), {"regulariser": extra})

    return from_loss(network, loss, optimizer, gradient=gradient)


def seesaw(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    p: Scalar = 0.8,
    q: Scalar = 2.0,
    accumulate: bool = True,
    gradient: Gradient = plain,
) -> Learner:
    """``losses.seesaw`` with the counts of the rows seen so far, those of the batch among them.

    Args:
      network: its ``logits``.
      optimizer: an optax transformation.
      class_counts: n, from the start where ``accumulate`` is False; else only their number counts.
      p: see ``losses.seesaw``. May be traced.
      q: see ``losses.seesaw``. May be traced.
      accumulate: count in training, as in the paper.
      gradient: how the gradient is taken.

    Source: Wang et al. 2021, Seesaw loss for long-tailed instance segmentation.
    """
    check.number("p", p, 0.0), check.number("q", q, 0.0)
    counts = check_counts(class_counts, empty=accumulate, least=0.0 if accumulate else 1.0)

    def loss(params, state, batch, key):
        outputs, variables = applied(network, params, state.variables, batch, key, counts)
        seen = jax.nn.one_hot(batch["y"], len(counts), dtype=jnp.int32)
        if "valid" in batch:
            seen = jnp.where(batch["valid"][:, None], seen, 0)
        seen = state.extra + seen.sum(0, dtype=jnp.int32)
        used = seen.astype(jnp.float32) if accumulate else counts
        values = losses.seesaw(outputs["logits"], batch["y"], used, p=p, q=q)
        return batch_mean(values, batch), (state._replace(variables=variables, extra=seen), {})

    nothing_seen = lambda params, variables: jnp.zeros((len(counts),), jnp.int32)
    return from_loss(network, loss, optimizer, gradient=gradient, init_extra=nothing_seen)
