"""Greedy search: the likeliest token at each place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.search.result import LengthPenalty, SearchResult, penalty_table
from transformer_jax.search.rows import feed_prefix, length_limits
from transformer_jax.types import Array, Cache, Memory, StepFn


class GreedyState(NamedTuple):
    """Where a greedy search stands."""

    lengths: Array
    """[B]: target tokens so far."""
    alive: Array
    """[B]: not ended yet."""
    tokens: Array
    """[B, T]"""
    token_log_probabilities: Array
    """[B, T]"""
    log_probabilities: Array
    """[B]"""
    cache: Cache


def greedy_search(
    step_fn: StepFn,
    cache: Cache,
    memory: Memory,
    *,
    prefix: Array,
    max_length: int,
    eos_id: int,
    max_lengths: Array | None = None,
    length_penalty: LengthPenalty = "average",
    alpha: float = 1.0,
) -> SearchResult:
    """Takes the likeliest token (the smallest id among equals) until the end token.

    `prefix` [B, P] begins with the start token; more than that forces how each target
    begins. `max_lengths` [B] bounds each target, end included (default: `max_length`;
    0: do not search); at its last place every target is forced to end, at the price of
    the end token's log-probability. The cache has R = B rows. The penalty only makes
    the score. A sentence's result does not depend on the others.
    """
    limits = length_limits(max_lengths, prefix, max_length=max_length)
    places = jnp.arange(max_length)[None, :]

    def take(logits: Array, state: GreedyState) -> GreedyState:
        """Logits [B, V] → the state one token later."""
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        token = jnp.where(state.lengths + 1 >= limits, eos_id, token)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        chosen = chosen - jax.nn.logsumexp(logits, axis=-1)
        here = (places == state.lengths[:, None]) & state.alive[:, None]
        return GreedyState(
            lengths=state.lengths + state.alive,
            alive=state.alive & (token != eos_id),
            tokens=jnp.where(here, token[:, None], state.tokens),
            token_log_probabilities=jnp.where(
                here, chosen[:, None], state.token_log_probabilities
            ),
            log_probabilities=state.log_probabilities
            + jnp.where(state.alive, chosen, 0.0),
            cache=state.cache,
        )

    def step(state: GreedyState) -> GreedyState:
        last = jnp.maximum(state.lengths - 1, 0)[:, None]
        tokens = jnp.take_along_axis(state.tokens, last, axis=-1)
        # Ended rows are fed too; a full one has no place left, and needs none.
        positions = jnp.minimum(state.lengths, max_length - 1)
        output, cache = step_fn(tokens, positions, state.cache, memory)
        return take(output.logits[:, -1], state._replace(cache=cache))

    logits, known, cache = feed_prefix(step_fn, cache, memory, prefix, beams=1)
    forced = prefix.shape[1] - 1
    wanted = limits > 0
    fill = ((0, 0), (0, max_length - forced))
    start = GreedyState(
        lengths=jnp.where(wanted, forced, 0).astype(jnp.int32),
        alive=wanted,
        tokens=jnp.pad(prefix[:, 1:].astype(jnp.int32), fill) * wanted[:, None],
        token_log_probabilities=jnp.pad(known, fill) * wanted[:, None],
        log_probabilities=jnp.where(wanted, known.sum(axis=-1), -jnp.inf),
        cache=cache,
    )
    found = jax.lax.while_loop(
        lambda state: jnp.any(state.alive), step, take(logits, start)
    )
    penalties = jnp.asarray(penalty_table(length_penalty, alpha, max_length))
    return SearchResult(
        tokens=found.tokens[:, None],
        lengths=found.lengths[:, None],
        scores=(found.log_probabilities / penalties[found.lengths])[:, None],
        log_probabilities=found.log_probabilities[:, None],
        token_log_probabilities=found.token_log_probabilities[:, None],
    )
