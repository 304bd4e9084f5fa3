"""Attention by a kernel of cuDNN that never writes its weights to memory.

The kernel has no segment ids. Where a row may hold several sentences it takes a mask,
which all heads and layers share: two bytes for each query and key, so rows longer than
`FUSED_LENGTH` go in chunks instead.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from transformer_jax.models.masks import Segments, segment_mask
from transformer_jax.types import Array

FUSED_LENGTH = 2048
LARGEST_HEAD = 128
TILE = 128


def has_fused_kernel(q: Array, lengths: tuple[int, int]) -> bool:
    """Whether cuDNN can attend with queries like q [B,T,N,H] and lengths (T, S)."""
    size = q.shape[-1]
    return (
        q.dtype == jnp.bfloat16
        and size % 8 == 0
        and size <= LARGEST_HEAD
        and not any(length % 2 for length in lengths)
        and max(lengths) <= FUSED_LENGTH
        and _is_ampere_or_later()
    )


def _is_ampere_or_later() -> bool:
    device = jax.devices()[0]
    if "cuda" not in device.client.platform_version:
        return False
    return float(getattr(device, "compute_capability", "0.0")) >= 8


def fused_attention(
    q: Array,
    k: Array,
    v: Array,
    segments: Segments,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """`dot_product_attention` of `segments.mask()` without its weights.

    q [B,T,N,H]; k, v [B,N,S,H] → [B,T,N,H]. What it gives for padding is finite, and no
    more is said of it.
    """
    length_first = (0, 2, 1, 3)
    k, v = k.transpose(length_first), v.transpose(length_first)
    rows = rows_together(len(q), max(q.shape[1], k.shape[1]), jax.device_count())
    seen: dict[str, Array]
    if segments.one_per_row and rows == 1:
        length = (segments.key > 0).sum(axis=1)
        something = (length > 0)[:, None]  # [B, 1]
        seen = {"key_value_seq_lengths": jnp.maximum(length, 1)}  # none has no mean
    else:
        together = joined(segments, rows)
        mask = segment_mask(together.query, together.key)
        something = mask.any(axis=-1).reshape(segments.query.shape)  # [B, T]
        seen = {"mask": mask}  # [B/rows, 1, rows·T, rows·S]
    out = jax.nn.dot_product_attention(
        *(x.reshape(-1, rows * x.shape[1], *x.shape[2:]) for x in (q, k, v)),
        is_causal=segments.causal,
        implementation=implementation,
        **seen,
    ).reshape(q.shape)
    if segments.query is segments.key:
        return out  # a query that is no padding may attend to itself
    # Where nothing may be attended to, the kernel averages over some values.
    return jnp.where(something[:, :, None, None], out, jnp.zeros_like(out))


def rows_together(rows: int, length: int, devices: int) -> int:
    """How many of so many short rows the kernel gets as one, of `TILE` places at most:
    it works on tiles of that many queries and keys, filled or not. Each device joins
    rows of its own.

    >>> [rows_together(512, length, devices=1) for length in (32, 64, 100)]
    [4, 2, 1]
    >>> [rows_together(rows, 32, devices=8) for rows in (512, 24, 8)]
    [4, 3, 1]
    """
    most = max(1, TILE // length)
    return next(n for n in range(most, 0, -1) if n == 1 or rows % (n * devices) == 0)


def joined(segments: Segments, rows: int) -> Segments:
    """So many rows as one: [B, T] → [B/rows, rows·T]. No two share a number.

    >>> ids = jnp.array([[1, 2, 0], [1, 1, 1]])
    >>> joined(Segments(ids, ids), 2).query
    Array([[1, 2, 0, 5, 5, 5]], dtype=int32)
    """
    stride = 1 + max(segments.query.shape[1], segments.key.shape[1])

    def join(ids: Array) -> Array:
        first = stride * (jnp.arange(len(ids)) % rows)
        numbered = jnp.where(ids > 0, ids + first[:, None], 0)
        return numbered.reshape(-1, rows * ids.shape[1])

    return Segments(join(segments.query), join(segments.key), segments.causal)
