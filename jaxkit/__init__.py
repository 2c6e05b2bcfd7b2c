"""jaxkit: training methods for JAX where a textbook assumption broke.

``train`` (the short door), ``fit`` (the trainer) and ``load`` (data sets) are imported when they are first used.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["fit", "load", "train"]

_HOMES = {"train": "jaxkit.door", "fit": "jaxkit.training", "load": "jaxkit.data"}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
