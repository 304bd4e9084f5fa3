"""Whole trees of arrays: paths, shapes, count, digest, mean, layers stacked."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.types import Params

STACKED = "layers"
"""The subtree that stands for `layer_0`, `layer_1` … where they are stacked."""


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path.

    >>> leaves_by_path({"up": {"kernel": 1, "bias": 2}})
    {'up/bias': 2, 'up/kernel': 1}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(tree: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array, by path.

    >>> describe({"scale": np.zeros(3)})
    {'scale': ('float64', (3,))}
    """
    return {
        path: (str(x.dtype), tuple(x.shape)) for path, x in leaves_by_path(tree).items()
    }


def count_params(params: Params) -> int:
    """How many numbers there are in a tree of arrays, or of their shapes.

    >>> count_params({"kernel": np.zeros((2, 3)), "bias": np.zeros(3)})
    9
    """
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def params_sha256(params: Params) -> str:
    """SHA-256 over path, type, shape and bytes of all parameters, sorted by path.

    >>> params_sha256({"scale": np.zeros(3)})[:8]
    'a97a6090'
    """
    total = hashlib.sha256()
    for path, x in sorted(leaves_by_path(params).items()):
        x = np.asarray(x)
        total.update(f"{path} {x.dtype} {list(x.shape)}\n".encode())
        total.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def average_params(checkpoints: Iterable[Params]) -> Params:
    """The mean of several sets of parameters, summed in float64.

    >>> average_params([{"w": np.float32([1, 2])}, {"w": np.float32([3, 2])}])
    {'w': array([2., 2.], dtype=float32)}
    """
    total, first, count = None, None, 0
    for params in checkpoints:
        params = jax.tree.map(np.asarray, params)
        if first is None:
            first, total = params, jax.tree.map(lambda x: x.astype(np.float64), params)
        elif (there := describe(params)) != (here := describe(first)):
            name = next(n for n in here | there if here.get(n) != there.get(n))
            raise ValueError(
                f"Only checkpoints of one model can be averaged: {name} is "
                f"{here.get(name)} in the first and {there.get(name)} in another."
            )
        else:
            total = jax.tree.map(np.add, total, params)
        count += 1
    if first is None:
        raise ValueError("There is nothing to average: give at least one checkpoint.")
    return jax.tree.map(lambda t, x: (t / count).astype(x.dtype), total, first)


def stack_layers(params: Params) -> Params:
    """Parameters with each stack's layers as one subtree, `layers`, whose every array
    leads with the layer; the rest as it is.

    >>> layers = {"layer_0": {"bias": jnp.zeros(3)}, "layer_1": {"bias": jnp.ones(3)}}
    >>> stack_layers({"encoder": layers})["encoder"]["layers"]["bias"].shape
    (2, 3)
    """
    if not isinstance(params, Mapping):
        return params
    names = [name for name in params if re.fullmatch(r"layer_\d+", name)]
    parts = {name: stack_layers(params[name]) for name in params if name not in names}
    if names:
        layers = [params[f"layer_{i}"] for i in range(len(names))]
        parts[STACKED] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return parts


def unstack_layers(params: Params) -> Params:
    """A subtree a layer again, of what `stack_layers` gives."""
    if not isinstance(params, Mapping):
        return params
    parts = {name: unstack_layers(params[name]) for name in params if name != STACKED}
    if STACKED in params:
        layers = params[STACKED]
        for i in range(jax.tree.leaves(layers)[0].shape[0]):
            parts[f"layer_{i}"] = jax.tree.map(lambda x, i=i: x[i], layers)
    return parts
