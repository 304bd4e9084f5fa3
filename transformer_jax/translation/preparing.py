"""Programs for sentences that have no slot yet, for slots that hold none, and for
fitting either to longer or shorter sources."""

import functools

import jax
import jax.numpy as jnp

from transformer_jax.search.beams import (
    FREE,
    Beams,
    Job,
    add_token,
    first_beams,
    make_job,
)
from transformer_jax.search.coverage import first_coverage
from transformer_jax.search.sampling import first_samples
from transformer_jax.translation.drafting import empty_caches, encode_all, nothing_ahead
from transformer_jax.translation.ensembles import (
    AnyModel,
    as_large_as,
    as_long_as,
    empty_cache,
    segment_ids_of,
    step_of,
)
from transformer_jax.translation.methods import SearchPlan, method_of
from transformer_jax.translation.offers import Offer
from transformer_jax.translation.slots import Slots, count_of
from transformer_jax.types import Array, Memory, Params


@functools.partial(
    jax.jit, static_argnames=("model", "plan", "slots", "length", "cache")
)
def empty_slots(
    params: Params,
    *,
    model: AnyModel,
    plan: SearchPlan,
    slots: int,
    length: int,
    cache: int,
) -> Slots:
    """B free slots for sources of up to S = `length` tokens, and a cache of T."""
    memory = _memory_like(params, model, plan, slots, length)
    memory = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), memory)
    prefix = jnp.full((slots, plan.prefix_width), plan.start_id, jnp.int32)
    draws = jnp.zeros((slots, 2), jnp.uint32) if plan.draws else None
    phrases = plan.phrases and jnp.full((slots, *plan.phrases), FREE, jnp.int32)
    nothing = Job(prefix, jnp.zeros((slots,), jnp.int32), draws, phrases)
    beams = _first_beams(plan, nothing, memory, beams=plan.beams)
    return Slots(
        beams=beams._replace(cache=empty_caches(model, plan, slots, cache)),
        memory=memory,
        ahead=nothing_ahead(plan, beams),
    )


@functools.partial(jax.jit, static_argnames=("model", "plan", "length"))
def prepare(
    params: Params,
    inputs: Array,
    segment_ids: Array,
    job: Job,
    *,
    model: AnyModel,
    plan: SearchPlan,
    length: int,
) -> Slots:
    """Encodes P sentences for slots of S = `length`: inputs and segment ids [P', S'] of
    the first of them; of the others nothing is asked.

    They have no cache: that of a slot serves its next sentence as it is, since this
    begins at position 0, and never reads what it has not written. (Those that `begin`
    have one for position 0, which is written into that of their slot.)
    """
    memory = encode_all(model, plan.draft, params, inputs, segment_ids)
    whole = _memory_like(params, model, plan, len(job.prefix), length)
    memory = as_large_as(whole, memory)
    beams = _first_beams(plan, job, memory, beams=plan.beams)
    return Slots(beams, memory, nothing_ahead(plan, beams))


@functools.partial(jax.jit, static_argnames=("model", "plan"))
def begin(
    params: Params,
    waiting: Slots,
    offer: Offer | None,
    *,
    model: AnyModel,
    plan: SearchPlan,
) -> Slots:
    """Finds the first tokens of P sentences that wait, in one row each: in their slots
    they would have K rows, of which K - 1 hold nothing yet. Their cache is of these
    rows, for a single token."""
    count = count_of(waiting)
    beams = _first_beams(plan, waiting.beams.job, waiting.memory, beams=1)
    beams = beams._replace(cache=empty_cache(model, count, 1, beams=1))
    step_fn = step_of(
        model,
        params,
        return_attention=beams.coverage is not None,
        output=offer and offer.output,
    )
    beams = add_token(step_fn, waiting.memory, beams, method_of(plan))
    return waiting._replace(beams=beams)


def may_begin(model: AnyModel, plan: SearchPlan) -> bool:
    """Whether one row gives a sentence its first beams: it has no more of them than
    there are tokens."""
    several = plan.search.method == "beam" and plan.beams > 1
    return several and plan.beams <= model.config.target_vocab_size


@functools.partial(jax.jit, static_argnames=("model", "plan", "length"))
def refit(
    params: Params,
    memory: Memory,
    coverage: Array | None,
    *,
    model: AnyModel,
    plan: SearchPlan,
    length: int,
) -> tuple[Memory, Array | None]:
    """What the slots know of their sources, with S = `length`; padding is covered."""
    sentences = jax.tree.leaves(memory)[0].shape[0]
    whole = _memory_like(params, model, plan, sentences, length)
    return as_long_as(whole, memory, coverage)


def _memory_like(
    params: Params, model: AnyModel, plan: SearchPlan, sentences: int, length: int
) -> Memory:
    """Shapes and types of the memory of so many sentences of S = `length`."""
    ids = jax.ShapeDtypeStruct((sentences, length), jnp.int32)
    encode = functools.partial(encode_all, model, plan.draft)
    return jax.eval_shape(encode, params, ids, ids)


def _first_beams(plan: SearchPlan, job: Job, memory: Memory, *, beams: int) -> Beams:
    """So many beams a sentence, without their cache."""
    job = make_job(
        job.prefix,
        job.max_lengths,
        max_length=plan.max_length,
        draws=job.draws,
        phrases=job.phrases,
    )
    if plan.draws:
        return first_samples(job, None, samples=beams, max_length=plan.max_length)
    first = first_beams(
        job,
        None,
        beam_size=beams,
        n_best=plan.search.n_best,
        max_length=plan.max_length,
    )
    if not (plan.search.coverage_penalty and plan.scores):
        return first
    source_mask = segment_ids_of(memory) > 0
    coverage = first_coverage(plan.search.coverage_penalty, source_mask, beams)
    return first._replace(coverage=coverage)
