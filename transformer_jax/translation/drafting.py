"""Greedy search in blocks on the slots of a device, with or without a draft.

Where there is a draft, parameters, memory and cache are `Drafted`: one for each model.
"""

from collections.abc import Callable

from transformer_jax.models.cache import init_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.models.transformer import Transformer
from transformer_jax.search.beams import Beams
from transformer_jax.search.parallel_greedy import (
    Ahead,
    Drafted,
    first_guesses,
    search_blocks_while,
)
from transformer_jax.translation.methods import SearchPlan, constraints_of, method_of
from transformer_jax.types import Array, Cache, Memory, Params


def encode_all(
    model: Transformer,
    draft: Transformer | None,
    params: Params,
    inputs: Array,
    segment_ids: Array,
) -> Memory:
    """Inputs and segment ids [B, S] → memory, by each model its own."""
    if draft is None:
        return encode_memory(model, params, inputs, segment_ids)
    return Drafted(
        target=encode_memory(model, params.target, inputs, segment_ids),
        draft=encode_memory(draft, params.draft, inputs, segment_ids),
    )


def empty_cache(
    model: Transformer, plan: SearchPlan, sentences: int, length: int
) -> Cache:
    """Room for `length` target tokens of each sentence, for each model."""
    cache = init_cache(model.config, sentences, length, beams=plan.beams)
    if plan.draft is None:
        return cache
    return Drafted(cache, init_cache(plan.draft.config, sentences, length))


def nothing_ahead(plan: SearchPlan, beams: Beams) -> Ahead | None:
    """Guesses for sentences that have not begun; None where the search makes none."""
    block = plan.search.block
    return first_guesses(beams, block, plan.eos_id) if block > 1 else None


def search_ahead_while(
    going_on: Callable[[Beams], Array],
    params: Params,
    memory: Memory,
    beams: Beams,
    ahead: Ahead,
    *,
    model: Transformer,
    plan: SearchPlan,
) -> tuple[Beams, Ahead]:
    """Adds a block of tokens to every sentence while `going_on(beams)` is true."""
    target, draft = params, None
    if plan.draft is not None:
        target = params.target
        draft = make_step_fn(plan.draft, params.draft)
    return search_blocks_while(
        going_on,
        make_step_fn(model, target),
        memory,
        beams,
        ahead,
        method_of(plan),
        eos_id=plan.eos_id,
        draft=draft,
        constraints=constraints_of(plan),
    )
