"""Beams that go different ways: a charge on the later siblings."""

import jax
import jax.numpy as jnp

from transformer_jax.search.choosing import best_tokens
from transformer_jax.types import Array


def diverse_tokens(
    logits: Array, offsets: Array, count: int, *, rate: float
) -> tuple[Array, Array, Array]:
    """As `best_tokens`, but a beam's best way to go on is charged nothing, its second
    best `rate` γ, its third best 2γ, and so on (Li et al., 2016, equation 6).

    → the C = `count` best charged sums, their beams and tokens, each [B, C], best
    first. A beam offers its C best, which are all that can be among the C best of all,
    as the charge keeps their order.

    >>> logits = jnp.array([[[5.0, 4.0, 0.0], [3.0, 2.0, 0.0]]])
    >>> [x.tolist() for x in diverse_tokens(logits, jnp.zeros((1, 2)), 2, rate=2.0)]
    [[[5.0, 3.0]], [[0, 1]], [[0, 0]]]
    """
    sentences, vocab_size = logits.shape[0], logits.shape[-1]
    offered = min(count, vocab_size)
    rows = logits.reshape(-1, 1, vocab_size), offsets.reshape(-1, 1)
    sums, _, tokens = best_tokens(*rows, offered)  # [B·K, C]
    charged = sums - rate * jnp.arange(offered, dtype=sums.dtype)[None, :]
    best, index = jax.lax.top_k(charged.reshape(sentences, -1), count)
    tokens = jnp.take_along_axis(tokens.reshape(sentences, -1), index, axis=-1)
    return best, index // offered, tokens
