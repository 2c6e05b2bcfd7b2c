"""One transformer for all tasks, and for each task a token that asks it for what the task needs: DyTox."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkit import check
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.incremental import new_columns, plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run, needs_exemplars
from jaxkit.class_incremental.prompted import transformer
from jaxkit.class_incremental.readout import among
from jaxkit.class_incremental.stream import Stream
from jaxkit.learner import Batch, Data, Key, Network, Outputs, Params, Plan, PyTree, TrainState, batch_mean
from jaxkit.losses import binary_cross_entropy, kd
from jaxkit.networks import part_of
from jaxkit.networks.heads import Linear
from jaxkit.networks.vision.vit import TaskAttention


def layer_norm(
    x: Float[Array, "*batch width"], scale: Float[Array, "..."], bias: Float[Array, "..."]
) -> Float[Array, "*batch width"]:
    """scale (x - mean(x)) / sqrt(var(x) + 1e-6) + bias."""
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-6) * scale + bias


def binary_among(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], member: Array
) -> Float[Array, " batch"]:
    """mean over the classes c of ``member`` [classes] of BCE(z_c, [c = y])."""
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    each = binary_cross_entropy(jnp.where(member, logits, 0.0), targets)
    return jnp.where(member, each, 0.0).sum(-1) / jnp.maximum(member.sum(), 1)


def with_task_tokens(network: Network, stream: Stream, heads: int) -> Network:
    """The tokens of a transformer under a ``TaskAttention`` with a token, a normalisation and a head for each task.

    Parameters: ``backbone``; ``tokens`` [tasks, width]; ``task_attention``; ``norms`` [tasks, width] each; ``head``, of
    which each column reads its own task's token alone; ``divergence``, a normalisation and a head [width, classes + 1].
    Variables: those of the backbone; ``number``, the task; ``held``, of how many tasks token, norm and columns get no
    gradient.

    ``features`` are the newest token as it comes out, ``logits_div`` the divergence head's of it.
    """
    backbone, attention = part_of(transformer("dytox", network)), TaskAttention(heads)
    tasks, classes, task_of = stream.num_tasks, stream.num_classes, jnp.asarray(stream.task_of())

    def tokens_of(params, variables, x, **options):
        return backbone.apply({"backbone": params["backbone"]}, variables, x, pool="tokens", **options)

    def init(key: Key, x: PyTree) -> tuple[Params, Any]:
        keys = jax.random.split(key, 5)
        params, variables = network.init(keys[0], x)
        width = jax.eval_shape(lambda: tokens_of(params, variables, x)[0]["features"]).shape[-1]
        if width % heads:
            raise check.UsageError(f"heads must divide the width {width} of the network, got {heads}")
        draw = lambda key, *shape: 0.02 * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
        norm = lambda *shape: {"scale": jnp.ones(shape, jnp.float32), "bias": jnp.zeros(shape, jnp.float32)}
        linear = lambda key, size: Linear(size).init(key, jnp.zeros((1, width), jnp.float32))["params"]
        tokens, zero = draw(keys[1], tasks, width), jnp.zeros((), jnp.int32)
        own = {
            "tokens": tokens,
            "task_attention": attention.init(keys[2], tokens, jnp.zeros((1, 1, width), jnp.float32))["params"],
            "norms": norm(tasks, width),
            "head": linear(keys[3], classes),
            "divergence": {"norm": norm(width), "linear": linear(keys[4], classes + 1)},
        }
        return {**params, **own}, {"backbone": variables, "number": zero, "held": zero}

    def apply(params, variables, x, *, train: bool = False, key=None, valid=None) -> tuple[Outputs, Any]:
        held, number = variables["held"], variables["number"]
        of_task, of_class = jnp.arange(tasks)[:, None] < held, task_of < held
        hold = lambda mask, leaf: jnp.where(mask, jax.lax.stop_gradient(leaf), leaf)
        outputs, inner = tokens_of(params, variables["backbone"], x, train=train, key=key, valid=valid)
        tokens = hold(of_task, params["tokens"])
        asked = attention.apply({"params": params["task_attention"]}, tokens, outputs["features"])
        norms = jax.tree.map(lambda leaf: hold(of_task, leaf), params["norms"])
        head = jax.tree.map(lambda leaf: hold(of_class, leaf), params["head"])
        read = layer_norm(asked, norms["scale"], norms["bias"])[:, task_of]
        newest, div = asked[:, number], params["divergence"]
        outputs = {
            "logits": jnp.einsum("bcw,wc->bc", read, head["kernel"]) + head["bias"],
            "features": newest,
            "logits_div": Linear(classes + 1).apply({"params": div["linear"]}, layer_norm(newest, **div["norm"])),
        }
        return outputs, {**variables, "backbone": inner}

    return Network(init, apply)


def add_token(state: TrainState, fresh: TrainState, key: Key) -> TrainState:
    """A task begins: its token is new, as are its columns of the head and the divergence head; the earlier tasks'
    tokens, norms and columns are held."""
    state = new_columns(state, fresh, key)
    number = state.extra.number
    new = jnp.arange(len(fresh.params["tokens"]))[:, None] == number
    pick = lambda old, other: jnp.where(new, other, old)
    changed = {name: jax.tree.map(pick, state.params[name], fresh.params[name]) for name in ("tokens", "norms")}
    params = {**state.params, **changed, "divergence": fresh.params["divergence"]}
    return state._replace(params=params, variables={**state.variables, "number": number, "held": number})


def released(state: TrainState, data: Data, key: Key) -> TrainState:
    """The tokens and heads of all tasks are trained again."""
    return state._replace(variables={**state.variables, "held": jnp.zeros((), jnp.int32)})


def divergence(view: View, batch: Batch) -> Array:
    """mean_i BCE of the newest token's own logits among the new classes and "an old class"; 0 in the first task.

    Source: Douillard et al. 2022, section 3; binary as in the released code.
    """
    logits, task = view.outputs["logits_div"], view.task
    place, old_class = jnp.arange(logits.shape[-1]), logits.shape[-1] - 1
    member = (place >= task.old) & (place < task.seen) | (place == old_class)
    labels = jnp.where(batch["y"] < task.old, old_class, batch["y"])
    return jnp.where(task.old > 0, batch_mean(binary_among(logits, labels, member), batch), 0.0)


def dytox(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    heads: int = 4,
    strength: Scalar = 0.1,
    temperature: Scalar = 1.0,
    finetune_share: float = 0.04,
    finetune_optimizer: optax.GradientTransformation | None = None,
    **settings: Unpack[Settings],
) -> Plan:
    """A token, and a head on what it finds, for each task: min (1 - a) BCE + a T^2 KL(z_old before || z_old) / K_old +
    strength ``divergence`` with a = K_old / K, then BCE on the exemplars alone with the backbone frozen.

    Tokens and heads of earlier tasks do not move in the first phase (but by an optimizer's weight decay), and do in the
    second.

    Args:
      network: a transformer (``jaxkit.networks.vit``), of whose blocks all tokens go to the task attention.
      optimizer: of the first phase; Adam with decoupled weight decay in the paper.
      heads: of the task attention; 12 for a width of 384 in the paper.
      strength: lambda of the divergence head. May be traced.
      temperature: T. May be traced.
      finetune_share: epochs over the exemplars for one of training, 20 / 500 in the released code.
      finetune_optimizer: None is ``optimizer`` with updates of a tenth their size.
      settings: see ``Settings``.

    Raises:
      UsageError: numbers out of range, heads that do not divide the width, or a network without tokens.

    Source: Douillard et al. 2022, DyTox: transformers for continual learning with dynamic token expansion, CVPR; its
    released code.
    """
    check.number("strength", strength, 0.0), check.positive("temperature", temperature)
    run = needs_exemplars("dytox", make_run(**settings))
    grown = with_task_tokens(network, run.stream, check.count("heads", heads))

    def classified(view: View, batch: Batch) -> Array:
        member = jnp.arange(run.stream.num_classes) < view.task.seen
        return batch_mean(binary_among(view.outputs["logits"], batch["y"], member), batch)

    def train(view: View, batch: Batch):
        task, apart = view.task, divergence(view, batch)
        share = task.old / task.seen
        before = among(view.taught["logits"], 0, task.old)
        moved = kd(among(view.outputs["logits"], 0, task.old), before, temperature=temperature)
        moved = batch_mean(moved, batch) / jnp.maximum(task.old, 1)
        value = (1.0 - share) * classified(view, batch) + share * moved + strength * apart
        return value, {"distillation": moved, "divergence": apart}

    def finetune(view: View, batch: Batch):
        return classified(view, batch), {}

    tenth = finetune_optimizer or optax.chain(optimizer, optax.scale(0.1))
    phases = (
        Phase("train", train, exemplars=True),
        Phase(
            "finetune", finetune, "exemplars", finetune_share, tenth, freeze="^backbone", begin=released, tasks="later"
        ),
    )
    return plan_of(grown, optimizer, phases, run, teacher=True, grow=add_token)
