"""Which source word each word of a translation comes from, by cross-attention."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.analysis.attention import intermediates
from transformer_jax.data.batching import Batch, lengths, stack_rows
from transformer_jax.data.examples import Example
from transformer_jax.data.pipeline import round_length
from transformer_jax.models.transformer import Transformer
from transformer_jax.translation.ensembles import Ensemble
from transformer_jax.translation.hypotheses import (
    Hypothesis,
    Translation,
    as_translation,
)
from transformer_jax.translation.planning import full_rows, next_power_of_four
from transformer_jax.translation.translator import BATCH_TOKENS, Translator
from transformer_jax.translation.words import source_words, target_words
from transformer_jax.types import Array, Params

Links = tuple[tuple[int, int], ...]
"""Pairs (source word, target word), one for each target word, in its order."""


class _Pair(NamedTuple):
    """A line and one of its translations, as the model reads them."""

    line: int
    rank: int
    example: Example


def align(
    translator: Translator,
    lines: Sequence[str],
    translations: Sequence[Translation],
    *,
    layer: int | None = None,
    pieces: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Translation]:
    """The translations of these lines, with an `alignment` in every hypothesis.

    The model reads each pair once more. The attention with which a piece is written is
    the mean over the heads of the decoder's `layer` (from 0; -1 is the last), or of all
    layers. That of a word to a word: see `most_attended`. Words are counted as in
    `words`; with `pieces`, pieces take their place. Start and end tokens have no links.
    """
    if isinstance(translator.model, Ensemble):
        raise ValueError(
            "An ensemble has no attention of its own: align with one of its models."
        )
    layer = checked_layer(layer, translator.model.config.num_decoder_layers)
    config, tokenizer = translator.model.config, translator.tokenizer
    pairs = list(_pairs(translator, lines, translations))
    found: dict[tuple[int, int], Links] = {}
    for batch, of_rows in _batches(translator, pairs, batch_tokens):
        weights = jax.device_get(
            mean_attention(
                translator.params, batch, model=translator.model, layer=layer
            )
        )
        for row, (line, rank, example) in enumerate(of_rows):
            begin = int(config.source_bos)
            count = len(example["inputs"]) - config.source_specials
            ids = example["targets"].tolist()
            if pieces:
                special = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
                sources = list(range(count))
                targets = [-1 if i in special else t for t, i in enumerate(ids)]
            else:
                sources = source_words(tokenizer, lines[line], count)
                targets = target_words(tokenizer, ids)
            found[line, rank] = most_attended(
                weights[row, : len(ids), begin : begin + count], targets, sources
            )
    return [
        _with_links(translation, [found.get((line, rank), ()) for rank in range(n)])
        for line, translation in enumerate(translations)
        for n in [len(translation.hypotheses)]
    ]


def most_attended(
    weights: np.ndarray, targets: Sequence[int], sources: Sequence[int]
) -> Links:
    """Attention [T, S] between pieces, and the word of each piece → links of words.

    A word attends to another with the sum over the pieces of both. Each target word is
    linked to the source word with the most (the first among equals); pieces of word -1
    are left out.

    >>> weights = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    >>> most_attended(weights, [0, 1], [0, 1, 1])
    ((0, 0), (1, 1))
    """
    to_target, to_source = _membership(targets), _membership(sources)
    present = to_target.any(axis=1)
    if not to_source.size:
        return ()
    mass = to_target @ weights.astype(np.float64) @ to_source.T  # [words, words]
    best = mass.argmax(axis=1)
    return tuple((int(best[word]), int(word)) for word in np.flatnonzero(present))


@functools.partial(jax.jit, static_argnames=("model", "layer"))
def mean_attention(
    params: Params, batch: Batch, *, model: Transformer, layer: int | None
) -> Array:
    """Cross-attention of each target place, the mean over heads and over layers or of
    one layer: [B, T, S]."""
    decoder: Any = intermediates(model, params, batch)["decoder"]
    layers = range(model.config.num_decoder_layers) if layer is None else [layer]
    chosen = [
        decoder[f"layer_{i}"]["cross_attention"]["attention"][0].mean(axis=1)
        for i in layers
    ]
    return jnp.stack(chosen).mean(axis=0)


def checked_layer(layer: int | None, layers: int) -> int | None:
    """The layer counted from 0; an error if the decoder has none of that number.

    >>> checked_layer(-2, 6)
    4
    """
    if layer is None:
        return None
    if not -layers <= layer < layers:
        raise ValueError(
            f"The layer to align by is {layer}, but the decoder has {layers}: give a "
            f"number from 0 to {layers - 1}, or from -1 down to {-layers} to count "
            "from the last."
        )
    return layer % layers


def _pairs(
    translator: Translator, lines: Sequence[str], translations: Sequence[Translation]
) -> Iterator[_Pair]:
    """Those that have words on both sides."""
    start = translator.start_id
    for line, (text, translation) in enumerate(zip(lines, translations, strict=True)):
        inputs = translator.cut(translator.source_ids(text))
        for rank, hypothesis in enumerate(translation.hypotheses):
            if not hypothesis.ids:
                continue
            targets = np.array(hypothesis.ids, np.int32)
            fed = np.concatenate([np.array([start], np.int32), targets[:-1]])
            example = Example(inputs=inputs, decoder_inputs=fed, targets=targets)
            yield _Pair(line, rank, example)


def _batches(
    translator: Translator, pairs: Sequence[_Pair], batch_tokens: int
) -> Iterator[tuple[Batch, Sequence[_Pair]]]:
    """Longest first, in few shapes, with the pairs of the first rows."""
    order = sorted(pairs, key=lambda pair: max(lengths(pair.example)), reverse=True)
    start = 0
    while start < len(order):
        longest = max(lengths(order[start].example))
        most = translator.model.config.num_positions
        length = max(longest, min(round_length(longest), most))
        rows = full_rows(batch_tokens, length)
        rows = min(rows, next_power_of_four(len(order) - start))
        chosen = order[start : start + rows]
        examples = [[pair.example] for pair in chosen]
        shape = (rows, length, length)
        yield stack_rows(examples, shape, translator.tokenizer.pad_id), chosen
        start += rows


def _membership(words: Sequence[int]) -> np.ndarray:
    """[words, pieces]: 1 where a piece is of a word."""
    count = max(words, default=-1) + 1
    return (np.arange(count)[:, None] == np.array(words)[None, :]).astype(np.float64)


def _with_links(translation: Translation, links: Sequence[Links]) -> Translation:
    hypotheses: list[Hypothesis] = [
        dataclasses.replace(each, alignment=alignment)
        for each, alignment in zip(translation.hypotheses, links, strict=True)
    ]
    return as_translation(
        tuple(hypotheses), truncated=translation.truncated, missing=translation.missing
    )
