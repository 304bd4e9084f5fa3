"""Boolean attention masks from segment ids: True = may attend.

Segment 0 is padding; sentences packed in one row count from 1. No other file makes a
mask, and none needs to know a padding id.
"""

import jax.numpy as jnp

from transformer_jax.types import Array


def segment_mask(query_segments: Array, key_segments: Array) -> Array:
    """[B, T], [B, S] → [B, 1, T, S]: same sentence, and not padding.

    >>> segment_mask(jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 2, 0]])).astype(int)
    Array([[[[1, 1, 0, 0],
             [0, 0, 1, 0],
             [0, 0, 0, 0]]]], dtype=int32)
    """
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return (same & (key_segments > 0)[:, None, :])[:, None]


def causal_mask(length: int) -> Array:
    """[1, 1, T, T]: a position may attend to itself and to those before it.

    >>> causal_mask(3).astype(int)
    Array([[[[1, 0, 0],
             [1, 1, 0],
             [1, 1, 1]]]], dtype=int32)
    """
    return jnp.tril(jnp.ones((1, 1, length, length), dtype=bool))


def cache_mask(positions: Array, length: int) -> Array:
    """Positions [R, L] of new tokens → [R, 1, L, T]: cached places up to their own.

    >>> cache_mask(jnp.array([[1, 2]]), 4).astype(int)
    Array([[[[1, 1, 0, 0],
             [1, 1, 1, 0]]]], dtype=int32)
    """
    places = jnp.arange(length)[None, None, :]
    return (places <= positions[:, :, None])[:, None]
