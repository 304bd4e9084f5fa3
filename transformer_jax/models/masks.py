"""Boolean attention masks from segment ids: True = may attend. Decoding adds them to
logits, as 0 or `NEG_INF`.

Segment 0 is padding; sentences packed in one row count from 1. No other file makes a
mask, and none needs to know a padding id.
"""

import flax.struct
import jax.numpy as jnp

from transformer_jax.types import Array

NEG_INF = -1e30
"""For logits that are masked: finite, so that a row with nothing to attend to gives no
NaN."""


@flax.struct.dataclass
class Segments:
    """Who may attend to whom, as a mask that is not made yet: for long rows it would be
    larger than all else, so whoever attends makes the parts that it needs."""

    query: Array
    """[B, T]."""
    key: Array
    """[B, S]."""
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether a position attends to none after it (T = S)."""
    one_per_row: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether a row holds one sentence, and then padding: a kernel that is told their
    lengths needs no mask."""

    def mask(self) -> Array:
        """[B, 1, T, S], whole."""
        mask = segment_mask(self.query, self.key)
        return mask & causal_mask(self.key.shape[1]) if self.causal else mask


def segment_mask(query_segments: Array, key_segments: Array) -> Array:
    """[B, T], [B, S] → [B, 1, T, S]: same sentence, and not padding.

    >>> segment_mask(jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 2, 0]])).astype(int)
    Array([[[[1, 1, 0, 0],
             [0, 0, 1, 0],
             [0, 0, 0, 0]]]], dtype=int32)
    """
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return (same & (key_segments > 0)[:, None, :])[:, None]


def mask_bias(mask: Array) -> Array:
    """What to add to logits: 0 where the mask is true, else `NEG_INF`."""
    return jnp.where(mask, jnp.float32(0), NEG_INF)


def causal_mask(length: int) -> Array:
    """[1, 1, T, T]: a position may attend to itself and to those before it.

    >>> causal_mask(3).astype(int)
    Array([[[[1, 0, 0],
             [1, 1, 0],
             [1, 1, 1]]]], dtype=int32)
    """
    return jnp.tril(jnp.ones((1, 1, length, length), dtype=bool))


def block_mask(segments: Segments, query_start: Array, key_start: Array) -> Array:
    """`segments.mask()` of one block: `segments` holds the ids of the block alone, and
    the starts, int32, say where it lies in the row.

    >>> ids = jnp.array([[1, 1]])
    >>> zero, one = jnp.int32(0), jnp.int32(1)
    >>> block_mask(Segments(ids, ids, causal=True), zero, one).astype(int)
    Array([[[[0, 0],
             [1, 0]]]], dtype=int32)
    """
    mask = segment_mask(segments.query, segments.key)
    if not segments.causal:
        return mask
    queries = query_start + jnp.arange(segments.query.shape[1])
    keys = key_start + jnp.arange(segments.key.shape[1])
    return mask & (queries[:, None] >= keys[None, :])[None, None]


def block_visible(query_segments: Array, key_segments: Array, *, causal: bool) -> Array:
    """Segment ids cut into blocks, [B, blocks, block] → [query blocks, key blocks]:
    False where no query of the block may attend to any of its keys.

    True may also stand where none may: sentences are compared by the lowest and the
    highest number in a block.

    >>> ids = jnp.array([[[1, 1], [2, 0], [0, 0]]])
    >>> block_visible(ids, ids, causal=True).astype(int)
    Array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 0]], dtype=int32)
    """
    (low_q, high_q), (low_k, high_k) = map(_bounds, (query_segments, key_segments))
    overlap = (low_q[:, :, None] <= high_k[:, None]) & (
        low_k[:, None] <= high_q[:, :, None]
    )
    visible = overlap.any(axis=0)
    if not causal:
        return visible
    block, keys = query_segments.shape[2], key_segments.shape[2]
    ends = (jnp.arange(visible.shape[0]) + 1) * block
    starts = jnp.arange(visible.shape[1]) * keys
    return visible & (starts[None, :] < ends[:, None])


def _bounds(segments: Array) -> tuple[Array, Array]:
    """The lowest and the highest segment of each block, padding left out; a block of
    padding alone overlaps with none."""
    real = segments > 0
    none = jnp.iinfo(jnp.int32).max
    lowest = jnp.where(real, segments, none).min(axis=2)
    return lowest, jnp.where(real, segments, 0).max(axis=2)


def cache_bias(positions: Array, ancestors: Array, sentences: int) -> Array:
    """Positions [R, L] of new tokens, ancestors [R, T] → [B, 1, K·L, T·K], what to add
    to logits of the cached places, in whichever of the sentence's K rows: 0 where they
    hold a token's own past, else `NEG_INF`.

    `ancestors[r, t]` is the row, counted inside its sentence, that wrote what row r has
    at position t.

    >>> ancestors = jnp.array([[0, 0, 0], [0, 1, 0]])
    >>> (cache_bias(jnp.array([[1], [1]]), ancestors, 1) == 0).astype(int)
    Array([[[[1, 0, 1, 0, 0, 0],
             [1, 0, 0, 1, 0, 0]]]], dtype=int32)
    """
    rows, block = positions.shape
    beams, length = rows // sentences, ancestors.shape[1]
    past = jnp.arange(length)[None, None, :] <= positions[:, :, None]  # [R, L, T]
    bias = mask_bias(past)
    if beams == 1:
        return bias[:, None]
    # Written, not compared: all layers read it, and XLA would compare for each anew.
    nothing = jnp.full((*past.shape, beams), NEG_INF)  # [R, L, T, K]
    row, query = jnp.arange(rows)[:, None, None], jnp.arange(block)[None, :, None]
    place = jnp.arange(length)[None, None, :]
    bias = nothing.at[row, query, place, ancestors[:, None]].set(bias)
    return bias.reshape(sentences, 1, beams * block, length * beams)
