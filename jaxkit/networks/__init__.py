"""Networks: Flax modules behind ``jaxkit.learner.Network``, by name from ``make("mlp", 10)``. All Flax of jaxkit lives
here.
"""

from jaxkit.learner import Network
from jaxkit.networks.adapter import Classifier, from_flax, part_of
from jaxkit.networks.graph import appnp, gat, gcn, gcnii, jknet, mixhop, ppnp
from jaxkit.networks.heads import grow_head, new_head, num_classes_of
from jaxkit.networks.mlp import mlp
from jaxkit.networks.registry import NETWORKS, Record, make
from jaxkit.networks.vision.convnet import convnet
from jaxkit.networks.vision.efficientnet import efficientnet_lite0
from jaxkit.networks.vision.resnet import resnet20, resnet32
from jaxkit.networks.vision.vit import vit

__all__ = [
    "NETWORKS",
    "Classifier",
    "Network",
    "Record",
    "appnp",
    "convnet",
    "efficientnet_lite0",
    "from_flax",
    "gat",
    "gcn",
    "gcnii",
    "grow_head",
    "jknet",
    "make",
    "mixhop",
    "mlp",
    "new_head",
    "num_classes_of",
    "part_of",
    "ppnp",
    "resnet20",
    "resnet32",
    "vit",
]
