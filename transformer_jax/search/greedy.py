"""Greedy search: the likeliest token at each place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.search.result import LengthPenalty, SearchResult, penalty_table
from transformer_jax.search.rows import feed_prefix, length_limits, without
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
    banned: tuple[int, ...] = (),
) -> SearchResult:
    """Takes the likeliest token (the smallest id among equals) until the end token.

    `prefix` [B, P] begins with the start token; more than that forces how each target
    begins. `max_lengths` [B] bounds each target, end included (default: `max_length`;
    0: do not search); at its last place every target is forced to end, at the price of
    the end token's log-probability. The cache has R = B rows. The penalty only makes
    the score. `banned` tokens are passed over; the others keep their log-probabilities.
    A sentence's result does not depend on the others.
    """
    limits = length_limits(max_lengths, prefix, max_length=max_length)

    def step(state: GreedyState) -> GreedyState:
        last = jnp.maximum(state.lengths - 1, 0)[:, None]
        tokens = jnp.take_along_axis(state.tokens, last, axis=-1)
        # Ended rows are fed too; a full one has no place left, and needs none.
        positions = jnp.minimum(state.lengths, max_length - 1)
        output, cache = step_fn(tokens, positions, state.cache, memory)
        state = state._replace(cache=cache)
        return advance(output.logits[:, -1], state, limits, eos_id, banned)

    logits, known, cache = feed_prefix(step_fn, cache, memory, prefix, beams=1)
    start = first_state(prefix, known, cache, limits, max_length=max_length)
    found = jax.lax.while_loop(
        lambda state: jnp.any(state.alive),
        step,
        advance(logits, start, limits, eos_id, banned),
    )
    penalties = jnp.asarray(penalty_table(length_penalty, alpha, max_length))
    return SearchResult(
        tokens=found.tokens[:, None],
        lengths=found.lengths[:, None],
        scores=(found.log_probabilities / penalties[found.lengths])[:, None],
        log_probabilities=found.log_probabilities[:, None],
        token_log_probabilities=found.token_log_probabilities[:, None],
    )


def first_state(
    prefix: Array, known: Array, cache: Cache, limits: Array, *, max_length: int
) -> GreedyState:
    """Targets that hold the prefix [B, P] without its start token; `known` [B, P - 1]
    are the log-probabilities of its tokens."""
    forced = known.shape[1]
    wanted = limits > 0
    fill = ((0, 0), (0, max_length - forced))
    return GreedyState(
        lengths=jnp.where(wanted, forced, 0).astype(jnp.int32),
        alive=wanted,
        tokens=jnp.pad(prefix[:, 1:].astype(jnp.int32), fill) * wanted[:, None],
        token_log_probabilities=jnp.pad(known, fill) * wanted[:, None],
        log_probabilities=jnp.where(wanted, known.sum(axis=-1), -jnp.inf),
        cache=cache,
    )


def advance(
    logits: Array,
    state: GreedyState,
    limits: Array,
    eos_id: int,
    banned: tuple[int, ...],
) -> GreedyState:
    """Logits [B, V] of the next token → the state one token later."""
    lengths, alive = state.lengths, state.alive
    token = jnp.argmax(without(logits, banned), axis=-1).astype(jnp.int32)
    token = jnp.where(lengths + 1 >= limits, eos_id, token)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    chosen = chosen - jax.nn.logsumexp(logits, axis=-1)
    places = jnp.arange(state.tokens.shape[1])[None, :]
    here = (places == lengths[:, None]) & alive[:, None]

    def write(histories: Array, new: Array) -> Array:
        return jnp.where(here, new[:, None], histories)

    return GreedyState(
        lengths=lengths + alive,
        alive=alive & (token != eos_id),
        tokens=write(state.tokens, token),
        token_log_probabilities=write(state.token_log_probabilities, chosen),
        log_probabilities=state.log_probabilities + jnp.where(alive, chosen, 0.0),
        cache=state.cache,
    )
