"""Rows of a search: R = B·K, sentence after sentence, beam after beam."""

import chex
import jax
import jax.numpy as jnp

from transformer_jax.types import Array, Cache, Memory, StepFn


def reorder(cache: Cache, parents: Array) -> Cache:
    """Each beam goes on from the cache of its parent; parents [B, K] are beams.

    >>> reorder({"key": jnp.array([10, 11, 20, 21])}, jnp.array([[1, 1], [0, 1]]))
    {'key': Array([11, 11, 20, 21], dtype=int32)}
    """
    sentences, beams = parents.shape
    first = beams * jnp.arange(sentences, dtype=parents.dtype)
    rows = (first[:, None] + parents).reshape(-1)
    return jax.tree.map(lambda x: x[rows], cache)


def feed_prefix(
    step_fn: StepFn, cache: Cache, memory: Memory, prefix: Array, *, beams: int
) -> tuple[Array, Array, Cache]:
    """Feeds the prefix [B, P] to every row, as one block at position 0.

    → logits [R, V] for the token after it, log-probabilities [B, P - 1] of its own
    tokens after the start token, and the cache.
    """
    rows = jnp.repeat(prefix, beams, axis=0)  # [R, P]
    output, cache = step_fn(rows, jnp.zeros(rows.shape[:1], jnp.int32), cache, memory)
    chex.assert_shape(output.logits, (*rows.shape, None))
    of_prefix = output.logits[::beams, :-1]  # [B, P - 1, V]
    known = jnp.take_along_axis(of_prefix, prefix[:, 1:, None], axis=-1)[..., 0]
    known = known - jax.nn.logsumexp(of_prefix, axis=-1)
    return output.logits[:, -1], known, cache


def without(logits: Array, banned: tuple[int, ...]) -> Array:
    """Logits [R, V] in which the banned tokens cannot be chosen.

    >>> without(jnp.array([[1.0, 2.0, 3.0]]), (2,))
    Array([[  1.,   2., -inf]], dtype=float32)
    """
    if not banned:
        return logits
    return logits.at[:, jnp.array(banned)].set(-jnp.inf)


def length_limits(
    max_lengths: Array | None, prefix: Array, *, max_length: int
) -> Array:
    """Most target tokens of each sentence, end included: [B] int32.

    At most `max_length`, and never fewer than a forced prefix and the end need; 0 stays
    0, and asks for nothing.
    """
    sentences, width = prefix.shape
    if not 1 <= width <= max_length:
        raise ValueError(
            f"The prefix has {width} tokens, start token included, and max_length is "
            f"{max_length}: a start token is needed, and room for the end token."
        )
    if max_lengths is None:
        return jnp.full((sentences,), max_length, jnp.int32)
    chex.assert_shape(max_lengths, (sentences,))
    limits = jnp.clip(max_lengths, width, max_length).astype(jnp.int32)
    return jnp.where(max_lengths > 0, limits, 0)
