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


def cache_mask(positions: Array, ancestors: Array, sentences: int) -> Array:
    """Positions [R, L] of new tokens, ancestors [R, T] → [B, 1, K·L, T·K]: the cached
    places, in whichever of the sentence's K rows, that hold a token's own past.

    `ancestors[r, t]` is the row, counted inside its sentence, that wrote what row r has
    at position t.

    >>> ancestors = jnp.array([[0, 0, 0], [0, 1, 0]])
    >>> cache_mask(jnp.array([[1], [1]]), ancestors, 1).astype(int)
    Array([[[[1, 0, 1, 0, 0, 0],
             [1, 0, 0, 1, 0, 0]]]], dtype=int32)
    """
    rows, block = positions.shape
    beams, length = rows // sentences, ancestors.shape[1]
    past = jnp.arange(length)[None, None, :] <= positions[:, :, None]  # [R, L, T]
    if beams == 1:
        return past[:, None]
    writers = jnp.arange(beams)[None, None, :]
    written = ancestors[:, :, None] == writers  # [R, T, K]
    mask = past[..., None] & written[:, None]  # [R, L, T, K]
    return mask.reshape(sentences, 1, beams * block, length * beams)
