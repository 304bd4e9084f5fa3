"""Greedy search in blocks on the slots of a device, with or without a draft.

Where there is a draft, parameters, memory and cache are `Drafted`: one for each model.
"""

from collections.abc import Callable

from transformer_jax.models.transformer import Transformer
from transformer_jax.search.beams import Beams
from transformer_jax.search.parallel_greedy import (
    Ahead,
    Drafted,
    first_guesses,
    search_blocks_while,
)
from transformer_jax.translation.ensembles import (
    AnyModel,
    empty_cache,
    encode,
    step_of,
)
from transformer_jax.translation.methods import SearchPlan, constraints_of, method_of
from transformer_jax.types import Array, Cache, Memory, Params


def encode_all(
    model: AnyModel,
    draft: Transformer | None,
    params: Params,
    inputs: Array,
    segment_ids: Array,
) -> Memory:
    """Inputs and segment ids [B, S] → memory, by each model its own."""
    if draft is None:
        return encode(model, params, inputs, segment_ids)
    return Drafted(
        target=encode(model, params.target, inputs, segment_ids),
        draft=encode(draft, params.draft, inputs, segment_ids),
    )


def empty_caches(
    model: AnyModel, plan: SearchPlan, sentences: int, length: int
) -> Cache:
    """Room for `length` target tokens of each sentence, for each model."""
    cache = empty_cache(model, sentences, length, beams=plan.beams)
    if plan.draft is None:
        return cache
    return Drafted(cache, empty_cache(plan.draft, sentences, length, beams=1))


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
    model: AnyModel,
    plan: SearchPlan,
) -> tuple[Beams, Ahead]:
    """Adds a block of tokens to every sentence while `going_on(beams)` is true."""
    target, draft = params, None
    if plan.draft is not None:
        target = params.target
        draft = step_of(plan.draft, params.draft)
    return search_blocks_while(
        going_on,
        step_of(model, target),
        memory,
        beams,
        ahead,
        method_of(plan),
        eos_id=plan.eos_id,
        draft=draft,
        constraints=constraints_of(plan),
    )
