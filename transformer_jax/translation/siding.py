"""How sentences go on in the slots of a siding."""

import functools

import jax
import jax.numpy as jnp

from transformer_jax.models.cache import DecoderCache, chosen_cache, placed_cache
from transformer_jax.search.beams import replace_sentences
from transformer_jax.translation.ensembles import as_long_as
from transformer_jax.translation.slots import Slots, count_of, each_cache
from transformer_jax.types import Array


@functools.partial(jax.jit, donate_argnames=("siding", "state"))
def put_aside(
    siding: Slots, state: Slots, slots: Array, into: Array
) -> tuple[Slots, Slots]:
    """Moves the sentences in some `slots` [B'] of the state to the slots `into` [B'] of
    the siding, whose caches are long enough for them; B of either: nobody."""
    there = jnp.minimum(slots, count_of(state) - 1)

    def placed(mine: DecoderCache, others: DecoderCache) -> DecoderCache:
        return placed_cache(mine, chosen_cache(others, there), into)

    caches = siding.beams.cache, state.beams.cache
    cache = each_cache(placed, *caches)
    rest = siding._replace(beams=siding.beams._replace(cache=None))
    coming = state._replace(beams=state.beams._replace(cache=None))
    coming = jax.tree.map(lambda x: x[there], coming)
    memory, coverage = as_long_as(rest.memory, coming.memory, coming.beams.coverage)
    coming = coming._replace(
        beams=coming.beams._replace(coverage=coverage), memory=memory
    )
    rest = replace_sentences(rest, coming, into)
    siding = rest._replace(beams=rest.beams._replace(cache=cache))
    left = state.beams.log_probabilities.at[slots].set(-jnp.inf, mode="drop")
    beams = state.beams._replace(log_probabilities=left)
    return siding, state._replace(beams=beams)
