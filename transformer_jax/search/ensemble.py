"""Several models that search as one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.search.beams import reorder
from transformer_jax.types import Array, Cache, Memory, StepFn, StepOutput


class EnsembleCache(NamedTuple):
    """The caches of M members, whose rows are the same beams."""

    members: tuple[Cache, ...]

    def reorder(self, parents: Array) -> "EnsembleCache":
        """Each beam goes on from the caches of its parent; parents [B, K] are beams."""
        return EnsembleCache(tuple(reorder(each, parents) for each in self.members))

    @property
    def ancestors(self) -> Array:
        """[R, T]: who wrote a row's past, which is the same in every member."""
        return self.members[0].ancestors


def ensemble_step(step_fns: Sequence[StepFn]) -> StepFn:
    """The mean of M members' probabilities, as one step: log (Σₘ pₘ / M), as in fairseq
    and Sockeye's linear combination.

    Its cache is an `EnsembleCache`, its memory a tuple of the members' memories. Its
    attention is the mean of theirs, where they give it.
    """

    def step_fn(
        tokens: Array, positions: Array, cache: EnsembleCache, memory: Memory
    ) -> tuple[StepOutput, EnsembleCache]:
        outputs, caches = [], []
        for member, *its in zip(step_fns, cache.members, memory, strict=True):
            output, its_cache = member(tokens, positions, *its)
            outputs.append(output)
            caches.append(its_cache)
        logs = jnp.stack([jax.nn.log_softmax(each.logits) for each in outputs])
        mean = jax.nn.logsumexp(logs, axis=0) - math.log(len(outputs))
        looks = [each.attention for each in outputs if each.attention is not None]
        attention = jnp.stack(looks).mean(axis=0) if looks else None
        return StepOutput(mean, attention), EnsembleCache(tuple(caches))

    return step_fn
