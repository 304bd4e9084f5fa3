"""Attention by a kernel of cuDNN that never writes its weights to memory.

The kernel has no segment ids. It takes a mask, which all heads and layers share: two
bytes for each query and key, so rows longer than `FUSED_LENGTH` go in chunks instead.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from transformer_jax.models.masks import Segments, segment_mask
from transformer_jax.types import Array

FUSED_LENGTH = 2048
LARGEST_HEAD = 128


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

    q [B,T,N,H]; k, v [B,N,S,H] → [B,T,N,H].
    """
    mask = segment_mask(segments.query, segments.key)  # [B, 1, T, S]
    length_first = (0, 2, 1, 3)
    out = jax.nn.dot_product_attention(
        q,
        k.transpose(length_first),
        v.transpose(length_first),
        mask=mask,
        is_causal=segments.causal,
        implementation=implementation,
    )
    # Where nothing may be attended to, the kernel averages over all keys. A causal
    # query of a sentence sees at least itself, so the future need not be looked at.
    seen = mask.any(axis=-1)[:, 0, :, None, None]  # [B, T, 1, 1]
    return jnp.where(seen, out, jnp.zeros_like(out))
