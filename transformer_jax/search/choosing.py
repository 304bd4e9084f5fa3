"""The best few of a large vocabulary, without sorting it, and the sum of all."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transformer_jax.exponential import quick_exp
from transformer_jax.types import Array, Logits, RoughLogits

CHUNK = 128
"""Tokens that are looked at as one at first; a multiple of `LANES`."""
LANES = 16
"""Numbers that a CPU compares at once, or a few times as many; a power of two."""
CANDIDATES = 4
"""Tokens with the highest rough logits whose exact ones are looked at."""


def best_tokens(
    logits: Array, offsets: Array, count: int
) -> tuple[Array, Array, Array]:
    """The C = `count` best of the K·V sums of offsets [B, K] and logits [B, K, V].

    → their sums, beams and tokens, each [B, C], best first; among equals the better
    beam comes first, then the smaller token. Each beam's vocabulary is cut into chunks.
    The C best lie in the C chunks with the best maxima, so one pass over all logits
    finds the chunks, and only these are searched: the result is that of sorting all.

    >>> logits = jnp.array([[[1.0, 5.0, 3.0], [4.0, 0.0, 5.0]]])
    >>> [x.tolist() for x in best_tokens(logits, jnp.zeros((1, 2)), 3)]
    [[[5.0, 5.0, 4.0]], [[0, 1, 1]], [[1, 2, 0]]]
    """
    sentences, beams, vocab_size = logits.shape
    chunks = -(-vocab_size // CHUNK)
    if beams * chunks <= 2 * count:
        sums = (offsets[..., None] + logits).reshape(sentences, -1)
        best, index = _best(sums, count)
        return best, index // vocab_size, index % vocab_size

    maxima = offsets[..., None] + _chunk_maxima(logits)
    _, index = _best(maxima.reshape(sentences, -1), count)
    chosen = jnp.sort(index, axis=-1)  # [B, C], so that equals keep their order
    beam, start = chosen // chunks, chosen % chunks * CHUNK

    # The last chunk is short: its window starts earlier, inside the one before.
    window = jnp.minimum(start, vocab_size - CHUNK)[..., None]
    window = window + jnp.arange(CHUNK)[None, None, :]  # [B, C, CHUNK]
    rows = jnp.arange(sentences)[:, None, None]
    found = logits[rows, beam[..., None], window]  # [B, C, CHUNK]
    sums = jnp.take_along_axis(offsets, beam, axis=-1)[..., None] + found
    sums = jnp.where(window >= start[..., None], sums, -jnp.inf)
    best, index = _best(sums.reshape(sentences, -1), count)
    tokens = jnp.take_along_axis(window.reshape(sentences, -1), index, axis=-1)
    return best, jnp.take_along_axis(beam, index // CHUNK, axis=-1), tokens


def likeliest(logits: Array) -> Array:
    """The token with the highest of the logits [B, K, V], the smallest among equals:
    [B, K].

    >>> likeliest(jnp.array([[[1.0, 5.0, 5.0], [4.0, 0.0, 2.0]]])).tolist()
    [[1, 0]]
    """
    sentences, beams, vocab_size = logits.shape
    rows = logits.reshape(-1, 1, vocab_size)
    return best_tokens(rows, _zeros_for(rows), 1)[2].reshape(sentences, beams)


def best_token(
    logits: Logits, allow: Callable[[Array], Array], wanted: Array
) -> tuple[Array, Array]:
    """The highest of the logits [B, 1, V] that `allow` leaves above -inf, and its
    token, the smallest among equals: both [B, 1].

    Of rough logits the highest few are computed exactly. The others are below the last
    of these; where one so high might still be the best, and the row is `wanted` [B, 1],
    all are computed. A row's result never depends on other rows.
    """
    if not isinstance(logits, RoughLogits):
        best, _, tokens = best_tokens(allow(logits), _zeros_for(logits), 1)
        return best, tokens
    rough = allow(logits.values)
    vocab_size = rough.shape[-1]
    count = min(CANDIDATES, vocab_size)
    values, _, candidates = best_tokens(rough, _zeros_for(rough), count)
    exact = logits.exactly(candidates[:, None])[:, 0]  # [B, C]
    exact = jnp.where(values > -jnp.inf, exact, -jnp.inf)
    best = exact.max(axis=-1, keepdims=True)
    tokens = jnp.where(exact == best, candidates, vocab_size).min(axis=-1)[:, None]
    # XLA finds the best few quickly only where their search is not joined with cutting
    # its result, and else sorts everything.
    values = jax.lax.optimization_barrier(values)
    sure = values[:, -1:] + logits.error < best

    def among_all() -> tuple[Array, Array]:
        whole = best_token(logits.exactly(None), allow, wanted)
        return jnp.where(sure, best, whole[0]), jnp.where(sure, tokens, whole[1])

    return jax.lax.cond((sure | ~wanted).all(), lambda: (best, tokens), among_all)


def log_totals(logits: Array, allowed: Array | None = None) -> Array:
    """log Σ exp of logits [B, K, V] over the vocabulary, [B, K].

    Where the `best_tokens` of what is `allowed`, logits or -inf, are looked for, too,
    the maxima of its chunks are found once for both: exp is taken of differences from
    the highest allowed logit, and anew where a forbidden one is too far above it, or
    nothing is allowed.

    >>> jnp.exp(log_totals(jnp.log(jnp.array([[[1.0, 2.0, 5.0]]])))).round(3).tolist()
    [[8.0]]
    """

    def from_highest(highest: Array) -> Array:
        highest = jnp.where(jnp.isfinite(highest), highest, 0)
        differences = logits - highest[..., None]
        return highest + jnp.log(quick_exp(differences).sum(axis=-1))

    def among_all() -> Array:
        return from_highest(_chunk_maxima(logits).max(axis=-1))

    if allowed is None or allowed is logits:
        return among_all()
    highest = _chunk_maxima(allowed).max(axis=-1)
    totals = from_highest(highest)
    sure = jnp.isfinite(highest) & (totals < jnp.inf)
    return jax.lax.cond(
        sure.all(), lambda: totals, lambda: jnp.where(sure, totals, among_all())
    )


def _zeros_for(logits: Array) -> Array:
    """[B, K, V] → [B, K]: offsets of nothing."""
    return jnp.zeros(logits.shape[:2])


def _chunk_maxima(logits: Array) -> Array:
    """[B, K, V] → [B, K, chunks], the last chunk of up to CHUNK tokens. Comparing parts
    as wide as vectors, and only then halves of them, reads all logits in one pass."""
    whole = (logits.shape[-1] - 1) // CHUNK * CHUNK
    x = logits[..., :whole].reshape(*logits.shape[:-1], whole // CHUNK, CHUNK)
    lanes = [x[..., i : i + LANES] for i in range(0, CHUNK, LANES)]
    x = functools.reduce(jnp.maximum, lanes)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = jnp.maximum(x[..., :half], x[..., half:])
    last = logits[..., whole:].max(axis=-1, keepdims=True)
    return jnp.concatenate([x[..., 0], last], axis=-1)


def _best(values: Array, count: int) -> tuple[Array, Array]:
    """The highest of the values [B, X] and their places, [B, count]; the first among
    equals."""
    if count > 1:
        best, index = jax.lax.top_k(values, count)
        return best, index
    index = jnp.argmax(values, axis=-1, keepdims=True)
    return jnp.take_along_axis(values, index, axis=-1), index
