"""Beam search: the K best prefixes, and the n best targets found on the way."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from transformer_jax.search.result import LengthPenalty, SearchResult, penalty_table
from transformer_jax.search.rows import (
    feed_prefix,
    length_limits,
    reorder,
    without,
)
from transformer_jax.types import Array, Cache, Memory, StepFn


class Rules(NamedTuple):
    """What stays the same while a beam search goes on."""

    eos_id: int
    limits: Array
    """[B]: most target tokens, end included; 0: do not search."""
    penalties: Array
    """[T + 1]: what divides a log-probability, by length."""
    banned: tuple[int, ...]
    """Tokens that no target may have."""


class Beams(NamedTuple):
    """Where a beam search stands.

    A live beam is a prefix that has not ended; the others have log-probability -inf. A
    sentence without live beams is done, and nothing of it changes any more.
    """

    lengths: Array
    """[B]: target tokens of the live beams so far."""
    tokens: Array
    """[B, K, T]"""
    token_log_probabilities: Array
    """[B, K, T]"""
    log_probabilities: Array
    """[B, K]"""
    parents: Array
    """[B, K]: the beam whose cache each one goes on from."""
    finished: SearchResult
    """The n best that have ended."""
    cache: Cache


class Continuations(NamedTuple):
    """The C likeliest ways to go on from the live beams, best first; all [B, C]."""

    parents: Array
    tokens: Array
    token_log_probabilities: Array
    log_probabilities: Array


def beam_search(
    step_fn: StepFn,
    cache: Cache,
    memory: Memory,
    *,
    prefix: Array,
    beam_size: int,
    max_length: int,
    eos_id: int,
    length_penalty: LengthPenalty = "average",
    alpha: float = 1.0,
    n_best: int = 1,
    max_lengths: Array | None = None,
    banned: tuple[int, ...] = (),
) -> SearchResult:
    """At each place, the 2K likeliest continuations of the live beams are looked at.
    Of the first K, those that end are scored and set aside; the best K that do not end
    live on, so that K beams live as long as the search does (fairseq, Hugging Face).

    Score: log-probability / penalty(length), end token included in both (see
    `penalty_table`). The n best are kept. A sentence is done when no live beam could
    still beat the worst of them, however it went on: a bound, so stopping early never
    changes the result. With one beam this is greedy search; with K at least the number
    of all prefixes it is exhaustive. `banned` tokens are passed over; the others keep
    their log-probabilities.

    `prefix` [B, P] begins with the start token; more than that forces how each target
    begins. `max_lengths` [B] bounds each target, end included (default: `max_length`;
    0: do not search); at its last place every beam is forced to end, at the price of
    the end token's log-probability. Among equals the better beam comes first, then the
    smaller token id, and what was found earlier. The cache has R = B·K rows, beams of a
    sentence side by side. A sentence's result does not depend on the others.
    """
    rules = Rules(
        eos_id=eos_id,
        limits=length_limits(max_lengths, prefix, max_length=max_length),
        penalties=jnp.asarray(penalty_table(length_penalty, alpha, max_length)),
        banned=banned,
    )
    logits, known, cache = feed_prefix(step_fn, cache, memory, prefix, beams=beam_size)
    start = first_beams(prefix, known, cache, rules, beam_size=beam_size, n=n_best)

    def step(beams: Beams) -> Beams:
        # Beams of a sentence share its memory: only the cache follows them.
        cache = beams.cache if beam_size == 1 else reorder(beams.cache, beams.parents)
        last = jnp.maximum(beams.lengths - 1, 0)[:, None, None]
        tokens = jnp.take_along_axis(beams.tokens, last, axis=-1).reshape(-1, 1)
        # Done sentences are fed too; a full one has no place left, and needs none.
        positions = jnp.minimum(beams.lengths, max_length - 1)
        positions = jnp.repeat(positions, beam_size)
        output, cache = step_fn(tokens, positions, cache, memory)
        return advance(output.logits[:, -1], beams._replace(cache=cache), rules)

    found = jax.lax.while_loop(
        lambda beams: jnp.any(beams.log_probabilities > -jnp.inf),
        step,
        advance(logits, start, rules),
    )
    return found.finished


def first_beams(
    prefix: Array, known: Array, cache: Cache, rules: Rules, *, beam_size: int, n: int
) -> Beams:
    """One live beam a sentence, which holds the prefix [B, P] without its start token;
    `known` [B, P - 1] are the log-probabilities of its tokens. Nothing has ended yet.
    """
    sentences, forced = known.shape
    max_length = rules.penalties.shape[0] - 1

    def on_all_beams(x: Array) -> Array:
        """[B, P - 1] → [B, K, T]"""
        x = jnp.pad(x, ((0, 0), (0, max_length - forced)))
        return jnp.repeat(x[:, None], beam_size, axis=1)

    alive = (rules.limits > 0)[:, None] & (jnp.arange(beam_size) == 0)[None, :]
    none = jnp.full((sentences, n), -jnp.inf)
    empty = jnp.zeros((sentences, n, max_length))
    return Beams(
        lengths=jnp.full((sentences,), forced, jnp.int32),
        tokens=on_all_beams(prefix[:, 1:].astype(jnp.int32)),
        token_log_probabilities=on_all_beams(known),
        log_probabilities=jnp.where(alive, known.sum(axis=-1)[:, None], -jnp.inf),
        parents=jnp.zeros((sentences, beam_size), jnp.int32),
        finished=SearchResult(
            tokens=empty.astype(jnp.int32),
            lengths=jnp.zeros((sentences, n), jnp.int32),
            scores=none,
            log_probabilities=none,
            token_log_probabilities=empty,
        ),
        cache=cache,
    )


def advance(logits: Array, beams: Beams, rules: Rules) -> Beams:
    """Logits [R, V] of the next token → the beams one token longer."""
    beam_size = beams.log_probabilities.shape[1]
    best = best_continuations(logits, beams, rules)
    alive = jnp.any(beams.log_probabilities > -jnp.inf, axis=-1)  # [B]
    lengths = beams.lengths + alive

    first = jax.tree.map(lambda x: x[:, :beam_size], best)
    ended = first.tokens == rules.eos_id
    ended_scores = first.log_probabilities / rules.penalties[lengths][:, None]
    tokens, token_log_probabilities = longer(beams, first, alive)
    finished = keep_best(
        beams.finished,
        SearchResult(
            tokens=tokens,
            lengths=jnp.broadcast_to(lengths[:, None], ended.shape),
            scores=jnp.where(ended, ended_scores, -jnp.inf),
            log_probabilities=jnp.where(ended, first.log_probabilities, -jnp.inf),
            token_log_probabilities=token_log_probabilities,
        ),
    )
    going_on = jnp.where(best.tokens == rules.eos_id, -jnp.inf, best.log_probabilities)
    live, index = jax.lax.top_k(going_on, beam_size)
    kept = jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=-1), best)
    tokens, token_log_probabilities = longer(beams, kept, alive)
    bound = live.max(axis=-1) / rules.penalties[rules.limits]
    hopeless = bound <= finished.scores[:, -1]
    return Beams(
        lengths=lengths,
        tokens=tokens,
        token_log_probabilities=token_log_probabilities,
        log_probabilities=jnp.where(hopeless[:, None], -jnp.inf, live),
        parents=kept.parents,
        finished=finished,
        cache=beams.cache,
    )


def longer(beams: Beams, new: Continuations, alive: Array) -> tuple[Array, Array]:
    """Each parent's tokens and their log-probabilities with the new ones: [B, K, T];
    sentences that are not `alive` [B] stay as they are."""
    places = jnp.arange(beams.tokens.shape[-1])[None, :]
    here = ((places == beams.lengths[:, None]) & alive[:, None])[:, None]  # [B, 1, T]

    def extend(histories: Array, new_ones: Array) -> Array:
        histories = jnp.take_along_axis(histories, new.parents[..., None], axis=1)
        return jnp.where(here, new_ones[..., None], histories)

    return (
        extend(beams.tokens, new.tokens),
        extend(beams.token_log_probabilities, new.token_log_probabilities),
    )


def best_continuations(logits: Array, beams: Beams, rules: Rules) -> Continuations:
    """The likeliest of the K·V ways to go on; logits [R, V]. They are C = 2K, as at
    most K of them end; a single beam needs only C = 1.

    Only the C best tokens of a beam can be among them, so the vocabulary is neither
    sorted nor normalised as a whole.
    """
    sentences, beam_size = beams.log_probabilities.shape
    chex.assert_shape(logits, (sentences * beam_size, None))
    wanted = 2 * beam_size if beam_size > 1 else 1
    width = min(wanted, logits.shape[-1])

    def by_sentence(x: Array) -> Array:
        return x.reshape(sentences, beam_size, -1)

    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    top, tokens = jax.lax.top_k(without(logits, rules.banned), width)
    log_probabilities, tokens = by_sentence(top - total), by_sentence(tokens)
    end = by_sentence(logits[:, rules.eos_id, None] - total)  # [B, K, 1]
    last_place = (beams.lengths + 1 >= rules.limits)[:, None, None]
    first = (jnp.arange(width) == 0)[None, None, :]
    log_probabilities = jnp.where(
        last_place, jnp.where(first, end, -jnp.inf), log_probabilities
    )
    tokens = jnp.where(last_place, rules.eos_id, tokens)

    sums = beams.log_probabilities[..., None] + log_probabilities  # [B, K, width]
    count = min(wanted, beam_size * width)
    best, index = jax.lax.top_k(sums.reshape(sentences, -1), count)

    def chosen(x: Array) -> Array:
        return jnp.take_along_axis(x.reshape(sentences, -1), index, axis=-1)

    return Continuations(
        parents=index // width,
        tokens=chosen(tokens),
        token_log_probabilities=chosen(log_probabilities),
        log_probabilities=best,
    )


def keep_best(old: SearchResult, new: SearchResult) -> SearchResult:
    """The best by score of old [B, n] and new [B, K]: [B, n], the old before equals.

    What has score -inf is no hypothesis, and is wiped.
    """
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), old, new)
    scores, index = jax.lax.top_k(both.scores, old.scores.shape[1])

    def chosen(x: Array) -> Array:
        index_ = index if x.ndim == 2 else index[..., None]
        x = jnp.take_along_axis(x, index_, axis=1)
        found = scores > -jnp.inf
        return jnp.where(found if x.ndim == 2 else found[..., None], x, 0)

    kept = jax.tree.map(chosen, both)
    log_probabilities = jnp.where(scores > -jnp.inf, kept.log_probabilities, -jnp.inf)
    return kept._replace(scores=scores, log_probabilities=log_probabilities)
