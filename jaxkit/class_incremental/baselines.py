"""What the others are measured against: finetune below, joint training above, and plain replay."""

from __future__ import annotations

from typing import Unpack

import optax

from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, Settings, View, make_run
from jaxkit.class_incremental.readout import among
from jaxkit.learner import Batch, Key, Network, Plan, TrainState, batch_mean
from jaxkit.losses import cross_entropy


def new_classes(view: View, batch: Batch):
    """mean_i CE of the row among the new classes alone."""
    logits = among(view.outputs["logits"], view.task.old, view.task.seen)
    return batch_mean(cross_entropy(logits, batch["y"]), batch)


def seen_classes(view: View, batch: Batch):
    """mean_i CE of the row among all classes seen so far."""
    return batch_mean(cross_entropy(view.outputs["logits"], batch["y"]), batch)


def finetune(network: Network, optimizer: optax.GradientTransformation, **settings: Unpack[Settings]) -> Plan:
    """min CE(z_new) on the rows of the task, no exemplars: the lower bound.

    Source: Zhou et al. 2024, section 4.1; the released code takes the cross-entropy among the new classes alone.
    """
    run = make_run(**{**settings, "memory": None})
    phase = Phase("train", lambda view, batch: (new_classes(view, batch), {}), "new")
    return plan_of(network, optimizer, (phase,), run)


def replay(network: Network, optimizer: optax.GradientTransformation, **settings: Unpack[Settings]) -> Plan:
    """min CE(z_seen) on the rows of the task and the exemplars. (Zhou et al. 2024, section 4.1; Ratcliff 1990.)"""
    phase = Phase("train", lambda view, batch: (seen_classes(view, batch), {}))
    return plan_of(network, optimizer, (phase,), make_run(**settings))


def joint(network: Network, optimizer: optax.GradientTransformation, **settings: Unpack[Settings]) -> Plan:
    """At each task a new model on all rows of all classes seen so far: the upper bound, and a* of intransigence.

    Source: Chaudhry et al. 2018, Riemannian walk, section 3.
    """

    def anew(state: TrainState, fresh: TrainState, key: Key) -> TrainState:
        return state._replace(params=fresh.params, variables=fresh.variables)

    run = make_run(**{**settings, "memory": None})
    phase = Phase("train", lambda view, batch: (seen_classes(view, batch), {}), "all")
    return plan_of(network, optimizer, (phase,), run, grow=anew)
