"""RSG: rare rows generated in feature space, from a rare row and how far a frequent one lies from its own centre.

Wang et al. 2021, RSG: a simple but effective module for learning imbalanced datasets, CVPR, and its released code,
whose losses are here for feature vectors f (its maps, one pixel large). Each class has K centres m and gates
gamma = softmax(f . A_y + b_y), which say to which centre a row belongs. The module serves training alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.data import epochs
from jaxkit.learner import (
    Gradient,
    Key,
    Learner,
    Network,
    Outputs,
    Params,
    Plan,
    Stage,
    batch_mean,
    from_loss,
    plain,
)
from jaxkit.long_tailed import loss_methods, losses
from jaxkit.long_tailed.counts import Counts, Scalar, check_counts
from jaxkit.long_tailed.decoupled import checked
from jaxkit.losses import cross_entropy
from jaxkit.networks import mlp
from jaxkit.networks.heads import Head, normalize

Features = Float[Array, "batch features"]
Labels = Int[Array, " batch"]
Mask = Bool[Array, " batch"]


def head_classes(class_counts: Counts, ratio: float = 0.2) -> Bool[Array, " classes"]:
    """The floor(ratio C) largest classes, which lend their variation to the others.

    Raises:
      UsageError: no class would be among them, or all.
    """
    counts = check_counts(class_counts)
    number = int(counts.size * check.fraction("head_tail_ratio", ratio))
    if not 0 < number < counts.size:
        raise check.UsageError(
            f"head_tail_ratio={ratio:g} makes {number} of {counts.size} classes head classes; at least one and not all "
            "must be, for example 0.2 of 5 classes or more"
        )
    order = jnp.argsort(-counts, stable=True)
    return jnp.zeros(counts.shape, bool).at[order[:number]].set(True)


def pair_network(width: int) -> Network:
    """Whether two feature vectors are of one class: a hidden layer of ``width`` and a linear one. (The code's second
    and third layer have nothing between them and are one here.)"""
    return mlp(2, hidden=(width,))


def init_generator(key: Key, num_classes: int, features: int, centres: int, width: int) -> Params:
    """The module's parameters: gates A [C, F, K] and b [C, K], centres m [C, K, F], the map T of displacements (F to F)
    and the pair network, drawn as in the released code (A standard normal, b 1, m 0)."""
    keys = jax.random.split(key, 3)
    pair = pair_network(width).init(keys[2], jnp.zeros((1, 2 * features), jnp.float32))[0]
    return {
        "gate": {
            "kernel": jax.random.normal(keys[0], (num_classes, features, centres), jnp.float32),
            "bias": jnp.ones((num_classes, centres), jnp.float32),
        },
        "centres": jnp.zeros((num_classes, centres, features), jnp.float32),
        "transfer": {
            "kernel": jax.random.normal(keys[1], (features, features), jnp.float32) * (2.0 / features) ** 0.5,
            "bias": jnp.zeros((features,), jnp.float32),
        },
        "pair": pair,
    }


def gates(generator: Params, features: Features, labels: Labels) -> Float[Array, "batch centres"]:
    """gamma = softmax_k(f . A_yk + b_yk)."""
    gate = generator["gate"]
    return jax.nn.softmax(jnp.einsum("bf,bfk->bk", features, gate["kernel"][labels]) + gate["bias"][labels])


def nearest_centre(generator: Params, features: Features, labels: Labels) -> Features:
    """The centre of a row's class for which its gate is largest."""
    which = gates(generator, features, labels).argmax(-1)
    return generator["centres"][labels, which]


def masked_mean(values: Float[Array, " batch"], mask: Mask) -> Float[Array, ""]:
    """The mean over the rows of ``mask``, 0 without any."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def centre_loss(generator: Params, features: Features, labels: Labels, valid: Mask) -> Float[Array, ""]:
    """mean_i sum_k gamma_ik |f_i - m_yk|^2: the part of L_CESC that places the centres."""
    distance = jnp.sum((features[:, None, :] - generator["centres"][labels]) ** 2, axis=-1)
    return masked_mean(jnp.sum(gates(generator, features, labels) * distance, axis=-1), valid)


def pair_loss(generator: Params, features: Features, labels: Labels, valid: Mask, width: int) -> Float[Array, ""]:
    """The contrastive part of L_CESC: cross-entropy of whether two rows are of one class, over the pairs (i, i + n / 2)
    of the n valid rows of a batch."""
    order, half = jnp.argsort(~valid, stable=True), valid.sum() // 2
    place = jnp.arange(len(features) // 2)
    first, second = order[place], order[jnp.minimum(place + half, len(features) - 1)]
    both = jnp.concatenate([features[first], features[second]], axis=1)
    logits = pair_network(width).apply(generator["pair"], {}, both)[0]["logits"]
    return masked_mean(cross_entropy(logits, (labels[first] == labels[second]).astype(jnp.int32)), place < half)


class Generated(NamedTuple):
    """Rows generated from a batch, as many as it has; those of ``used`` count.

    Attributes:
      features: f_t + T(v), v = f_h - m_h.
      head: the row h of the batch from which the displacement comes.
      tail: the row t to which it is added, and whose label the generated row has.
      used: which of them there are.
      loss: L_MV, the mean over them.
    """

    features: Features
    head: Labels
    tail: Labels
    used: Mask
    loss: Float[Array, ""]


def partners(is_head: Mask, is_tail: Mask) -> tuple[Labels, Labels, Mask]:
    """Head rows and tail rows in pairs: the fewer of the two are gone through floor(more / fewer) times.

    Returns:
      (head row, tail row, whether there is such a pair) for as many pairs as the batch has rows.
    """
    heads, tails = is_head.sum(), is_tail.sum()
    fewer, more = jnp.minimum(heads, tails), jnp.maximum(heads, tails)
    place = jnp.arange(len(is_head))
    row = lambda mask, number: jnp.argsort(~mask, stable=True)[place % jnp.maximum(number, 1)]
    return row(is_head, heads), row(is_tail, tails), place < fewer * (more // jnp.maximum(fewer, 1))


def generate(
    generator: Params, features: Features, labels: Labels, is_head: Mask, is_tail: Mask, width: int
) -> Generated:
    """Tail rows displaced as head rows are, and the loss of the map T that carries the displacements over.

    L_MV = -log p(T(v) and f_h are of two classes) + | |T(v)| - |v| | + 1 - cos(T(v), f_t - m_t): a displacement that
    tells nothing of the head class, keeps its length, and leads away from the tail row's centre. T alone is trained by
    it. (The code has F - cos for 1 - cos, which is a constant more.)

    Args:
      generator: of ``init_generator``.
      features: of the batch; constants here.
      labels: of the batch.
      is_head: valid rows of head classes.
      is_tail: valid rows of the others.
      width: of the pair network.
    """
    fixed, features = jax.lax.stop_gradient((generator, features))
    head, tail, used = partners(is_head, is_tail)
    source, target = features[head], features[tail]
    displacement = source - nearest_centre(fixed, source, labels[head])
    away = target - nearest_centre(fixed, target, labels[tail])
    moved = displacement @ generator["transfer"]["kernel"] + generator["transfer"]["bias"]
    logits = pair_network(width).apply(fixed["pair"], {}, jnp.concatenate([source, moved], axis=1))[0]["logits"]
    told = cross_entropy(logits, jnp.zeros(len(logits), jnp.int32))
    longer = jnp.abs(length(moved) - length(displacement))
    turned = 1.0 - jnp.sum(normalize(moved) * normalize(away), axis=-1)
    return Generated(target + moved, head, tail, used, masked_mean(told + longer + turned, used))


def length(vectors: Features) -> Float[Array, " batch"]:
    """|v| of each row; its gradient is 0 where v is."""
    square = jnp.sum(vectors**2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def with_generator(network: Network, classifier: Network, num_classes: int, centres: int, width: int) -> Network:
    """The network with the module's parameters under ``generator``; what it computes is the same."""

    def init(key: Key, x: Any) -> tuple[Params, Any]:
        params, variables = network.init(key, x)
        features = params["head"]["kernel"].shape[0]
        expected = classifier.init(key, jnp.zeros((1, features), jnp.float32))[0]["head"]
        if expected.keys() != params["head"].keys():
            raise check.UsageError(
                f"the network's head has {', '.join(sorted(params['head']))} and the head given to rsg "
                f"{', '.join(sorted(expected))}; give rsg(head=...) the head that the network was made with"
            )
        generator = init_generator(jax.random.fold_in(key, 1), num_classes, features, centres, width)
        return {**params, "generator": generator}, variables

    def apply(params: Params, variables: Any, x: Any, **options: Any) -> tuple[Outputs, Any]:
        return network.apply({n: leaf for n, leaf in params.items() if n != "generator"}, variables, x, **options)

    return Network(init, apply)


def rsg(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    class_counts: Counts,
    head: str | Head = "linear",
    head_tail_ratio: float = 0.2,
    centres: int = 3,
    width: int = 128,
    max_margin: Scalar = 0.3,
    scale: Scalar = 30.0,
    beta: Scalar = 0.9999,
    centre_weight: Scalar = 0.1,
    vector_weight: Scalar = 0.01,
    deferred: float = 0.8,
    batch_size: int = 128,
    gradient: Gradient = plain,
) -> Plan:
    """Stage 1: LDAM + centre_weight L_CESC. Stage 2: LDAM with the class weights of ``ldam_drw``, on the batch and on
    the rows that are ``generate``d from it, + centre_weight ``centre_loss`` + vector_weight L_MV.

    L_CESC = ``centre_loss`` + ``pair_loss``. The backbone learns by LDAM on the rows themselves alone.

    Args:
      network: with ``backbone`` and ``head``; the paper's head is ``heads.cosine(scale=30.0, learn_scale=False)``.
      optimizer: an optax transformation.
      class_counts: training rows of each class, above 0.
      head: the head with which the network was made, for the generated rows.
      head_tail_ratio: see ``head_classes``.
      centres: K, 3 as in the survey's code (15 in the networks of the released code).
      width: of ``pair_network``.
      max_margin: of LDAM; 0.3 as on ImageNet-LT.
      scale: see ``losses.ldam``.
      beta: see ``losses.effective_number_weights``.
      centre_weight: 0.1 as in the released code. May be traced.
      vector_weight: 0.01 as there. May be traced.
      deferred: the share of the steps of stage 1; 160 of 200 epochs.
      batch_size: of both stages.
      gradient: how the gradient is taken.

    Raises:
      UsageError: a setting out of its range, a head other than the network's, counts that are none.

    Source: Wang et al. 2021, section 3, and the released code.
    """
    check.number("centre_weight", centre_weight, 0.0), check.number("vector_weight", vector_weight, 0.0)
    check.number("max_margin", max_margin, 0.0), check.positive("scale", scale)
    check.count("centres", centres), check.count("width", width)
    if not 0 < check.fraction("deferred", deferred) < 1:
        raise check.UsageError(f"deferred must lie between 0 and 1, for example 0.8, got {deferred!r}")
    counts = check_counts(class_counts)
    frequent, classifier = head_classes(class_counts, head_tail_ratio), mlp(counts.size, hidden=(), head=head)
    given = with_generator(checked(network, counts.size), classifier, counts.size, centres, width)
    weights = losses.effective_number_weights(class_counts, beta=beta)

    def learner(class_weights: Array, generating: bool) -> Learner:
        def loss(params, state, batch, key):
            outputs, variables = loss_methods.applied(given, params, state.variables, batch, key, counts)
            logits, labels, generator = outputs["logits"], batch["y"], params["generator"]
            valid = batch.get("valid", jnp.ones(labels.shape, bool))
            weight = batch.get("weight", jnp.ones(labels.shape))
            fixed = jax.lax.stop_gradient(outputs["features"])
            counted, centre, vector = valid, centre_loss(generator, fixed, labels, valid), jnp.zeros(())
            if generating:
                is_head = frequent[labels]
                made = generate(generator, fixed, labels, valid & is_head, valid & ~is_head, width)
                more = classifier.apply({"head": params["head"]}, {}, made.features)[0]["logits"]
                logits, labels = jnp.concatenate([logits, more]), jnp.concatenate([labels, labels[made.tail]])
                weight, counted = jnp.concatenate([weight, weight[made.tail]]), jnp.concatenate([valid, made.used])
                vector = made.loss
            else:
                centre = centre + pair_loss(generator, fixed, labels, valid, width)
            values = losses.ldam(logits, labels, counts, max_margin=max_margin, scale=scale)
            total = batch_mean(class_weights[labels], {"valid": counted})
            mean = batch_mean(class_weights[labels] * values, {"valid": counted, "weight": weight})
            value = mean / jnp.where(total > 0, total, 1.0) + centre_weight * centre + vector_weight * vector
            generated = (counted.sum() - valid.sum()).astype(jnp.float32)
            metrics = {"cesc": centre, "vector": vector, "generated": generated}
            return value, (state._replace(variables=variables), metrics)

        return from_loss(given, loss, optimizer, gradient=gradient)

    return (
        Stage("ldam", learner(jnp.ones_like(counts), False), epochs(batch_size), share=deferred),
        Stage("generation", learner(weights, True), epochs(batch_size), share=1.0 - deferred),
    )
