"""Several experts in one network: copies of a whole network, or heads on one backbone.

Either gives, beside ``logits`` [batch, C] and ``features`` [batch, E F], the read-outs of its E experts:
``logits_experts`` [batch, E, C] and ``features_experts`` [batch, E, F]. ``logits`` is the mean over experts;
``features`` stands for all of them side by side, since a unit of one expert has nothing to do with that of another.

The methods of this package take ``experts=3`` and copy the network they are given; with ``experts=None`` the network
itself has experts (``with_experts``, or any network that gives ``logits_experts``).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.learner import Batch, Key, Network, Outputs, Params, PyTree
from jaxkit.long_tailed.counts import Counts, concrete
from jaxkit.long_tailed.groups import GROUPS, class_groups
from jaxkit.networks import mlp
from jaxkit.networks.heads import Head

ExpertLogits = Float[Array | np.ndarray, "*batch experts classes"]


def name_of(expert: int) -> str:
    """Where the parameters and variables of an expert stand: ``expert_0``, ``expert_1``, ..."""
    return f"expert_{expert}"


def _key_of(key: Key | None, expert: int) -> Key | None:
    return None if key is None else jax.random.fold_in(key, expert)


def _check_expert(outputs: Outputs) -> None:
    if not {"logits", "features"} <= outputs.keys():
        given = ", ".join(sorted(outputs))
        raise check.UsageError(f"an expert is a network that gives logits and features, this one gives {given}")


def join(outputs: Sequence[Outputs]) -> Outputs:
    """The outputs of an ensemble from those of its experts.

    Raises:
      UsageError: an expert without ``logits`` or ``features``.
    """
    _check_expert(outputs[0])
    logits, features = (jnp.stack([one[name] for one in outputs], axis=1) for name in ("logits", "features"))
    return {
        "logits": logits.mean(1),
        "features": features.reshape(len(features), -1),
        "logits_experts": logits,
        "features_experts": features,
    }


def replicated(network: Network, experts: int = 3) -> Network:
    """Independent copies of a network: parameters and variables ``{"expert_0": ..., "expert_1": ..., ...}``.

    The copies run one after another; nothing is shared between them, so an ensemble of E costs E networks.

    Args:
      network: gives ``logits`` and ``features``.
      experts: E.

    Returns:
      a Network with the outputs named above.

    Raises:
      UsageError: fewer than one expert; from ``apply``, a network without ``logits`` or ``features``.
    """
    experts = check.count("experts", experts)

    def init(key: Key, x: PyTree) -> tuple[Params, PyTree]:
        made = [network.init(jax.random.fold_in(key, expert), x) for expert in range(experts)]
        return tuple({name_of(expert): one[part] for expert, one in enumerate(made)} for part in (0, 1))

    def apply(params: Params, variables: PyTree, x: PyTree, *, train: bool = False, key: Key | None = None, valid=None):
        outputs, after = [], {}
        for expert in range(experts):
            own, own_key = name_of(expert), _key_of(key, expert)
            one, after[own] = network.apply(params[own], variables[own], x, train=train, key=own_key, valid=valid)
            outputs.append(one)
        return join(outputs), after

    return Network(init, apply)


def with_experts(network: Network, experts: int = 3, *, head: str | Head = "linear") -> Network:
    """E experts on the one backbone of a network: each is f_e = relu(W_e f + b_e) with as many units as f, and a head.

    The parameters are the network's own, without its head, and ``expert_0``, ..., each an MLP of one hidden layer.

    Args:
      network: with parameters under ``head``, as all of ``jaxkit.networks`` have them; its number of classes is that
        of the experts.
      experts: E.
      head: of each expert: ``linear``, ``cosine`` (normalised), or a function of the number of classes
        (``heads.cosine(scale=30.0, learn_scale=False)`` for RIDE).

    Raises:
      UsageError: fewer than one expert, an unknown head; from ``init``, a network without head or features.
    """
    experts = check.count("experts", experts)

    def expert_of(features: int, classes: int) -> Network:
        return mlp(classes, hidden=(features,), head=head)

    expert_of(1, 1)  # an unknown head is told at once

    def init(key: Key, x: PyTree) -> tuple[Params, PyTree]:
        params, variables = network.init(key, x)
        if not isinstance(params, dict) or "head" not in params:
            raise check.UsageError("with_experts needs a network with parameters under 'head', which it leaves out")
        outputs = jax.eval_shape(lambda params, variables: network.apply(params, variables, x)[0], params, variables)
        _check_expert(outputs)
        features, classes = outputs["features"], outputs["logits"].shape[-1]
        expert, rows = expert_of(features.shape[-1], classes), jnp.zeros(features.shape, features.dtype)
        made = {name_of(e): expert.init(jax.random.fold_in(key, e), rows)[0] for e in range(experts)}
        return {**{name: params[name] for name in params if name != "head"}, **made}, variables

    def apply(params: Params, variables: PyTree, x: PyTree, *, train: bool = False, key: Key | None = None, valid=None):
        # The network's own head is no part of the parameters, and its logits are not used: zeros stand in for it.
        shapes = jax.eval_shape(network.init, jax.random.key(0), x)[0]
        absent = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["head"])
        own = {**{name: params[name] for name in shapes if name != "head"}, "head": absent}
        outputs, variables = network.apply(own, variables, x, train=train, key=key, valid=valid)
        features, classes = params[name_of(0)]["head"]["kernel"].shape
        expert = expert_of(features, classes)
        return join([expert.apply(params[name_of(e)], {}, outputs["features"])[0] for e in range(experts)]), variables

    return Network(init, apply)


def ensemble_of(network: Network, experts: int | None, *, needed: int | None = None, least: int = 1) -> Network:
    """``replicated(network, experts)``, or with ``experts=None`` the network itself, which must have experts.

    Args:
      network: a network, or one with experts.
      experts: how many copies, or None.
      needed: how many the method has, where it has a fixed number.
      least: how many it needs at least.

    Raises:
      UsageError: another number of experts; from ``init``, a network without ``logits_experts``.
    """

    def check_number(number: int) -> None:
        if needed not in (None, number):
            raise check.UsageError(f"this method has {needed} experts, one for each of its losses, got {number}")
        if number < least:
            raise check.UsageError(f"this method needs at least {least} experts, got {number}")

    if experts is not None:
        check_number(check.count("experts", experts))
        return replicated(network, experts)

    def init(key: Key, x: PyTree) -> tuple[Params, PyTree]:
        params, variables = network.init(key, x)
        outputs = jax.eval_shape(lambda params, variables: network.apply(params, variables, x)[0], params, variables)
        if "logits_experts" not in outputs:
            raise check.UsageError(
                f"experts=None needs a network that gives logits_experts, as with_experts(network, 3); this one gives "
                f"{', '.join(sorted(outputs))}; or say experts=3 for three copies of it"
            )
        check_number(outputs["logits_experts"].shape[1])
        return params, variables

    return network._replace(init=init)


def shot_groups(class_counts: Counts, by: str) -> Int[Array, " classes"]:
    """``class_groups``, none of them empty: there is an expert for each.

    Raises:
      UsageError: counts that are none, an unknown rule, a group without a class.
    """
    groups = class_groups(class_counts, by=by)
    if concrete(groups):
        present = set(groups.tolist())
        for number, name in enumerate(GROUPS):
            if number not in present:
                advice = "take by='rank', thirds by count" if check.fold(by) == "shots" else "there must be 3 classes"
                raise check.UsageError(f"no class is {name}-shot by {by}, and an expert is for those; {advice}")
    return groups


def rows_valid(batch: Batch) -> Bool[Array, " batch"]:
    """``valid``, True where the batch has none."""
    return batch["valid"] if "valid" in batch else jnp.ones(batch["y"].shape, bool)
