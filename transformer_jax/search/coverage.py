"""How much of the source a target has looked at, and what the rest costs."""

import jax.numpy as jnp

from transformer_jax.types import Array

LEAST = 1e-9
"""Attention that counts for a position that got none, as log 0 would forbid it."""


def first_coverage(
    penalty: float, source_mask: Array | None, beam_size: int
) -> Array | None:
    """Source mask [B, S], true where there is a token → attention so far [B, K, S].

    Padding counts as covered, so that it costs nothing. Without a penalty there is
    nothing to keep: None.

    >>> first_coverage(0.2, jnp.array([[True, False]]), 1).tolist()
    [[[0.0, 1.0]]]
    """
    if not penalty:
        return None
    if source_mask is None:
        raise ValueError(
            f"coverage_penalty is {penalty}, but there is no source_mask: give the "
            "places of the source that are no padding."
        )
    nothing = jnp.where(source_mask, jnp.float32(0), 1)
    return jnp.repeat(nothing[:, None], beam_size, axis=1)


def coverage_score(coverage: Array, penalty: float) -> Array:
    """penalty · Σᵢ log min(Σⱼ pᵢⱼ, 1) over the source positions i (Wu et al., 2016,
    equation 14): [B, K, S] → [B, K].

    Σⱼ pᵢⱼ is the attention that position i has had from all target tokens j, the end
    token included. Never above 0, and never falling as a target grows.

    >>> coverage_score(jnp.array([[[1.5, 1.0], [0.25, 1.0]]]), 0.5).round(3)
    Array([[ 0.   , -0.693]], dtype=float32)
    """
    return penalty * jnp.log(jnp.clip(coverage, LEAST, 1.0)).sum(axis=-1)
