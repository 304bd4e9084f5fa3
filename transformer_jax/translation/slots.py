"""The slots of a device, and the few programs that work on them.

Each is compiled once for each shape, and works in place: only what is new is written.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.models.cache import DecoderCache, chosen_cache, resized_cache
from transformer_jax.search.beams import (
    FREE,
    Beams,
    Job,
    alive,
    first_beams,
    make_job,
    replace_sentences,
    search_while,
)
from transformer_jax.search.coverage import first_coverage
from transformer_jax.search.parallel_greedy import Ahead, Effort
from transformer_jax.search.result import SearchResult
from transformer_jax.search.sampling import first_samples
from transformer_jax.search.shortlist import Choice
from transformer_jax.translation.drafting import (
    empty_caches,
    encode_all,
    nothing_ahead,
    search_ahead_while,
)
from transformer_jax.translation.ensembles import (
    AnyModel,
    Output,
    segment_ids_of,
    step_of,
)
from transformer_jax.translation.methods import SearchPlan, method_of
from transformer_jax.types import Array, Cache, Memory, Params

FIRST_CACHE = 32
"""Target tokens that the cache has room for at first; it doubles when need be."""


class Slots(NamedTuple):
    """What a device holds of its sentences."""

    beams: Beams
    memory: Memory
    ahead: Ahead | None
    """Of a search in blocks."""


class Offer(NamedTuple):
    """What the sentences of all slots choose their tokens from."""

    choice: Choice
    output: Output


class Report(NamedTuple):
    """What the host needs to know of the slots."""

    alive: Array
    """[B]: sentences that are not done."""
    longest: Array
    """[]: most target tokens that one of them has, or guesses ahead of them."""
    finished: SearchResult
    effort: Effort | None
    """Of a search in blocks."""


@functools.partial(jax.jit, static_argnames=("model", "plan", "slots", "length"))
def empty_slots(
    params: Params, *, model: AnyModel, plan: SearchPlan, slots: int, length: int
) -> Slots:
    """B free slots for sources of up to S = `length` tokens."""
    ids = jax.ShapeDtypeStruct((slots, length), jnp.int32)
    memory = jax.eval_shape(
        functools.partial(encode_all, model, plan.draft), params, ids, ids
    )
    memory = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), memory)
    cache = empty_caches(model, plan, slots, min(FIRST_CACHE, plan.max_length))
    prefix = jnp.full((slots, plan.prefix_width), plan.start_id, jnp.int32)
    draws = jnp.zeros((slots, 2), jnp.uint32) if plan.draws else None
    phrases = plan.phrases and jnp.full((slots, *plan.phrases), FREE, jnp.int32)
    nothing = Job(prefix, jnp.zeros((slots,), jnp.int32), draws, phrases)
    beams = _first_beams(plan, nothing, memory)
    return Slots(
        beams=beams._replace(cache=cache),
        memory=memory,
        ahead=nothing_ahead(plan, beams),
    )


@functools.partial(
    jax.jit, static_argnames=("model", "plan"), donate_argnames=("state",)
)
def refill(
    params: Params,
    state: Slots,
    slots: Array,
    inputs: Array,
    segment_ids: Array,
    job: Job,
    *,
    model: AnyModel,
    plan: SearchPlan,
) -> Slots:
    """Encodes P sentences, inputs and segment ids [P, S], into `slots` [P].

    The state comes without its cache, which stays as it is: a sentence begins at
    position 0, and never reads what it has not written.
    """
    memory = encode_all(model, plan.draft, params, inputs, segment_ids)
    memory = jax.tree.map(_padded_like, memory, state.memory)
    beams = _first_beams(plan, job, memory)
    new = Slots(beams, memory, nothing_ahead(plan, beams))
    return replace_sentences(state, new, slots)


@functools.partial(jax.jit, static_argnames=("model",))
def make_offer(params: Params, ids: Array, allowed: Array, *, model: Any) -> Offer:
    """The rows are picked once for many steps."""
    rows = model.apply({"params": params}, ids, method="output_rows")
    return Offer(Choice(ids, allowed), rows)


@functools.partial(
    jax.jit, static_argnames=("model", "plan"), donate_argnames=("state",)
)
def advance(
    params: Params,
    state: Slots,
    enough: Array,
    offer: Offer | None = None,
    *,
    model: AnyModel,
    plan: SearchPlan,
) -> tuple[Slots, Report]:
    """Searches on until no more than `enough` sentences are alive, or the cache is too
    short for one of them."""
    beams, memory, ahead = state
    room = beams.cache.ancestors.shape[1]

    def longest(beams: Beams) -> Array:
        lengths = jnp.where(alive(beams), beams.lengths, 0)
        return lengths.max() + plan.search.block - 1

    def going_on(beams: Beams) -> Array:
        # Where the cache is whole, only guesses beyond the last place lack room.
        whole = room >= plan.max_length
        return (alive(beams).sum() > enough) & (whole | (longest(beams) < room))

    if ahead is None:
        step_fn = step_of(
            model,
            params,
            return_attention=beams.coverage is not None,
            output=offer and offer.output,
        )
        method = method_of(
            plan, offer and offer.choice, vocab_size=model.config.target_vocab_size
        )
        beams = search_while(going_on, step_fn, memory, beams, method)
    else:
        beams, ahead = search_ahead_while(
            going_on, params, memory, beams, ahead, model=model, plan=plan
        )
    effort = ahead and ahead.effort
    report = Report(alive(beams), longest(beams), beams.finished, effort)
    return Slots(beams, memory, ahead), report


@jax.jit
def move(state: Slots, slots: Array) -> Slots:
    """Some `slots` [B'] alone."""
    cache = _each_cache(lambda each: chosen_cache(each, slots), state.beams.cache)
    rest = state._replace(beams=state.beams._replace(cache=None))
    rest = jax.tree.map(lambda x: x[slots], rest)
    return rest._replace(beams=rest.beams._replace(cache=cache))


@functools.partial(jax.jit, static_argnames=("length",))
def resize(cache: Cache, *, length: int) -> Cache:
    """The cache with room for `length` target tokens."""
    return _each_cache(lambda each: resized_cache(each, length), cache)


def _first_beams(plan: SearchPlan, job: Job, memory: Memory) -> Beams:
    """Beams without their cache."""
    job = make_job(
        job.prefix,
        job.max_lengths,
        max_length=plan.max_length,
        draws=job.draws,
        phrases=job.phrases,
    )
    if plan.draws:
        return first_samples(job, None, samples=plan.beams, max_length=plan.max_length)
    beams = first_beams(
        job,
        None,
        beam_size=plan.beams,
        n_best=plan.search.n_best,
        max_length=plan.max_length,
    )
    if not plan.search.coverage_penalty:
        return beams
    source_mask = segment_ids_of(memory) > 0
    coverage = first_coverage(plan.search.coverage_penalty, source_mask, plan.beams)
    return beams._replace(coverage=coverage)


def _padded_like(x: Array, whole: Array) -> Array:
    """Zeros behind x, up to the other's size on every axis but the first."""
    more = zip(x.shape[1:], whole.shape[1:], strict=True)
    return jnp.pad(x, [(0, 0), *((0, large - small) for small, large in more)])


def _each_cache(change: Callable[[DecoderCache], DecoderCache], cache: Cache) -> Cache:
    """Changes that of each model."""
    return jax.tree.map(change, cache, is_leaf=lambda x: isinstance(x, DecoderCache))
