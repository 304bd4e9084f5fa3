"""The slots of a device, and the few programs that work on them.

Each is compiled once for each shape. Searching is done in place: only what is new is
written. Sentences that wait are encoded beforehand, and take the place of those that
are done inside the program, so that the device need not come back for each of them.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.models.cache import DecoderCache, begun_cache, resized_cache
from transformer_jax.search.beams import (
    Beams,
    alive,
    replace_sentences,
    search_while,
)
from transformer_jax.search.parallel_greedy import Ahead, Effort
from transformer_jax.search.result import SearchResult, without_scores
from transformer_jax.search.shortlist import Choice
from transformer_jax.translation.drafting import empty_caches, search_ahead_while
from transformer_jax.translation.ensembles import AnyModel, step_of
from transformer_jax.translation.methods import SearchPlan, method_of
from transformer_jax.translation.offers import Offer
from transformer_jax.types import Array, Cache, Memory, Params


class Slots(NamedTuple):
    """What a device holds of its sentences."""

    beams: Beams
    memory: Memory
    ahead: Ahead | None
    """Of a search in blocks."""


class Report(NamedTuple):
    """What the host needs to know of the slots.

    Sentences are known by tickets: those that were in the slots have 0 … B - 1, by
    slot, and those that waited B … B + P - 1.
    """

    tickets: Array
    """[B]: whose sentence each slot has now."""
    alive: Array
    """[B]: sentences that are not done."""
    taken: Array
    """[]: how many of those that waited have been taken in."""
    lengths: Array
    """[B]: target tokens that each of them has, or guesses ahead of them; else 0."""
    finished: SearchResult
    """[B + P, …], by ticket; None for what of it is not wanted."""
    effort: Effort | None
    """Of a search in blocks; by ticket too."""


class Stand(NamedTuple):
    """Where `advance` stands."""

    slots: Slots
    tickets: Array
    taken: Array
    delivered: tuple[SearchResult, Effort | None]
    """By ticket: of sentences that have left their slot."""
    allowed: Array | None
    """[B, U], of a choice: which tokens each slot's sentence may use."""


def free_at_least(slots: int) -> int:
    """Slots of B that are free when sentences that wait are taken in: they come in
    together, as each coming in costs about a tenth of a step."""
    return max(1, slots // 15)


@functools.partial(
    jax.jit, static_argnames=("model", "plan"), donate_argnames=("state",)
)
def advance(
    params: Params,
    state: Slots,
    waiting: Slots | None,
    places: Array,
    enough: Array,
    offer: Offer | None = None,
    *,
    model: AnyModel,
    plan: SearchPlan,
) -> tuple[Slots, Report]:
    """Searches on until those of `waiting`, if there are any, are all taken in and no
    more than `enough` sentences are alive, or the cache is too short for one of them.

    `places` [2]: the first of those that still wait, and the place after the last. A
    siding has `waiting` None, and both are 0.
    """
    free = free_at_least(count_of(state))

    def going_on(now: Stand) -> Array:
        wanted = (now.taken < places[1]) | (alive(now.slots.beams).sum() > enough)
        return wanted & _has_room(now.slots.beams, plan)

    def go_on(now: Stand) -> Stand:
        if waiting is not None:
            now = _take_in(now, waiting, places[1], offer and offer.choice, plan)
        most = jnp.where(now.taken < places[1], count_of(state) - free, enough)
        slots = _search_while(
            lambda beams: (alive(beams).sum() > most) & _has_room(beams, plan),
            params,
            now.slots,
            now.allowed,
            offer,
            model=model,
            plan=plan,
        )
        return now._replace(slots=slots)

    start = _first_stand(state, waiting, places[0], offer and offer.choice, plan)
    end = jax.lax.while_loop(going_on, go_on, start)
    found = _results(end.slots, plan)
    delivered = replace_sentences(end.delivered, found, end.tickets)
    beams = end.slots.beams
    lengths = _lengths(beams, plan)
    return end.slots, Report(end.tickets, alive(beams), end.taken, lengths, *delivered)


@functools.partial(jax.jit, static_argnames=("model", "plan", "cache"))
def search_alone(
    params: Params,
    state: Slots,
    offer: Offer | None,
    *,
    model: AnyModel,
    plan: SearchPlan,
    cache: int,
) -> tuple[Slots, tuple[SearchResult, Effort | None], Array]:
    """Searches sentences to their end, or until a cache of T = `cache` is too short for
    one of them: a program that knows of no others does nothing else. At first they have
    no cache, as from `prepare`. → the state, what is found, whether all are done."""
    beams = state.beams
    if beams.cache is None:
        empty = empty_caches(model, plan, count_of(state), cache)
        beams = beams._replace(cache=empty)
    else:
        beams = beams._replace(cache=resize(beams.cache, length=cache))
    end = _search_while(
        lambda beams: alive(beams).any() & _has_room(beams, plan),
        params,
        state._replace(beams=beams),
        None,
        offer,
        model=model,
        plan=plan,
    )
    return end, _results(end, plan), ~alive(end.beams).any()


def _lengths(beams: Beams, plan: SearchPlan) -> Array:
    """[B]: target tokens that each sentence has, or guesses ahead of them; 0 when it is
    done."""
    return jnp.where(alive(beams), beams.lengths + plan.search.block - 1, 0)


def _has_room(beams: Beams, plan: SearchPlan) -> Array:
    """Whether the cache is long enough for the next token of every sentence."""
    room = beams.cache.ancestors.shape[1]
    # Where the cache is whole, only guesses beyond the last place lack room.
    return jnp.bool_(room >= plan.max_length) | jnp.all(_lengths(beams, plan) < room)


def _first_stand(
    state: Slots,
    waiting: Slots | None,
    first: Array,
    choice: Choice | None,
    plan: SearchPlan,
) -> Stand:
    """Nobody has been taken in yet."""
    count = count_of(state) + (0 if waiting is None else count_of(waiting))
    delivered = jax.tree.map(
        lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), _results(state, plan)
    )
    return Stand(
        slots=state,
        tickets=jnp.arange(count_of(state), dtype=jnp.int32),
        taken=first.astype(jnp.int32),
        delivered=delivered,
        allowed=choice and choice.allowed[: count_of(state)],
    )


def _take_in(
    now: Stand, waiting: Slots, end: Array, choice: Choice | None, plan: SearchPlan
) -> Stand:
    """Gives free slots, `free_at_least` of them at most, to sentences that wait, up to
    the one before `end`; what was found in these slots is delivered."""
    slots, count = now.slots, count_of(now.slots)
    free = ~alive(slots.beams)
    into = jnp.argsort(~free, stable=True)[: free_at_least(count)]  # free ones first
    new = now.taken + jnp.arange(len(into), dtype=jnp.int32)
    fits = free[into] & (new < end)
    nowhere = count + count_of(waiting)

    left = jnp.where(fits, now.tickets[into], nowhere)
    found = jax.tree.map(lambda x: x[into], _results(slots, plan))
    delivered = replace_sentences(now.delivered, found, left)

    into = jnp.where(fits, into, count)
    cache = slots.beams.cache
    coming = jax.tree.map(lambda x: x.at[new].get(mode="clip"), waiting)
    if (first := coming.beams.cache) is not None:  # they have begun
        begun = functools.partial(begun_cache, places=into)
        cache = each_cache(begun, cache, first)
        coming = coming._replace(beams=coming.beams._replace(cache=None))
    slots = slots._replace(beams=slots.beams._replace(cache=None))
    slots = replace_sentences(slots, coming, into)
    allowed = now.allowed
    if choice is not None:
        theirs = choice.allowed.at[count + new].get(mode="clip")
        allowed = replace_sentences(allowed, theirs, into)
    return Stand(
        slots=slots._replace(beams=slots.beams._replace(cache=cache)),
        tickets=now.tickets.at[into].set(count + new, mode="drop"),
        taken=now.taken + fits.sum(dtype=jnp.int32),
        delivered=delivered,
        allowed=allowed,
    )


def _search_while(
    going_on: Callable[[Beams], Array],
    params: Params,
    slots: Slots,
    allowed: Array | None,
    offer: Offer | None,
    *,
    model: AnyModel,
    plan: SearchPlan,
) -> Slots:
    """Adds tokens to the sentences in the slots while `going_on(beams)` is true; of a
    choice they may use what is `allowed` [B, U], or what it says itself."""
    beams, memory, ahead = slots
    if ahead is None:
        step_fn = step_of(
            model,
            params,
            return_attention=beams.coverage is not None,
            output=offer and offer.output,
        )
        choice = offer and offer.choice
        if choice is not None and allowed is not None:
            choice = choice._replace(allowed=allowed)
        method = method_of(plan, choice, vocab_size=model.config.target_vocab_size)
        beams = search_while(going_on, step_fn, memory, beams, method)
    else:
        beams, ahead = search_ahead_while(
            going_on, params, memory, beams, ahead, model=model, plan=plan
        )
    return Slots(beams, memory, ahead)


@functools.partial(jax.jit, static_argnames=("length",))
def resize(cache: Cache, *, length: int) -> Cache:
    """The cache with room for `length` target tokens."""
    return each_cache(lambda each: resized_cache(each, length), cache)


def count_of(slots: Slots) -> int:
    """B"""
    return slots.beams.lengths.shape[0]


def _results(slots: Slots, plan: SearchPlan) -> tuple[SearchResult, Effort | None]:
    """What has been found in each slot, and only what is wanted of it."""
    found = slots.beams.finished
    if not plan.scores:
        found = without_scores(found)
    return found, slots.ahead and slots.ahead.effort


def each_cache(change: Callable[..., DecoderCache], *caches: Cache) -> Cache:
    """What that of each model becomes."""
    return jax.tree.map(change, *caches, is_leaf=lambda x: isinstance(x, DecoderCache))
