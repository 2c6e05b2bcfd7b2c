"""A backbone that no longer changes, and prompts that do: L2P."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.class_incremental.baselines import new_classes
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run
from jaxkit.learner import Batch, Key, Network, Outputs, Params, Plan, PyTree, batch_mean
from jaxkit.losses.vectors import normalize


def selected(
    similarity: Float[Array, "batch pool"],
    top_k: int,
    *,
    batchwise: bool = True,
    valid: Bool[Array, " batch"] | None = None,
) -> Int[Array, "batch top_k"]:
    """The ``top_k`` most similar keys of each row; ``batchwise`` all rows get those that most rows of the batch have
    among theirs, of equally many the first.

    Source: Wang et al. 2022, Learning to prompt for continual learning, section 4; the vote of the batch is that of
    the released code.
    """
    own = jax.lax.top_k(similarity, top_k)[1]
    if not batchwise:
        return own
    counted = jnp.ones((len(own),), jnp.int32) if valid is None else valid.astype(jnp.int32)
    votes = jnp.zeros((similarity.shape[1],), jnp.int32).at[own].add(counted[:, None])
    return jnp.broadcast_to(jax.lax.top_k(votes, top_k)[1], own.shape)


def transformer(method: str, network: Network) -> Network:
    """The same network, whose ``apply`` says in one line that it does not take what a transformer takes."""

    def apply(*arguments, **options):
        try:
            return network.apply(*arguments, **options)
        except TypeError as error:
            raise check.UsageError(
                f"{method} needs a transformer whose apply takes prompts= and pool=, such as jaxkit.networks.vit"
            ) from error

    return network._replace(apply=apply)


def prompted(network: Network, pool: int, length: int, top_k: int, batchwise: bool) -> Network:
    """A transformer with ``prompts`` [pool, length, width] and ``keys`` [pool, features] beside its parameters.

    q is the features of the image alone, without a gradient. The ``top_k`` prompts whose keys have the largest cosine
    with q (``selected``) go before the image's tokens; ``features`` are the mean over what comes out of the prompts,
    and the head takes these. ``pull`` is the sum of the cosines of q and the selected keys, [batch].

    Source: Wang et al. 2022, section 4.
    """

    def init(key: Key, x: PyTree) -> tuple[Params, Any]:
        keys = jax.random.split(key, 3)
        params, variables = network.init(keys[0], x)
        width = jax.eval_shape(lambda: network.apply(params, variables, x)[0]["features"]).shape[-1]
        draw = lambda key, *shape: jax.random.uniform(key, shape, jnp.float32, 0.0, 0.01)
        return {**params, "prompts": draw(keys[1], pool, length, width), "keys": draw(keys[2], pool, width)}, variables

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None) -> tuple[Outputs, Any]:
        inner = {name: params[name] for name in ("backbone", "head")}
        query = jax.lax.stop_gradient(network.apply(inner, variables, x, train=False, valid=valid)[0]["features"])
        similarity = normalize(query) @ normalize(params["keys"]).T
        chosen = selected(similarity, top_k, batchwise=batchwise, valid=valid)
        pull = jnp.take_along_axis(similarity, chosen, axis=1).sum(-1)
        prompts = params["prompts"][chosen].reshape(len(query), top_k * length, -1)
        outputs, variables = network.apply(
            inner, variables, x, train=train, key=key, valid=valid, prompts=prompts, pool="prompts"
        )
        return {**outputs, "pull": pull}, variables

    return Network(init, apply)


def l2p(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    pool: int = 10,
    length: int = 10,
    top_k: int = 4,
    strength: Scalar = 1.0,
    batchwise: bool = True,
    pretrained: bool = False,
    **settings: Unpack[Settings],
) -> Plan:
    """min CE(z_new) - strength sum_{k selected} cos(q, key_k) over prompts, keys and head; the backbone is frozen, and
    there are no exemplars.

    Args:
      network: a transformer that takes prompts (``jaxkit.networks.vit``).
      optimizer: of every task; the paper has Adam at a constant rate, gradients clipped to a norm of 1.
      pool, length, top_k: M = 10 prompts of L_p = 10 tokens each, of which an image gets N = 4. With few patches fewer
        tokens do.
      strength: lambda. May be traced.
      batchwise: whether the rows of a batch vote on its prompts, as in the released code, or each has its own, as in
        the paper's formula. The vote makes a prediction depend on the other rows of its batch; the released code
        evaluates task by task, so that a batch there tells its task.
      pretrained: whether the network comes trained (``jaxkit.learner.starting_from``) and is frozen from the first task
        on. Otherwise the first task trains all of it, and the later ones the prompts, the keys and the head.
      settings: see ``Settings``.

    Raises:
      UsageError: numbers out of range, ``top_k`` beyond the pool, or a network that takes no prompts.

    Source: Wang et al. 2022, Learning to prompt for continual learning, CVPR, section 4; its released code.
    """
    pool, length, top_k = (check.count(*pair) for pair in (("pool", pool), ("length", length), ("top_k", top_k)))
    check.number("strength", strength, 0.0)
    if top_k > pool:
        raise check.UsageError(f"top_k is at most the pool of {pool} prompts, got {top_k}")
    run = make_run(**{**settings, "memory": None})

    def loss(view: View, batch: Batch):
        pull = batch_mean(view.outputs["pull"], batch)
        return new_classes(view, batch) - strength * pull, {"pull": pull}

    frozen = Phase("train", loss, "new", freeze="^backbone")
    phases = (frozen,) if pretrained else (Phase("train", loss, "new", tasks="first"), frozen._replace(tasks="later"))
    network = prompted(transformer("l2p", network), pool, length, top_k, bool(batchwise))
    return plan_of(network, optimizer, phases, run)
