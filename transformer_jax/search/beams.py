"""Where a search stands, and the loop that every method of search shares.

B sentences have K beams each; the R = B·K rows of a step are sentence after sentence,
beam after beam.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from transformer_jax.search.required import FREE, Progress, first_progress
from transformer_jax.search.result import SearchResult
from transformer_jax.types import Array, Cache, Logits, Memory, RoughLogits, StepFn


class Job(NamedTuple):
    """What is asked for each sentence."""

    prefix: Array
    """[B, P] int32: the start token, then tokens that the target begins with; `FREE`
    after them, so that prefixes may differ in length."""
    max_lengths: Array
    """[B] int32: most target tokens, end included; 0: do not search."""
    draws: Array | None = None
    """[B, 2] uint32: the seed and the sentence's number, by which its samples are
    drawn; None where nothing is."""
    phrases: Array | None = None
    """[B, C, W] int32: what the target must hold, C phrases of up to W tokens, none of
    them the end token; `FREE` behind them. None: nothing is asked."""


class Beams(NamedTuple):
    """Where a search stands; every leaf but the cache's leads with B.

    A live beam is a prefix that has not ended; the others have log-probability -inf. A
    sentence without live beams is done, and nothing of it changes any more.
    """

    job: Job
    lengths: Array
    """[B]: target tokens of the live beams so far."""
    tokens: Array
    """[B, K, 1 + T], the start token first."""
    token_log_probabilities: Array
    """[B, K, T]"""
    log_probabilities: Array
    """[B, K]"""
    parents: Array
    """[B, K]: the beam whose cache each one goes on from."""
    finished: SearchResult
    """The n best that have ended."""
    num_finished: Array
    """[B]: how many have ended."""
    cache: Cache
    coverage: Array | None = None
    """[B, K, S]: the attention that each source position has had while its sentence was
    searched; None: not kept."""
    progress: Progress | None = None
    """How much of the phrases each beam holds; None where none are asked."""


Advance = Callable[[Logits, Beams], Beams]
"""Logits [B, K, V] of the next token → the beams one token later: a search method."""


def make_job(
    prefix: Array,
    max_lengths: Array | None = None,
    *,
    max_length: int,
    draws: Array | None = None,
    phrases: Array | None = None,
) -> Job:
    """Limits that are at most `max_length`, and never fewer than a forced prefix and
    the end need; 0 stays 0, and asks for nothing."""
    sentences, width = prefix.shape
    if not 1 <= width <= max_length:
        raise ValueError(
            f"The prefix has {width} tokens, start token included, and max_length is "
            f"{max_length}: a start token is needed, and room for the end token."
        )
    if max_lengths is None:
        max_lengths = jnp.full((sentences,), max_length, jnp.int32)
    chex.assert_shape(max_lengths, (sentences,))
    needed = (prefix != FREE).sum(axis=1)
    limits = jnp.clip(max_lengths, needed, max_length).astype(jnp.int32)
    limits = jnp.where(max_lengths > 0, limits, 0)
    if phrases is not None:
        chex.assert_shape(phrases, (sentences, None, None))
        phrases = phrases.astype(jnp.int32)
    return Job(prefix.astype(jnp.int32), limits, draws, phrases)


def first_beams(
    job: Job, cache: Cache, *, beam_size: int, n_best: int, max_length: int
) -> Beams:
    """One live beam a sentence, which holds the start token; nothing has ended yet."""
    sentences = job.prefix.shape[0]
    first = (job.max_lengths > 0)[:, None] & (jnp.arange(beam_size) == 0)[None, :]
    tokens = jnp.zeros((sentences, beam_size, 1 + max_length), jnp.int32)
    none = jnp.full((sentences, n_best), -jnp.inf, jnp.float32)
    empty = jnp.zeros((sentences, n_best, max_length), jnp.float32)
    return Beams(
        job=job,
        lengths=jnp.zeros((sentences,), jnp.int32),
        tokens=tokens.at[:, :, 0].set(job.prefix[:, :1]),
        token_log_probabilities=jnp.zeros((sentences, beam_size, max_length)),
        log_probabilities=jnp.where(first, jnp.float32(0), -jnp.inf),
        parents=jnp.zeros((sentences, beam_size), jnp.int32),
        finished=SearchResult(
            tokens=empty.astype(jnp.int32),
            lengths=jnp.zeros((sentences, n_best), jnp.int32),
            scores=none,
            log_probabilities=none,
            token_log_probabilities=empty,
        ),
        num_finished=jnp.zeros((sentences,), jnp.int32),
        cache=cache,
        progress=first_progress(job.phrases, beam_size),
    )


def alive(beams: Beams) -> Array:
    """[B]: sentences that are not done."""
    return jnp.any(beams.log_probabilities > -jnp.inf, axis=-1)


def add_token(step_fn: StepFn, memory: Memory, beams: Beams, advance: Advance) -> Beams:
    """Adds a token to every live beam, where the cache has been reordered by their
    parents. `advance` may leave each sentence more beams than it had."""
    sentences, beam_size = beams.log_probabilities.shape
    last = beams.lengths[:, None, None]
    tokens = jnp.take_along_axis(beams.tokens, last, axis=-1).reshape(-1, 1)
    # Done sentences are fed too: at place 0, where there is always room.
    positions = jnp.where(alive(beams), beams.lengths, 0)
    positions = jnp.repeat(positions, beam_size)
    output, cache = step_fn(tokens, positions, beams.cache, memory)
    logits = output.logits
    if not isinstance(logits, RoughLogits):
        chex.assert_shape(logits, (sentences * beam_size, 1, None))
        logits = logits.reshape(sentences, beam_size, -1)
    coverage = beams.coverage
    if coverage is not None:
        if output.attention is None:
            raise ValueError("Coverage needs a step function that gives attention.")
        coverage = coverage + output.attention.reshape(coverage.shape)
    return advance(logits, beams._replace(cache=cache, coverage=coverage))


def search_while(
    going_on: Callable[[Beams], Array],
    step_fn: StepFn,
    memory: Memory,
    beams: Beams,
    advance: Advance,
) -> Beams:
    """Adds a token to every live beam while `going_on(beams)` is true."""
    beam_size = beams.log_probabilities.shape[1]

    def step(beams: Beams) -> Beams:
        if beam_size > 1:
            beams = beams._replace(cache=reorder(beams.cache, beams.parents))
        return add_token(step_fn, memory, beams, advance)

    return jax.lax.while_loop(going_on, step, beams)


def search_to_end(
    step_fn: StepFn, memory: Memory, beams: Beams, advance: Advance
) -> SearchResult:
    """Adds tokens until all sentences are done → what was found."""

    def going_on(beams: Beams) -> Array:
        return jnp.any(alive(beams))

    return search_while(going_on, step_fn, memory, beams, advance).finished


def reorder(cache: Cache, parents: Array) -> Cache:
    """Each beam goes on from the cache of its parent; parents [B, K] are beams.

    A cache with a method `reorder` knows better how; of others, rows are copied.

    >>> reorder({"key": jnp.array([10, 11, 20, 21])}, jnp.array([[1, 1], [0, 1]]))
    {'key': Array([11, 11, 20, 21], dtype=int32)}
    """
    if hasattr(cache, "reorder"):
        return cache.reorder(parents)
    sentences, beams = parents.shape
    first = beams * jnp.arange(sentences, dtype=parents.dtype)
    rows = (first[:, None] + parents).reshape(-1)
    return jax.tree.map(lambda x: x[rows], cache)


def compelled_tokens(beams: Beams, eos_id: int) -> Array:
    """[B]: the token that must come next, or `FREE`: that of a prefix, and the end at
    the last place."""
    job, place = beams.job, beams.lengths + 1
    wanted = jnp.full(place.shape, FREE, jnp.int32)
    if job.prefix.shape[1] > 1:
        index = jnp.minimum(place, job.prefix.shape[1] - 1)[:, None]
        inside = place < job.prefix.shape[1]
        forced = jnp.take_along_axis(job.prefix, index, axis=1)[:, 0]
        wanted = jnp.where(inside, forced, wanted)
    return jnp.where(place >= job.max_lengths, eos_id, wanted)


def longer(
    beams: Beams, parents: Array, tokens: Array, token_log_probabilities: Array
) -> tuple[Array, Array]:
    """The histories of `parents` [B, C] with a new token each: [B, C, 1 + T] and
    [B, C, T]; sentences that are done stay as they are."""
    going_on, place = alive(beams)[:, None, None], beams.lengths[:, None, None]

    def extend(histories: Array, new: Array, place: Array) -> Array:
        places = jnp.arange(histories.shape[-1])[None, None, :]
        if histories.shape[1] > 1:
            histories = jnp.take_along_axis(histories, parents[..., None], axis=1)
        return jnp.where((places == place) & going_on, new[..., None], histories)

    return (
        extend(beams.tokens, tokens, place + 1),
        extend(beams.token_log_probabilities, token_log_probabilities, place),
    )


def replace_sentences(old: Any, new: Any, slots: Array) -> Any:
    """Puts the P new sentences at the `slots` [P] of the old; B in a slot: nowhere.

    Both are pytrees whose every leaf leads with the sentences.

    >>> replace_sentences(jnp.array([1, 2, 3]), jnp.array([7, 8]), jnp.array([2, 3]))
    Array([1, 2, 7], dtype=int32)
    """
    return jax.tree.map(lambda x, y: x.at[slots].set(y, mode="drop"), old, new)
