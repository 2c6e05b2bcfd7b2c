"""Named arrays of another library into the parameters and variables of a network here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit.check import UsageError
from jaxkit.learner import path_name

_NORM_LEAVES = {"weight": "params/{}/scale", "bias": "params/{}/bias"}
_STATISTICS = {"running_mean": "batch_stats/{}/mean", "running_var": "batch_stats/{}/var"}


def torch_leaf(module: str, leaf: str, array: np.ndarray, *, norm: bool) -> tuple[str, np.ndarray] | None:
    """Where PyTorch's ``module.leaf`` goes in Flax, and in which layout; None for what Flax does not keep.

    Convolution kernels go from OIHW to HWIO, dense ones from [out, in] to [in, out]; of a normalisation layer
    ``weight`` is ``scale``, and ``running_mean`` and ``running_var`` are variables.
    """
    if leaf == "num_batches_tracked":
        return None
    if norm:
        return {**_NORM_LEAVES, **_STATISTICS}[leaf].format(module), array
    if leaf == "weight":
        return f"params/{module}/kernel", array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return f"params/{module}/{leaf}", array


def fill(
    template: tuple[Any, Any],
    arrays: Iterable[tuple[str, np.ndarray]],
    place: Callable[[str, np.ndarray], tuple[str, np.ndarray] | None],
) -> tuple[Any, Any]:
    """(params, variables) of the template's structure, every leaf from a file.

    Args:
      template: ``(params, variables)``, arrays or shapes (``jax.eval_shape(network.init, key, x)``).
      arrays: the (name, array) pairs of the file.
      place: ``(name, array) -> (path, array)``, the path from ``params`` or a collection on; None leaves the array out.

    Raises:
      UsageError: an array has no place or another shape, or a leaf stays empty.
    """
    params, variables = template
    tree = {"params": params, **variables}
    wanted = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    found = {}
    for name, array in arrays:
        placed = place(name, array)
        if placed is None:
            continue
        path, array = placed
        if path not in wanted:
            raise UsageError(f"the weights hold {name}, for which the network has no place ({path})")
        if array.shape != wanted[path].shape:
            raise UsageError(f"the weights' {name} gives {array.shape}; {path} needs {wanted[path].shape}")
        found[path] = jnp.asarray(np.ascontiguousarray(array), wanted[path].dtype)
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise UsageError(f"the weights lack {len(missing)} arrays, the first for {missing[0]}")
    filled = jax.tree_util.tree_map_with_path(lambda path, _: found[path_name(path)], tree)
    return filled.pop("params"), filled
