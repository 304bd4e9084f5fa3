"""Greedy search that verifies several guessed tokens in one pass of the model.

A pass reads a block of L tokens: the last one, and L - 1 guesses of those that follow.
Its logits say what greedy search chooses after each of them. Guesses are kept as far as
they are just that, and the choice after the last kept one comes for free (blockwise
verification: Stern et al., 2018, section 3). Guesses come from

- the pass before, whose other choices they are: Jacobi iteration (Song et al., 2021;
  Santilli et al., 2023, section 3);
- or a draft, a smaller model that searches greedily (Leviathan et al., 2023, section
  2, where nothing is drawn at random).

Either way the tokens are those of `greedy_search`, apart from near ties: logits of a
block and of a single token may be rounded differently.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from transformer_jax.search.beams import (
    FREE,
    Advance,
    Beams,
    alive,
    compelled_tokens,
    first_beams,
    make_job,
)
from transformer_jax.search.choosing import likeliest
from transformer_jax.search.constraints import Constraint
from transformer_jax.search.greedy import advance_greedily
from transformer_jax.search.result import (
    LengthPenalty,
    SearchResult,
    penalty_table,
)
from transformer_jax.types import Array, Cache, Memory, StepFn


class Effort(NamedTuple):
    """What a search took, and how sure it was."""

    passes: Array
    """[B] int32: passes of the model until the sentence was done."""
    smallest_gap: Array
    """[B]: least distance of a chosen token's logit to the next best, over the places
    where the search chose: where it is tiny, rounding may choose otherwise."""


class Ahead(NamedTuple):
    """What a search in blocks keeps beside its beams."""

    guesses: Array
    """[B, L - 1] int32: of the tokens that come next."""
    effort: Effort


class ParallelResult(NamedTuple):
    """What `parallel_greedy_search` finds, and what that took."""

    found: SearchResult
    effort: Effort


class Drafted(NamedTuple):
    """Of a model and its draft, each its own: parameters, memory or cache."""

    target: Any
    draft: Any

    @property
    def ancestors(self) -> Array:
        """Of the model's cache; the draft's has as much room."""
        return self.target.ancestors


def parallel_greedy_search(
    step_fn: StepFn,
    cache: Cache,
    memory: Memory,
    *,
    block: int,
    prefix: Array,
    max_length: int,
    eos_id: int,
    draft: StepFn | None = None,
    max_lengths: Array | None = None,
    length_penalty: LengthPenalty = "average",
    alpha: float = 1.0,
    constraints: Sequence[Constraint] = (),
) -> ParallelResult:
    """What `greedy_search` finds, by passes over blocks of L = `block` tokens.

    A pass adds at least one token to every target, and at most L. With the step of a
    `draft`, cache and memory are `Drafted`: the model's and the draft's. A cache that
    drops what is written beyond its T = `max_length` places is long enough. For the
    rest see `greedy_search`.
    """
    if block < 2:
        raise ValueError(
            f"block is {block}: it holds the last token and at least one guess. Raise "
            "it to 2, or call greedy_search, which does not guess."
        )
    job = make_job(prefix, max_lengths, max_length=max_length)
    beams = first_beams(job, cache, beam_size=1, n_best=1, max_length=max_length)
    penalties = penalty_table(length_penalty, alpha, max_length)

    def advance(logits: Array, beams: Beams) -> Beams:
        return advance_greedily(
            logits, beams, eos_id=eos_id, penalties=penalties, constraints=constraints
        )

    beams, ahead = search_blocks_while(
        lambda beams: jnp.any(alive(beams)),
        step_fn,
        memory,
        beams,
        first_guesses(beams, block, eos_id),
        advance,
        eos_id=eos_id,
        draft=draft,
        constraints=constraints,
    )
    return ParallelResult(beams.finished, ahead.effort)


def first_guesses(beams: Beams, block: int, eos_id: int) -> Ahead:
    """Of sentences that have not begun: nothing is known but what must come."""
    sentences = beams.lengths.shape[0]
    unknown = jnp.zeros((sentences, block - 1), jnp.int32)
    return Ahead(
        guesses=unless_compelled(unknown, beams, eos_id),
        effort=Effort(
            passes=jnp.zeros((sentences,), jnp.int32),
            smallest_gap=jnp.full((sentences,), jnp.inf),
        ),
    )


def search_blocks_while(
    going_on: Callable[[Beams], Array],
    step_fn: StepFn,
    memory: Memory,
    beams: Beams,
    ahead: Ahead,
    advance: Advance,
    *,
    eos_id: int,
    draft: StepFn | None = None,
    constraints: Sequence[Constraint] = (),
) -> tuple[Beams, Ahead]:
    """`search_while` in blocks, for sentences of one beam; `advance` is as there, and
    `constraints` are those that it heeds."""

    def read_block(beams: Beams, guesses: Array) -> tuple[Array, Cache, Array]:
        """Logits [B, L, V] of the block, the caches after it, and its guesses."""
        own, of_model, other = beams.cache, memory, None
        if draft is not None:
            own, of_model = beams.cache.target, memory.target
            guesses, other = draft_guesses(
                draft, beams, memory.draft, guesses.shape[1], eos_id
            )
        last = jnp.take_along_axis(beams.tokens[:, 0], beams.lengths[:, None], axis=1)
        tokens = jnp.concatenate([last, guesses], axis=1)
        # Done sentences are read too: at place 0, where there is always room.
        positions = jnp.where(alive(beams), beams.lengths, 0)
        output, own = step_fn(tokens, positions, own, of_model)
        chex.assert_shape(output.logits, (*tokens.shape, None))
        cache = own if draft is None else Drafted(own, other)
        return output.logits, cache, guesses

    def step(state: tuple[Beams, Ahead]) -> tuple[Beams, Ahead]:
        before, (guesses, effort) = state
        logits, cache, guesses = read_block(before, guesses)
        beams, gaps = verify(
            logits,
            guesses,
            before._replace(cache=None),
            advance,
            eos_id=eos_id,
            constraints=constraints,
        )
        if draft is None:
            guesses = next_guesses(logits, before, beams, eos_id)
        effort = Effort(
            passes=effort.passes + alive(before),
            smallest_gap=jnp.minimum(effort.smallest_gap, gaps),
        )
        return beams._replace(cache=cache), Ahead(guesses, effort)

    return jax.lax.while_loop(lambda state: going_on(state[0]), step, (beams, ahead))


def verify(
    logits: Array,
    guesses: Array,
    beams: Beams,
    advance: Advance,
    *,
    eos_id: int,
    constraints: Sequence[Constraint],
) -> tuple[Beams, Array]:
    """Logits [B, L, V] of a block → the beams with all tokens that it settles, and the
    smallest gap [B] among these (see `Effort`).

    Place by place `advance` chooses; a sentence goes on to the next place as long as
    its guess [B, L - 1] is what was chosen.
    """
    sentences, block, _ = logits.shape

    def going_on(state: tuple[Array, Array, Beams, Array]) -> Array:
        place, agreeing, _, _ = state
        return (place < block) & jnp.any(agreeing)

    def step(state: tuple[Array, Array, Beams, Array]):
        place, agreeing, beams, gaps = state
        here = jax.lax.dynamic_slice_in_dim(logits, place, 1, axis=1)
        longer = advance(here, beams)
        chosen = jnp.take_along_axis(
            longer.tokens[:, 0], longer.lengths[:, None], axis=1
        )
        gap = gap_to_next_best(here, chosen, beams, eos_id, constraints)

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(agreeing.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        gaps = keep(jnp.minimum(gaps, gap), gaps)
        beams = jax.tree.map(keep, longer, beams)
        guess = jax.lax.dynamic_slice_in_dim(guesses, place, 1, axis=1)
        agreeing = agreeing & alive(beams) & (chosen == guess)[:, 0]
        return place + 1, agreeing, beams, gaps

    start = (jnp.int32(0), alive(beams), beams, jnp.full((sentences,), jnp.inf))
    _, _, beams, gaps = jax.lax.while_loop(going_on, step, start)
    return beams, gaps


def gap_to_next_best(
    logits: Array,
    chosen: Array,
    beams: Beams,
    eos_id: int,
    constraints: Sequence[Constraint],
) -> Array:
    """How far the logit of `chosen` [B, 1] lies above all others that are allowed:
    logits [B, 1, V] → [B]; inf where the token had to come."""
    for constrain in constraints:
        logits = constrain(logits, beams)
    logits = logits[:, 0]
    tokens = jnp.arange(logits.shape[-1])[None, :]
    others = jnp.where(tokens == chosen, -jnp.inf, logits).max(axis=-1)
    gap = jnp.take_along_axis(logits, chosen, axis=1)[:, 0] - others
    return jnp.where(compelled_tokens(beams, eos_id) == FREE, gap, jnp.inf)


def next_guesses(logits: Array, before: Beams, beams: Beams, eos_id: int) -> Array:
    """What the block's logits [B, L, V] say of the places after those that it settled,
    as if the guesses had been right: [B, L - 1]. Beyond the block, its last token."""
    block = logits.shape[1]
    choices = likeliest(logits)
    settled = (beams.lengths - before.lengths)[:, None]
    index = jnp.minimum(settled + jnp.arange(block - 1)[None, :], block - 1)
    guesses = jnp.take_along_axis(choices, index, axis=1)
    return unless_compelled(guesses, beams, eos_id)


def draft_guesses(
    draft: StepFn, beams: Beams, memory: Memory, count: int, eos_id: int
) -> tuple[Array, Cache]:
    """The next tokens [B, `count`] by the draft's greedy search, and its new cache."""
    unknown = jnp.full((beams.lengths.shape[0], count), FREE, jnp.int32)
    compelled = unless_compelled(unknown, beams, eos_id)

    def choose(logits: Array, guesses: Array, place: Array) -> Array:
        wanted = jax.lax.dynamic_slice_in_dim(compelled, place, 1, axis=1)
        guess = jnp.where(wanted == FREE, likeliest(logits), wanted)
        return jax.lax.dynamic_update_slice_in_dim(guesses, guess, place, axis=1)

    # Of a block that was kept whole, the draft has not read the last guess: it reads
    # the token before the last one too.
    places = jnp.where(alive(beams), beams.lengths, 0)
    first = jnp.maximum(places - 1, 0)
    index = first[:, None] + jnp.arange(2)[None, :]
    tokens = jnp.take_along_axis(beams.tokens[:, 0], index, axis=1)
    output, cache = draft(tokens, first, beams.cache.draft, memory)
    last = jnp.minimum(places, 1)[:, None, None]
    logits = jnp.take_along_axis(output.logits, last, axis=1)
    guesses = choose(logits, unknown, jnp.int32(0))

    def step(place: Array, state: tuple[Array, Cache]) -> tuple[Array, Cache]:
        guesses, cache = state
        tokens = jax.lax.dynamic_slice_in_dim(guesses, place - 1, 1, axis=1)
        output, cache = draft(tokens, places + place, cache, memory)
        return choose(output.logits, guesses, place), cache

    return jax.lax.fori_loop(1, count, step, (guesses, cache))


def unless_compelled(guesses: Array, beams: Beams, eos_id: int) -> Array:
    """The guesses [B, L - 1] of the next tokens, or the tokens that must come there."""

    def compelled(place: Array) -> Array:
        there = beams._replace(cache=None, lengths=beams.lengths + place)
        return compelled_tokens(there, eos_id)

    places = jnp.arange(guesses.shape[1], dtype=jnp.int32)
    wanted = jax.vmap(compelled, out_axes=1)(places)
    return jnp.where(wanted == FREE, guesses, wanted)
