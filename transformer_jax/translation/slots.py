"""The slots of a device, and the few programs that work on them.

Each is compiled once for each shape, and works in place: only what is new is written.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.models.cache import init_cache, moved_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.models.layers import Memory
from transformer_jax.models.transformer import Transformer
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
from transformer_jax.search.shortlist import Choice
from transformer_jax.translation.methods import SearchPlan, method_of
from transformer_jax.types import Array, Params

FIRST_CACHE = 32
"""Target tokens that the cache has room for at first; it doubles when need be."""


class Slots(NamedTuple):
    """What a device holds of its sentences."""

    beams: Beams
    memory: Memory


class Offer(NamedTuple):
    """What the sentences of all slots choose their tokens from."""

    choice: Choice
    output: tuple[Array, Array | None]
    """Rows of the output table [U, D] and their bias [U]."""


class Report(NamedTuple):
    """What the host needs to know of the slots."""

    alive: Array
    """[B]: sentences that are not done."""
    longest: Array
    """[]: most target tokens that one of them has."""
    finished: SearchResult


@functools.partial(jax.jit, static_argnames=("model", "plan", "slots", "length"))
def empty_slots(
    params: Params, *, model: Transformer, plan: SearchPlan, slots: int, length: int
) -> Slots:
    """B free slots for sources of up to S = `length` tokens."""
    ids = jax.ShapeDtypeStruct((slots, length), jnp.int32)
    encode = functools.partial(encode_memory, model)
    memory = jax.eval_shape(encode, params, ids, ids)
    cache = init_cache(
        model.config, slots, min(FIRST_CACHE, plan.max_length), beams=plan.beams
    )
    prefix = jnp.full((slots, plan.prefix_width), plan.start_id, jnp.int32)
    nothing = Job(prefix=prefix, max_lengths=jnp.zeros((slots,), jnp.int32))
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
    model: Transformer,
    plan: SearchPlan,
) -> Slots:
    """Encodes P sentences, inputs and segment ids [P, S], into `slots` [P].

    The state comes without its cache, which stays as it is: a sentence begins at
    position 0, and never reads what it has not written.
    """
    memory = encode_memory(model, params, inputs, segment_ids)
    memory = jax.tree.map(_padded_like, memory, state.memory)
    return Slots(
        beams=replace_sentences(state.beams, _first_beams(plan, job), slots),
        memory=replace_sentences(state.memory, memory, slots),
    )


@functools.partial(jax.jit, static_argnames=("model",))
def make_offer(
    params: Params, ids: Array, allowed: Array, *, model: Transformer
) -> Offer:
    """The rows are picked once for many steps."""
    rows: Any = model.apply({"params": params}, ids, method="output_rows")
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
    model: Transformer,
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
        make_step_fn(model, params, output=offer.output if offer else None),
        state.memory,
        state.beams,
        method_of(
            plan,
            offer.choice if offer else None,
            vocab_size=model.config.target_vocab_size,
        ),
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
    return first_beams(
        make_job(job.prefix, job.max_lengths, max_length=plan.max_length),
        None,
        beam_size=plan.beams,
        n_best=plan.search.n_best,
        max_length=plan.max_length,
    )


def _padded_like(x: Array, whole: Array) -> Array:
    """Zeros behind x, up to the other's size on every axis but the first."""
    more = zip(x.shape[1:], whole.shape[1:], strict=True)
    return jnp.pad(x, [(0, 0), *((0, large - small) for small, large in more)])
