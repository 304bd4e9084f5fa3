"""Beam search: the K best prefixes, and the n best targets found on the way."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.search.beams import (
    FREE,
    Beams,
    alive,
    compelled_tokens,
    first_beams,
    longer,
    make_job,
    search_to_end,
)
from transformer_jax.search.choosing import best_tokens, log_totals
from transformer_jax.search.constraints import Constraint
from transformer_jax.search.coverage import coverage_score, first_coverage
from transformer_jax.search.diversity import diverse_tokens
from transformer_jax.search.required import (
    Ways,
    fewest_lacking,
    matched_after,
    shared_out,
    with_next_tokens,
    without_early_end,
)
from transformer_jax.search.result import (
    LengthPenalty,
    SearchResult,
    StopRule,
    penalty_table,
)
from transformer_jax.types import Array, Cache, Memory, StepFn


class Continuations(NamedTuple):
    """The C best ways to go on from the live beams, all [B, C]: best first, or beam
    after beam where a token must come."""

    parents: Array
    tokens: Array
    token_log_probabilities: Array
    log_probabilities: Array
    preferences: Array
    """What they are chosen by: log-probabilities, less what diversity charges; or where
    phrases are asked, their turn."""


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
    stop: StopRule = "beams",
    max_lengths: Array | None = None,
    constraints: Sequence[Constraint] = (),
    coverage_penalty: float = 0.0,
    source_mask: Array | None = None,
    diversity_rate: float = 0.0,
    phrases: Array | None = None,
) -> SearchResult:
    """At each place, the 2K likeliest continuations of the live beams are looked at.
    Of the first K, those that end are scored and set aside; the best K that do not end
    live on, so that K beams live as long as the search does (fairseq, Hugging Face).

    Score: log-probability / penalty(length), end token included in both (see
    `penalty_table`); plus, with a `coverage_penalty`, `coverage_score`: the step must
    give attention, and `source_mask` [B, S] says where the source is no padding. The n
    best are kept. A sentence is done, by `stop`,
    - "beams": when K targets have ended (fairseq, CTranslate2);
    - "first": when one has ended (n at least, if n are wanted);
    - "bound": when no live beam could still beat the worst of the n best, however it
      went on. With K at least the number of all prefixes, this is exhaustive search.
    That bound ends every search, as it never changes a result. With one beam this is
    greedy search. `constraints` forbid tokens, and change no other's log-probability.
    `diversity_rate` charges later siblings in choosing beams (see `diverse_tokens`).
    `phrases` [B, C, W] are what each target must hold, anywhere; they may overlap. What
    lacks one ends at the last place alone, and is found only where nothing better is.

    `prefix` [B, P] begins with the start token; more than that forces how each target
    begins. `max_lengths` [B] bounds each target, end included (default: `max_length`;
    0: do not search); at its last place every beam is forced to end, at the price of
    the end token's log-probability. Among equals the better beam comes first, then the
    smaller token id, and what was found earlier. The cache has R = B·K rows, beams of a
    sentence side by side. A sentence's result does not depend on the others.
    """
    job = make_job(prefix, max_lengths, max_length=max_length, phrases=phrases)
    sizes = {"beam_size": beam_size, "n_best": n_best, "max_length": max_length}
    start = first_beams(job, cache, **sizes)
    coverage = first_coverage(coverage_penalty, source_mask, beam_size)
    advance = functools.partial(
        advance_beams,
        eos_id=eos_id,
        penalties=penalty_table(length_penalty, alpha, max_length),
        constraints=constraints,
        stop=stop,
        coverage_penalty=coverage_penalty,
        diversity_rate=diversity_rate,
    )
    start = start._replace(coverage=coverage)
    return search_to_end(step_fn, memory, start, advance)


def advance_beams(
    logits: Array,
    beams: Beams,
    *,
    eos_id: int,
    penalties: np.ndarray,
    constraints: Sequence[Constraint],
    stop: StopRule,
    coverage_penalty: float = 0.0,
    diversity_rate: float = 0.0,
    beam_size: int | None = None,
) -> Beams:
    """Logits [B, K, V] of the next token → the state one token later, in which each
    sentence has `beam_size` beams: by default as many as before, never fewer, and no
    more than it has ways to go on."""
    beam_size, divisors = beam_size or logits.shape[1], jnp.asarray(penalties)
    best = best_continuations(
        logits,
        beams,
        beam_size,
        eos_id=eos_id,
        constraints=constraints,
        diversity_rate=diversity_rate,
    )
    lengths = beams.lengths + alive(beams)
    beams = with_ended(
        jax.tree.map(lambda x: x[:, :beam_size], best),
        beams,
        eos_id=eos_id,
        divisors=divisors,
        coverage_penalty=coverage_penalty,
    )
    going_on = jnp.where(best.tokens == eos_id, -jnp.inf, best.preferences)
    preferred, index = jax.lax.top_k(going_on, beam_size)
    kept = jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=-1), best)
    live = jnp.where(preferred > -jnp.inf, kept.log_probabilities, -jnp.inf)
    histories, of_tokens = longer(
        beams, kept.parents, kept.tokens, kept.token_log_probabilities
    )
    coverage, progress = beams.coverage, beams.progress
    if coverage is not None:
        coverage = jnp.take_along_axis(coverage, kept.parents[..., None], axis=1)
    if progress is not None:
        matched = matched_after(progress, kept.parents, kept.tokens)
        progress = progress._replace(matched=matched)
    # A coverage of the whole source costs nothing, so the bound holds with one too.
    bound = live.max(axis=-1) / divisors[beams.job.max_lengths]
    done = bound <= beams.finished.scores[:, -1]
    wanted = {"beams": beam_size, "first": beams.finished.scores.shape[1]}
    if stop in wanted:
        done = done | (beams.num_finished >= wanted[stop])
    return beams._replace(
        lengths=lengths,
        tokens=histories,
        token_log_probabilities=of_tokens,
        log_probabilities=jnp.where(done[:, None], -jnp.inf, live),
        parents=kept.parents,
        coverage=coverage,
        progress=progress,
    )


def best_continuations(
    logits: Array,
    beams: Beams,
    beam_size: int,
    *,
    eos_id: int,
    constraints: Sequence[Constraint],
    diversity_rate: float,
) -> Continuations:
    """The best of the K·V ways to go on; logits [B, K, V]. They are twice as many as
    there shall be beams, at least K, as one of each beam at most ends; where there is
    one and shall be one, the best is enough."""
    rows, vocab_size = logits.shape[1:]
    count = 2 * beam_size if beam_size > 1 else 1
    allowed = logits
    for constrain in constraints:
        allowed = constrain(allowed, beams)
    if beams.progress is not None:
        allowed = without_early_end(allowed, beams.progress, eos_id)
    total = log_totals(logits, allowed)
    choose = best_tokens
    if diversity_rate:
        choose = functools.partial(diverse_tokens, rate=diversity_rate)
    offsets = beams.log_probabilities - total
    ways = Ways(*choose(allowed, offsets, min(count, rows * vocab_size)))
    if beams.progress is not None:
        ways = with_next_tokens(ways, allowed, offsets, beams.progress)
    charged, parents, tokens = ways

    # Where a token must come, each beam has that one way to go on.
    wanted = compelled_tokens(beams, eos_id)[:, None]  # [B, 1]
    compelled, index = wanted != FREE, jnp.arange(charged.shape[1])[None, :]
    parents = jnp.where(compelled, jnp.minimum(index, rows - 1), parents)
    tokens = jnp.where(compelled, wanted, tokens)
    possible = jnp.where(compelled, index < rows, charged > -jnp.inf)

    sentence = jnp.arange(logits.shape[0])[:, None]
    chosen = logits[sentence, parents, tokens] - total[sentence, parents]
    sums = beams.log_probabilities[sentence, parents] + chosen
    sums = jnp.where(possible, sums, -jnp.inf)
    preferences = jnp.where(compelled, sums, charged)
    if beams.progress is not None:
        ways = Ways(jnp.where(possible, preferences, -jnp.inf), parents, tokens)
        room = beams.job.max_lengths - beams.lengths - 2  # this token, and the end
        preferences = shared_out(ways, beams.progress, room)
    found = Continuations(parents, tokens, chosen, sums, preferences)
    if beams.progress is None:
        return found
    _, order = jax.lax.top_k(preferences, sums.shape[1])
    return jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=-1), found)


def with_ended(
    first: Continuations,
    beams: Beams,
    *,
    eos_id: int,
    divisors: Array,
    coverage_penalty: float,
) -> Beams:
    """The state in which those of the first continuations [B, K] that end are set
    aside."""
    ended = ended_targets(
        first,
        beams,
        eos_id=eos_id,
        divisors=divisors,
        coverage_penalty=coverage_penalty,
    )
    if beams.progress is not None:
        ended = fewest_lacking(beams.finished, ended, first.parents, beams.progress)
    return beams._replace(
        finished=keep_best(beams.finished, ended),
        num_finished=beams.num_finished + (ended.scores > -jnp.inf).sum(axis=-1),
    )


def ended_targets(
    found: Continuations,
    beams: Beams,
    *,
    eos_id: int,
    divisors: Array,
    coverage_penalty: float,
) -> SearchResult:
    """The continuations [B, K] as whole targets; what does not end has score -inf."""
    lengths = beams.lengths + alive(beams)
    scores = found.log_probabilities / divisors[lengths][:, None]
    if beams.coverage is not None:
        covered = coverage_score(beams.coverage, coverage_penalty)
        scores += jnp.take_along_axis(covered, found.parents, axis=1)
    histories, of_tokens = longer(
        beams, found.parents, found.tokens, found.token_log_probabilities
    )
    ended = found.tokens == eos_id
    return SearchResult(
        tokens=histories[..., 1:],
        lengths=jnp.broadcast_to(lengths[:, None], ended.shape),
        scores=jnp.where(ended, scores, -jnp.inf),
        log_probabilities=jnp.where(ended, found.log_probabilities, -jnp.inf),
        token_log_probabilities=of_tokens,
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
