"""A stack of equal layers as a loop over one compiled layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.types import Array, Params, PRNGKey

STACKED = "layers"
"""The subtree that stands for `layer_0`, `layer_1` … where they are stacked."""


def stack_layers(params: Params) -> Params:
    """Parameters with each stack's layers as one subtree, `layers`, whose every array
    leads with the layer; the rest as it is.

    >>> layers = {"layer_0": {"bias": jnp.zeros(3)}, "layer_1": {"bias": jnp.ones(3)}}
    >>> stack_layers({"encoder": layers})["encoder"]["layers"]["bias"].shape
    (2, 3)
    """
    if not isinstance(params, dict):
        return params
    names = [name for name in params if name.startswith("layer_")]
    parts = {name: stack_layers(params[name]) for name in params if name not in names}
    if names:
        layers = [params[f"layer_{i}"] for i in range(len(names))]
        parts[STACKED] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return parts


def unstack_layers(params: Params) -> Params:
    """A subtree a layer again, of what `stack_layers` gives."""
    if not isinstance(params, dict):
        return params
    parts = {name: unstack_layers(params[name]) for name in params if name != STACKED}
    if STACKED in params:
        layers = params[STACKED]
        for i in range(jax.tree.leaves(layers)[0].shape[0]):
            parts[f"layer_{i}"] = jax.tree.map(lambda x, i=i: x[i], layers)
    return parts


def scan_layers(
    layer: nn.Module,
    stacked: Params,
    x: Array,
    *others: Any,
    length: int,
    deterministic: bool,
    rng: PRNGKey | None,
    remat: bool,
) -> Array:
    """layer(… layer(x, *others) …, *others), each time with the next parameters of the
    `length` that are `stacked`.

    `layer` is bound to no parameters; `rng` is what each layer's dropout comes from.
    """
    rngs = None if rng is None else jax.random.split(rng, length)

    def apply(x: Array, part: tuple[Params, PRNGKey | None]) -> tuple[Array, None]:
        params, rng = part
        own = None if rng is None else {"dropout": rng}
        out: Any = layer.apply({"params": params}, x, *others, deterministic, rngs=own)
        return out, None

    # A loop's body is not merged with its recomputation, so nothing guards against it.
    body = jax.checkpoint(apply, prevent_cse=False) if remat else apply
    with jax.named_scope("layers"):
        return jax.lax.scan(body, x, (stacked, rngs), length=length)[0]
