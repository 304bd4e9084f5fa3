"""A stack of equal layers as a loop over one compiled layer."""

from typing import Any

import flax.linen as nn
import jax

from transformer_jax.types import Array, Params, PRNGKey


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
    """layer(… layer(x, *others) …, *others), each time with the next of the `length`
    layers' parameters, `stacked`.

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
