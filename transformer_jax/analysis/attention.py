"""Attention maps: what each head of each layer looks at, for a pair of sentences."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from transformer_jax.data.batching import Batch, stack_rows
from transformer_jax.data.examples import make_example
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.types import Params

WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's mark before a piece that begins a word."""


class Attention(NamedTuple):
    """Attention weights of a batch, as numpy arrays in float32.

    The last axis is what is attended to: it sums to 1, or to 0 where a query is
    padding. Layers differ between the stacks when their depths do.
    """

    encoder_self: np.ndarray
    """[layers, B, N, S, S]."""
    decoder_self: np.ndarray
    """[layers, B, N, T, T]; zero above the diagonal."""
    cross: np.ndarray
    """[layers, B, N, T, S]."""


class AttentionMaps(NamedTuple):
    """Attention weights of one sentence pair, with the pieces that label their axes."""

    source: list[str]
    """What the encoder reads: both axes of `encoder_self`, columns of `cross`."""
    decoder_inputs: list[str]
    """What the decoder is fed, start included: both axes of `decoder_self`."""
    targets: list[str]
    """The piece predicted at each place, end included: rows of `cross`. Place t is fed
    `decoder_inputs[t]` and looks at the source in order to write `targets[t]`."""
    encoder_self: np.ndarray
    """[layers, N, S, S]."""
    decoder_self: np.ndarray
    """[layers, N, T, T]."""
    cross: np.ndarray
    """[layers, N, T, S]."""


def capture_attention(model: nn.Module, params: Params, batch: Batch) -> Attention:
    """The attention weights of every layer, from one forward pass without dropout."""
    sown = intermediates(model, params, batch)
    return Attention(
        encoder_self=_stack(sown["encoder"], "self_attention"),
        decoder_self=_stack(sown["decoder"], "self_attention"),
        cross=_stack(sown["decoder"], "cross_attention"),
    )


def attention_maps(
    model: nn.Module, params: Params, tokenizer: Tokenizer, source: str, target: str
) -> AttentionMaps:
    """The maps of one sentence and a translation of it (any text; often the model's).

    >>> from transformer_jax.testing import tiny_model, tiny_tokenizer
    >>> tokenizer = tiny_tokenizer()
    >>> sizes = {"source_vocab_size": tokenizer.source_vocab_size}
    >>> sizes["target_vocab_size"] = tokenizer.target_vocab_size
    >>> model, params = tiny_model(**sizes)
    >>> maps = attention_maps(model, params, tokenizer, "ein Bier", "a beer")
    >>> maps.cross.shape[-2:] == (len(maps.targets), len(maps.source))
    True
    """
    if not source.strip():
        raise ValueError("The sentence is empty: give one that has words.")
    example = make_example((source, target), tokenizer, model.config)
    shape = (1, len(example["inputs"]), len(example["targets"]))
    batch = stack_rows([[example]], shape, tokenizer.pad_id)
    weights = capture_attention(model, params, batch)
    return AttentionMaps(
        source=tokenizer.source_pieces(example["inputs"].tolist()),
        decoder_inputs=tokenizer.target_pieces(example["decoder_inputs"].tolist()),
        targets=tokenizer.target_pieces(example["targets"].tolist()),
        encoder_self=weights.encoder_self[:, 0],
        decoder_self=weights.decoder_self[:, 0],
        cross=weights.cross[:, 0],
    )


def axis_labels(pieces: list[str]) -> list[str]:
    """Pieces as they are shown: words stand free, a dot marks what goes on a word.

    >>> axis_labels(["▁ein", "▁Bier", "chen", "</s>"])
    ['ein', 'Bier', '·chen', '</s>']
    """
    shown = []
    for piece in pieces:
        special = piece.startswith("<") and piece.endswith(">")
        begins = piece.startswith(WORD_START)
        shown.append(
            (piece.removeprefix(WORD_START) or "·")
            if begins or special
            else f"·{piece}"
        )
    return shown


@functools.partial(jax.jit, static_argnums=0)
def intermediates(model: nn.Module, params: Params, batch: Batch) -> Any:
    """What the modules of the model leave behind when asked to."""
    _, state = model.apply(
        {"params": params},
        batch.inputs,
        batch.decoder_inputs,
        input_segment_ids=batch.input_segment_ids,
        target_segment_ids=batch.target_segment_ids,
        input_positions=batch.input_positions,
        target_positions=batch.target_positions,
        deterministic=True,
        mutable=["intermediates"],
    )
    return state["intermediates"]


def _stack(sown: Any, module: str) -> np.ndarray:
    """The weights that a module of each layer left behind: [layers, B, N, T, S]."""
    layers = sorted(
        (name for name in sown if name.startswith("layer_")),
        key=lambda name: int(name.removeprefix("layer_")),
    )
    weights = [sown[layer][module]["attention"][0] for layer in layers]
    return np.stack([np.asarray(each, np.float32) for each in weights])
