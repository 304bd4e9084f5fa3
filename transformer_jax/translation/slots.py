"""The slots of a device, and the few programs that work on them.

Each is compiled once for each shape, and works in place: only what is new is written.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.search.beams import (
    Beams,
    Job,
    alive,
    first_beams,
    make_job,
    replace_sentences,
    search_while,
)
from transformer_jax.search.result import SearchResult
from transformer_jax.search.sampling import first_samples
from transformer_jax.translation.ensembles import (
    AnyModel,
    empty_cache,
    encode,
    moved_cache,
    step_of,
)
from transformer_jax.translation.methods import SearchPlan, method_of
from transformer_jax.types import Array, Memory, Params

FIRST_CACHE = 32
"""Target tokens that the cache has room for at first; it doubles when need be."""


class Slots(NamedTuple):
    """What a device holds of its sentences."""

    beams: Beams
    memory: Memory


class Report(NamedTuple):
    """What the host needs to know of the slots."""

    alive: Array
    """[B]: sentences that are not done."""
    longest: Array
    """[]: most target tokens that one of them has."""
    finished: SearchResult


@functools.partial(jax.jit, static_argnames=("model", "plan", "slots", "length"))
def empty_slots(
    params: Params, *, model: AnyModel, plan: SearchPlan, slots: int, length: int
) -> Slots:
    """B free slots for sources of up to S = `length` tokens."""
    ids = jax.ShapeDtypeStruct((slots, length), jnp.int32)
    memory = jax.eval_shape(functools.partial(encode, model), params, ids, ids)
    cache = empty_cache(
        model, slots, min(FIRST_CACHE, plan.max_length), beams=plan.beams
    )
    prefix = jnp.full((slots, plan.prefix_width), plan.start_id, jnp.int32)
    draws = jnp.zeros((slots, 2), jnp.uint32) if plan.draws else None
    nothing = Job(prefix, jnp.zeros((slots,), jnp.int32), draws)
    return Slots(
        beams=_first_beams(plan, nothing)._replace(cache=cache),
        memory=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), memory),
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
    memory = encode(model, params, inputs, segment_ids)
    memory = jax.tree.map(_padded_like, memory, state.memory)
    return Slots(
        beams=replace_sentences(state.beams, _first_beams(plan, job), slots),
        memory=replace_sentences(state.memory, memory, slots),
    )


@functools.partial(
    jax.jit, static_argnames=("model", "plan"), donate_argnames=("state",)
)
def advance(
    params: Params,
    state: Slots,
    enough: Array,
    *,
    model: AnyModel,
    plan: SearchPlan,
) -> tuple[Slots, Report]:
    """Searches on until no more than `enough` sentences are alive, or the cache is too
    short for one of them."""
    room = state.beams.cache.ancestors.shape[1]

    def longest(beams: Beams) -> Array:
        return jnp.where(alive(beams), beams.lengths, 0).max()

    def going_on(beams: Beams) -> Array:
        return (alive(beams).sum() > enough) & (longest(beams) < room)

    beams = search_while(
        going_on,
        step_of(model, params),
        state.memory,
        state.beams,
        method_of(plan),
    )
    report = Report(alive(beams), longest(beams), beams.finished)
    return state._replace(beams=beams), report


@functools.partial(jax.jit, static_argnames=("length",))
def move(state: Slots, slots: Array, *, length: int) -> Slots:
    """Some `slots` [B'] alone, with room for `length` target tokens in the cache."""
    cache = moved_cache(state.beams.cache, slots, length)
    rest = state._replace(beams=state.beams._replace(cache=None))
    rest = jax.tree.map(lambda x: x[slots], rest)
    return rest._replace(beams=rest.beams._replace(cache=cache))


def _first_beams(plan: SearchPlan, job: Job) -> Beams:
    """Beams without their cache."""
    job = make_job(
        job.prefix, job.max_lengths, max_length=plan.max_length, draws=job.draws
    )
    if plan.draws:
        return first_samples(job, None, samples=plan.beams, max_length=plan.max_length)
    return first_beams(
        job,
        None,
        beam_size=plan.beams,
        n_best=plan.search.n_best,
        max_length=plan.max_length,
    )


def _padded_like(x: Array, whole: Array) -> Array:
    """Zeros behind x, up to the other's size on every axis but the first."""
    more = zip(x.shape[1:], whole.shape[1:], strict=True)
    return jnp.pad(x, [(0, 0), *((0, large - small) for small, large in more)])
