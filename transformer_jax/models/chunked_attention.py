"""Attention over blocks of keys, in memory that grows with the length and not with its
square (Rabe and Staats, 2021; Dao et al., 2022).

For one block of queries, blocks of keys come one after the other. What is kept of those
seen so far is the largest logit m, the sum l = Σ exp(logit - m) and the mixture
Σ exp(logit - m) v; when a block brings a larger m, sum and mixture are scaled to it. In
the end mixture / l is the attention, and m + log l is all that the backward pass needs
to form any block of weights again.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.models.masks import (
    NEG_INF,
    Segments,
    block_mask,
    block_visible,
)
from transformer_jax.types import Array

BLOCK = 512
"""Queries, and keys, whose weights are held at once, at most."""


def chunked_attention(
    q: Array, k: Array, v: Array, segments: Segments, *, block: int = BLOCK
) -> Array:
    """`dot_product_attention` of `segments.mask()` without its weights.

    q [B,T,N,H]; k, v [B,N,S,H] → [B,T,N,H]. Blocks that no query may look into (later
    than it, of other sentences, padding) are skipped, not computed and masked.
    """
    length = q.shape[1]
    cut_q = functools.partial(_cut, block=_even_block(length, block))
    cut_k = functools.partial(_cut, block=_even_block(k.shape[2], block))
    attend: Any = _attend
    out = attend(
        segments.causal,
        cut_q(q.transpose(0, 2, 1, 3), axis=2),
        cut_k(k, axis=2),
        cut_k(v, axis=2),
        cut_q(segments.query, axis=1),
        cut_k(segments.key, axis=1),
    )  # [blocks, B, N, C, H]
    blocks, rows, heads, width, size = out.shape
    out = out.transpose(1, 0, 3, 2, 4).reshape(rows, blocks * width, heads, size)
    return out[:, :length]


def _even_block(length: int, block: int) -> int:
    """The smallest block that needs no more of them.

    >>> _even_block(640, 512), _even_block(7, 512)
    (320, 7)
    """
    return -(-length // -(-length // block))


def _cut(x: Array, *, axis: int, block: int) -> Array:
    """Cut an axis into blocks, which come first; zeros fill the last."""
    blocks = -(-x.shape[axis] // block)
    fill = [(0, 0)] * x.ndim
    fill[axis] = (0, blocks * block - x.shape[axis])
    x = jnp.pad(x, fill)
    x = x.reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(causal, q, k, v, query_ids, key_ids) -> Array:
    return _forward(causal, q, k, v, query_ids, key_ids)[0]


def _forward(causal, q, k, v, query_ids, key_ids):
    """The attention [I, B, N, C, H], and what the backward pass starts from."""
    visible = _visible(causal, query_ids, key_ids)  # [I, J]
    places = jnp.arange(k.shape[0])

    def of_queries(part):
        q_i, ids_i, i, visible_i = part

        def look(carry, part):
            k_j, v_j, ids_j, j = part
            top, total, mixed = carry
            logits = _logits(q_i, k_j)
            mask = _mask(causal, ids_i, ids_j, i, j)
            new_top = jnp.maximum(top, jnp.where(mask, logits, NEG_INF).max(axis=-1))
            weights = jnp.where(mask, jnp.exp(logits - new_top[..., None]), 0.0)
            shrink = jnp.exp(top - new_top)
            new = _product("BNTS,BNSH->BNTH", weights.astype(v_j.dtype), v_j)
            return (
                new_top,
                total * shrink + weights.sum(axis=-1),
                mixed * shrink[..., None] + new,
            )

        def fold(carry, part):
            seen, part = part
            return jax.lax.cond(seen, look, lambda carry, _: carry, carry, part), None

        start = (
            jnp.full(q_i.shape[:-1], NEG_INF, jnp.float32),
            jnp.zeros(q_i.shape[:-1], jnp.float32),
            jnp.zeros(q_i.shape, jnp.float32),
        )
        parts = (visible_i, (k, v, key_ids, places))
        (top, total, mixed), _ = jax.lax.scan(fold, start, parts)
        total = jnp.where(total > 0, total, 1.0)  # nothing to attend to: zeros
        return (mixed / total[..., None]).astype(q_i.dtype), top + jnp.log(total)

    queries = (q, query_ids, jnp.arange(q.shape[0]), visible)
    out, lse = jax.lax.map(of_queries, queries)
    return out, (q, k, v, query_ids, key_ids, out, lse)


def _backward(causal, kept, d_out):
    """Gradients of q, k and v: weights are formed again, block by block."""
    q, k, v, query_ids, key_ids, out, lse = kept
    visible = _visible(causal, query_ids, key_ids)  # [I, J]
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    places = jnp.arange(q.shape[0])

    def of_keys(d_q, part):
        k_j, v_j, ids_j, j, visible_j = part

        def look(part):
            q_i, d_out_i, lse_i, delta_i, ids_i, i = part
            mask = _mask(causal, ids_i, ids_j, i, j)
            weights = jnp.exp(_logits(q_i, k_j) - lse_i[..., None])
            weights = jnp.where(mask, weights, 0.0)
            d_v = _product("BNTS,BNTH->BNSH", weights.astype(v_j.dtype), d_out_i)
            d_weights = _product("BNTH,BNSH->BNTS", d_out_i, v_j)
            d_logits = weights * (d_weights - delta_i[..., None])
            d_logits = (d_logits / math.sqrt(q_i.shape[-1])).astype(k_j.dtype)
            d_q_i = _product("BNTS,BNSH->BNTH", d_logits, k_j)
            return d_q_i, _product("BNTS,BNTH->BNSH", d_logits, q_i), d_v

        def skip(part):
            like = part[0].shape, k_j.shape, v_j.shape
            return tuple(jnp.zeros(shape, jnp.float32) for shape in like)

        def fold(carry, part):
            d_q, d_k, d_v = carry
            seen, part = part
            new_q, new_k, new_v = jax.lax.cond(seen, look, skip, part)
            return (d_q.at[part[-1]].add(new_q), d_k + new_k, d_v + new_v), None

        zero = jnp.zeros(k_j.shape, jnp.float32)
        parts = (visible_j, (q, d_out, lse, delta, query_ids, places))
        (d_q, d_k, d_v), _ = jax.lax.scan(fold, (d_q, zero, zero), parts)
        return d_q, (d_k.astype(k.dtype), d_v.astype(v.dtype))

    keys = (k, v, key_ids, jnp.arange(k.shape[0]), visible.T)
    d_q, (d_k, d_v) = jax.lax.scan(of_keys, jnp.zeros(q.shape, jnp.float32), keys)
    return d_q.astype(q.dtype), d_k, d_v, None, None


_attend.defvjp(_forward, _backward)


def _product(axes: str, a: Array, b: Array) -> Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _logits(q: Array, k: Array) -> Array:
    """Queries and keys of a block → [B, N, C, C] in float32."""
    return _product("BNTH,BNSH->BNTS", q, k) / math.sqrt(q.shape[-1])


def _mask(causal: bool, query_ids: Array, key_ids: Array, i: Array, j: Array) -> Array:
    """[B, 1, C, C] of query block i and key block j."""
    segments = Segments(query_ids, key_ids, causal=causal)
    return block_mask(segments, i * query_ids.shape[1], j * key_ids.shape[1])


def _visible(causal: bool, query_ids: Array, key_ids: Array) -> Array:
    """Which blocks need looking into: [I, J]."""
    by_row = (1, 0, 2)
    return block_visible(
        query_ids.transpose(by_row), key_ids.transpose(by_row), causal=causal
    )
