"""Two implementations layer by layer: what each place in the model gives, and where the
first difference is.

Places have names in the order of the computation: source_embedding, encoder_layer_0 …,
encoder_final, target_embedding, decoder_layer_0 …, decoder_final, logits. The
embeddings are with positions; the finals are after the last norm, where there is one.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.models.embeddings import Embedding
from transformer_jax.models.layers import Decoder, Encoder, Layer
from transformer_jax.models.transformer import Transformer
from transformer_jax.types import Params

WATCHED = (Embedding, Layer, Encoder, Decoder, Transformer)
"""Modules whose output is kept."""
SOURCE_PLACES = ("source_embedding", "encoder_")
"""How the names of places begin that have source positions."""


class Ids(NamedTuple):
    """What both implementations read; 0 in the segment ids is padding."""

    inputs: np.ndarray
    """[B, S]."""
    decoder_inputs: np.ndarray
    """[B, T], beginning with the start token."""
    input_segment_ids: np.ndarray
    target_segment_ids: np.ndarray


class Difference(NamedTuple):
    """How far apart two implementations are at one place, padding left out."""

    place: str
    max_abs: float
    max_rel: float
    """The same in units of the largest number at that place."""


def ids_with_padding(
    inputs: np.ndarray, decoder_inputs: np.ndarray, pad_id: int
) -> Ids:
    """Token ids padded with `pad_id` on either side; a decoder may start from it too.

    Raises ValueError unless both are whole numbers, of as many rows, with a token.

    >>> ids_with_padding(np.array([[7, 2, 0]]), np.array([[0, 7, 0]]), 0)[2:]
    (array([[1, 1, 0]], dtype=int32), array([[1, 1, 0]], dtype=int32))
    """
    _check_ids(inputs, decoder_inputs, pad_id)
    segments = [(ids != pad_id).astype(np.int32) for ids in (inputs, decoder_inputs)]
    segments[1][:, 0] = 1
    numbers = (ids.astype(np.int32) for ids in (inputs, decoder_inputs))
    return Ids(*numbers, *segments)


def _check_ids(inputs: np.ndarray, decoder_inputs: np.ndarray, pad_id: int) -> None:
    for name, ids in (("inputs", inputs), ("decoder_inputs", decoder_inputs)):
        wanted = "token ids are whole numbers in an array of a row for each sentence"
        if ids.ndim != 2 or not ids.size:
            raise ValueError(f"{name} is of shape {list(ids.shape)}, but {wanted}.")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"{name} is of type {ids.dtype}, but {wanted}.")
        if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
            raise ValueError(
                f"{name} goes from {ids.min()} to {ids.max()}: such are no token ids."
            )
    if len(inputs) != len(decoder_inputs):
        raise ValueError(
            f"inputs has {len(inputs)} rows and decoder_inputs {len(decoder_inputs)}: "
            "row n of one must be the source of row n of the other."
        )
    if (inputs == pad_id).all():
        raise ValueError(
            f"inputs holds nothing but {pad_id}, which is padding: there is nothing to "
            "compare. Give sentences, numbered by the first run's tokenizer."
        )


def places_of(config: ModelConfig) -> list[str]:
    """The names of all places of a model.

    >>> places_of(ModelConfig(num_encoder_layers=1, num_decoder_layers=1))[:3]
    ['source_embedding', 'encoder_layer_0', 'encoder_final']
    """
    encoder = [f"encoder_layer_{i}" for i in range(config.num_encoder_layers)]
    decoder = [f"decoder_layer_{i}" for i in range(config.num_decoder_layers)]
    return [
        *("source_embedding", *encoder, "encoder_final"),
        *("target_embedding", *decoder, "decoder_final", "logits"),
    ]


def activations(config: ModelConfig, params: Params, ids: Ids) -> dict[str, np.ndarray]:
    """What every place gives under teacher forcing: [B, S, D], [B, T, D], [B, T, V]."""
    for ours, size, name in (
        (ids.inputs, config.source_vocab_size, "source"),
        (ids.decoder_inputs, config.target_vocab_size, "target"),
    ):
        if ours.min() < 0 or ours.max() >= size:
            raise ValueError(
                f"The {name} ids go from {ours.min()} to {ours.max()}, but the model "
                f"has {size} {name} words: the two do not share a vocabulary."
            )
    # Recomputing a layer for gradients hides what it gives, and there are no gradients.
    model = Transformer(dataclasses.replace(config, remat=False))
    sown = jax.device_get(_outputs(model, params, ids))
    found = {
        "source_embedding": sown["source_positions"],
        "encoder_final": sown["encoder"],
        "target_embedding": sown["target_positions"],
        "decoder_final": sown["decoder"],
        "logits": sown,
    }
    for place in places_of(config):
        if "_layer_" in place:
            side, _, layer = place.partition("_")
            found[place] = sown[side][layer]
    return {
        place: np.asarray(found[place]["__call__"][0], np.float32)
        for place in places_of(config)
    }


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], ids: Ids
) -> list[Difference]:
    """At every place that both have, in the order of the computation."""
    found = []
    for place in ours:
        if place not in theirs:
            continue
        one, other = ours[place], theirs[place]
        if one.shape != other.shape:
            raise ValueError(
                f"{place} is {list(one.shape)} here and {list(other.shape)} there: the "
                "two models are not of one size, or have not read the same ids."
            )
        on_source = place.startswith(SOURCE_PLACES)
        segments = ids.input_segment_ids if on_source else ids.target_segment_ids
        one, other = (x[segments > 0].astype(np.float64) for x in (one, other))
        apart = float(np.abs(one - other).max())
        size = max(float(np.abs(one).max()), float(np.abs(other).max()))
        found.append(Difference(place, apart, apart / size if size else apart))
    return found


def first_beyond(found: list[Difference], tolerance: float) -> str | None:
    """The first place that differs by more; NaN differs from all.

    >>> first_beyond([Difference("a", 1e-6, 1e-6), Difference("b", 0.1, 0.1)], 1e-4)
    'b'
    """
    for difference in found:
        if not difference.max_abs <= tolerance:
            return difference.place
    return None


def _watched(module: nn.Module, method: str) -> bool:
    return method == "__call__" and isinstance(module, WATCHED)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model: Transformer, params: Params, ids: Ids) -> Any:
    # Padding may be on the left too, so places are counted over the tokens.
    places = [
        (segments > 0).cumsum(axis=1) - 1
        for segments in (ids.input_segment_ids, ids.target_segment_ids)
    ]
    _, state = model.apply(
        {"params": params},
        ids.inputs,
        ids.decoder_inputs,
        input_segment_ids=ids.input_segment_ids,
        target_segment_ids=ids.target_segment_ids,
        input_positions=places[0].clip(0),
        target_positions=places[1].clip(0),
        deterministic=True,
        capture_intermediates=_watched,
        mutable=["intermediates"],
    )
    return state["intermediates"]
