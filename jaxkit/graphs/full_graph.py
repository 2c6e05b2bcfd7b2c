"""Networks that propagate inside every step: GCN, GAT, APPNP and their kin, trained on the labelled nodes."""

from __future__ import annotations

from typing import Any

import optax

from jaxkit import check
from jaxkit.graphs.objective import first_layer_penalty, node_learner
from jaxkit.graphs.stopping import keep_best
from jaxkit.graphs.structure import Nodes
from jaxkit.learner import Batch, Learner, Network


def node_classification(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    l2: Any = 5e-3,
    l2_on: str | None = None,
    weight_decay: Any = 0.0,
    patience: int | None = None,
) -> Learner:
    """Cross-entropy on the labelled nodes + l2/2 ||W_0||^2, with the best state on the stopping nodes kept.

    Train it with ``source=full_batch(whole=True)``: a step sees the whole graph.

    Args:
      network: on ``Nodes``: ``networks.gcn``, ``gat``, ``appnp``, ``ppnp``, ``jknet``, ``gcnii``, ``mixhop``.
      optimizer: an optax transformation.
      l2: of the parameters whose path matches ``l2_on``. May be traced.
      l2_on: a regular expression; None: the first layer.
      weight_decay: factor of 1/2 ||theta||^2. May be traced.
      patience: see ``keep_best``.

    Raises:
      UsageError: data without stopping nodes.

    Source: the protocol of Gasteiger et al. 2019 (PPNP), appendix B.
    """
    learner = node_learner(network, optimizer, l2=l2, l2_on=l2_on, weight_decay=weight_decay)

    def stopping(batch: Batch) -> Batch:
        if "stopping" not in batch:
            raise check.UsageError("node_classification needs stopping nodes: node_data(graph, y, rows, stopping)")
        return {"x": Nodes(batch["stopping"]["rows"], batch["x"].graph), "y": batch["stopping"]["y"]}

    return keep_best(learner, stopping, patience=patience, penalty=first_layer_penalty(l2, l2_on))
