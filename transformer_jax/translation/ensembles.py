"""What the slots need of a model, or of several that translate as one.

The parameters, the memory and the caches of an ensemble are tuples, one for each model.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from transformer_jax.config import ModelConfig
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.models import cache as model_cache
from transformer_jax.models import functions
from transformer_jax.models.transformer import Transformer
from transformer_jax.search.ensemble import EnsembleCache, ensemble_step
from transformer_jax.types import Array, Memory, Params, StepFn

READING = ("source_bos", "source_eos", "decoder_start")
"""Settings that say what a model is fed, in which all must agree."""


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models with one vocabulary, which may differ in size and depth."""

    models: tuple[Transformer, ...]

    def __post_init__(self) -> None:
        first = self.models[0].config
        for number, model in enumerate(self.models[1:], start=2):
            for name in READING:
                ours, theirs = getattr(first, name), getattr(model.config, name)
                if ours != theirs:
                    raise ValueError(
                        f"Models 1 and {number} of an ensemble differ in {name}, which "
                        f"is {ours!r} and {theirs!r}: they must be fed alike."
                    )

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


def step_of(
    model: AnyModel, params: Params, *, return_attention: bool = False
) -> StepFn:
    """The decoding step with the parameters bound, as search wants it."""
    bound = functools.partial(functions.make_step_fn, return_attention=return_attention)
    if isinstance(model, Ensemble):
        members = zip(model.models, params, strict=True)
        return ensemble_step([bound(*member) for member in members])
    return bound(model, params)


def check_same_vocabulary(
    runs: Sequence[object], tokenizers: Sequence[Tokenizer]
) -> None:
    """Raises where an id of the first tokenizer means something else in another."""
    for run, tokenizer in zip(runs[1:], tokenizers[1:], strict=True):
        both = zip(_meanings(tokenizers[0]), _meanings(tokenizer), strict=True)
        for (what, ours), (_, theirs) in both:
            if ours != theirs:
                raise ValueError(
                    f"{runs[0]} and {run} have different vocabularies: {what} is "
                    f"{ours!r} and {theirs!r}. Models of an ensemble must share one: "
                    "train them with the same tokenizer."
                )


def _meanings(tokenizer: Tokenizer) -> Iterator[tuple[str, object]]:
    """What the ids mean: sizes and special ids first, then piece after piece."""
    sizes = ("source_vocab_size", "target_vocab_size")
    for name in (*sizes, "pad_id", "bos_id", "eos_id", "unk_id"):
        yield name, getattr(tokenizer, name)
    source, target = (range(getattr(tokenizer, size)) for size in sizes)
    for i, piece in enumerate(tokenizer.source_pieces(source)):
        yield f"source piece {i}", piece
    for i, piece in enumerate(tokenizer.target_pieces(target)):
        yield f"target piece {i}", piece
