"""What the slots need of a model, or of several that translate as one.

The parameters, the memory and the caches of an ensemble are tuples, one for each model.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.models import cache as model_cache
from transformer_jax.models import functions
from transformer_jax.models.output import Output, RoughOutput
from transformer_jax.models.transformer import Transformer
from transformer_jax.search.ensemble import EnsembleCache, ensemble_step
from transformer_jax.types import Array, Memory, Params, StepFn


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models with one vocabulary, which may differ in size and depth."""

    models: tuple[Transformer, ...]

    @property
    def config(self) -> ModelConfig:
        """Of the model that knows the fewest positions."""
        configs = (each.config for each in self.models)
        return min(configs, key=lambda config: config.num_positions)


AnyModel = Transformer | Ensemble


def encode(
    model: AnyModel, params: Params, inputs: Array, segment_ids: Array
) -> Memory:
    """Encodes B sentences, one a row: inputs, segment ids [B, S] → memory."""
    if isinstance(model, Ensemble):
        members = zip(model.models, params, strict=True)
        return tuple(encode(*member, inputs, segment_ids) for member in members)
    return functions.encode_memory(model, params, inputs, segment_ids)


def empty_cache(model: AnyModel, sentences: int, length: int, *, beams: int) -> Any:
    """A cache for B `sentences` of K `beams`, T = `length` tokens each."""
    if isinstance(model, Ensemble):
        members = model.models
        return EnsembleCache(
            tuple(empty_cache(each, sentences, length, beams=beams) for each in members)
        )
    return model_cache.init_cache(model.config, sentences, length, beams=beams)


def segment_ids_of(memory: Memory) -> Array:
    """[B, S]: of the source, which is the same for all."""
    return memory[0].segment_ids if type(memory) is tuple else memory.segment_ids


def as_long_as(
    like: Memory, memory: Memory, coverage: Array | None
) -> tuple[Memory, Array | None]:
    """Memory with as many source positions as another's, and its coverage [B, K, S], in
    which padding is covered."""
    if coverage is not None:
        length = segment_ids_of(like).shape[1]
        coverage = _fitted(coverage, (*coverage.shape[:2], length), behind=1)

    def fitted(x: Array, other: Array) -> Array:
        return _fitted(x, (len(x), *other.shape[1:]))

    return jax.tree.map(fitted, memory, like), coverage


def as_large_as(like: Memory, memory: Memory) -> Memory:
    """Memory with as many sentences and source positions as another's."""
    return jax.tree.map(lambda x, y: _fitted(x, y.shape), memory, like)


def _fitted(x: Array, sizes: Sequence[int], behind: float = 0) -> Array:
    """x cut to these sizes of its axes, or with more `behind`."""
    x = x[tuple(map(slice, sizes))]
    more = [(0, size - held) for held, size in zip(x.shape, sizes, strict=True)]
    return jnp.pad(x, more, constant_values=behind)


def step_of(
    model: AnyModel,
    params: Params,
    *,
    return_attention: bool = False,
    output: Output | RoughOutput | None = None,
) -> StepFn:
    """The decoding step with the parameters bound: see `make_step_fn`."""
    bound = functools.partial(
        functions.make_step_fn, return_attention=return_attention, output=output
    )
    if isinstance(model, Ensemble):
        members = zip(model.models, params, strict=True)
        return ensemble_step([bound(*member) for member in members])
    return bound(model, params)
