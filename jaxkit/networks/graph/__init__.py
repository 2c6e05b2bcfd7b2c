"""Networks on graphs: GCN, GAT, APPNP, PPNP, JK-Net, GCNII and MixHop for the classification of nodes.

The input x is ``Nodes(rows, graph)``, known here by its fields alone:

===================  ==============================================================================================
``rows``             int32 [n], the nodes whose logits are asked for
``graph.nodes``      X, float32 [N, F], or a sparse matrix with ``.shape`` and ``nodes @ kernel -> [N, H]``
``graph.edges``      float32 [E], the entries of A-hat = D~^{-1/2} (A + I) D~^{-1/2}; self loops are edges
``graph.senders``    int32 [E], the columns of the entries
``graph.receivers``  int32 [E], their rows: (A-hat V)_i = sum over edges e into i of edges_e V_{senders_e}
``graph.globals``    for PPNP alone: its dense matrix, float32 [N, N]
===================  ==============================================================================================

The outputs are ``logits`` float32 [n, K] and ``features`` [n, H], the representation before the last layer (the logits
where there is no layer before it). There are no batch statistics: ``valid`` is ignored, and a padding row is any node's
number. The first layer's kernel W_0, which some of the papers decay alone, is ``backbone/layers_0/kernel``; in a GCN,
GAT or MixHop of depth 1 it is ``head/kernel``. All compute in float32, since sums over a neighbourhood of hundreds lose
digits in bfloat16.

X W is taken before the propagation, A-hat (X W), which is the cheaper order of the same product.
"""

from jaxkit.networks.graph.attention import gat
from jaxkit.networks.graph.convolution import gcn, mixhop
from jaxkit.networks.graph.deep import gcnii, jknet
from jaxkit.networks.graph.layers import drop, spread
from jaxkit.networks.graph.propagation import appnp, ppnp

__all__ = ["appnp", "drop", "gat", "gcn", "gcnii", "jknet", "mixhop", "ppnp", "spread"]
