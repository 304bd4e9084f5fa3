"""Captured attention: distributions over what may be seen, and nothing else."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.analysis.attention import (
    attention_maps,
    axis_labels,
    capture_attention,
)
from transformer_jax.data.batching import Batch
from transformer_jax.testing import tiny_model, tiny_tokenizer

INPUTS = [[5, 6, 7, 2, 0, 0], [8, 5, 6, 7, 9, 2]]
SOURCE_SEGMENTS = [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
DECODER_INPUTS = [[1, 9, 8, 7], [1, 6, 0, 0]]
TARGETS = [[9, 8, 7, 2], [6, 2, 0, 0]]
TARGET_SEGMENTS = [[1, 1, 1, 1], [1, 1, 0, 0]]


def padded_batch() -> Batch:
    """Two pairs of lengths (4, 4) and (6, 2) in rows of 6 and 4 places."""
    ids = (INPUTS, SOURCE_SEGMENTS, DECODER_INPUTS, TARGETS, TARGET_SEGMENTS)
    inputs, sources, decoder_inputs, targets, target_segments = map(jnp.asarray, ids)
    return Batch(
        inputs=inputs,
        input_segment_ids=sources,
        input_positions=jnp.arange(6)[None, :] * sources,
        decoder_inputs=decoder_inputs,
        targets=targets,
        target_segment_ids=target_segments,
        target_positions=jnp.arange(4)[None, :] * target_segments,
    )


@pytest.fixture(scope="module")
def deep_model():
    return tiny_model(num_encoder_layers=3)


@pytest.fixture(scope="module")
def captured(deep_model):
    model, params = deep_model
    return model.config, capture_attention(model, params, padded_batch())


def test_one_map_a_layer_a_sentence_and_a_head(captured):
    config, weights = captured
    N = config.num_heads
    assert weights.encoder_self.shape == (3, 2, N, 6, 6)
    assert weights.decoder_self.shape == (2, 2, N, 4, 4)
    assert weights.cross.shape == (2, 2, N, 4, 6)


def test_words_give_all_their_attention_and_padding_gets_none(captured):
    _, weights = captured
    source, target = np.array(SOURCE_SEGMENTS), np.array(TARGET_SEGMENTS)
    for maps, looking, looked_at in (
        (weights.encoder_self, source, source),
        (weights.decoder_self, target, target),
        (weights.cross, target, source),
    ):
        given = maps.sum(axis=-1)  # [layers, B, N, T]
        expected = np.broadcast_to(looking[None, :, None, :], given.shape)
        chex.assert_trees_all_close(given, expected.astype(np.float32), atol=1e-5)
        hidden = np.broadcast_to(looked_at[None, :, None, None, :] == 0, maps.shape)
        assert not maps[hidden].any()


def test_no_word_looks_at_later_ones(captured):
    _, weights = captured
    later = np.triu(np.ones((4, 4), bool), k=1)
    assert not weights.decoder_self[..., later].any()
    # The first word can look at itself alone.
    np.testing.assert_allclose(weights.decoder_self[..., 0, 0], 1, atol=1e-6)


def test_the_encoder_looks_both_ways(captured):
    _, weights = captured
    assert (weights.encoder_self[:, 1] > 0).all()


def softmax(x: np.ndarray) -> np.ndarray:
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def embed(params: Any, tokens: list[int], width: int) -> np.ndarray:
    """Embeddings times √D plus the paper's sinusoids, written out."""
    table = np.asarray(params["shared_embedding"]["embedding"], np.float64)
    encoded = np.empty((len(tokens), width))
    for place in range(len(tokens)):
        for i in range(0, width, 2):
            angle = place / 10_000 ** (i / width)
            encoded[place, i : i + 2] = math.sin(angle), math.cos(angle)
    return table[tokens] * math.sqrt(width) + encoded


def by_hand(params: Any, x: np.ndarray) -> np.ndarray:
    """softmax(q kᵀ / √H) of all pairs, without a mask: [N, T, T]."""
    query, key = (jax.tree.map(np.asarray, params[name]) for name in ("query", "key"))
    heads, size = query["kernel"].shape[1:]
    maps = []
    for n in range(heads):
        q = x @ query["kernel"][:, n] + query["bias"][n]
        k = x @ key["kernel"][:, n] + key["bias"][n]
        maps.append(q @ k.T / math.sqrt(size))
    return np.stack(maps)


def test_first_layers_equal_attention_computed_by_hand():
    """Post-norm: the first layer of each stack projects the embeddings themselves."""
    model, params = tiny_model(norm_position="post", tied_embeddings="all")
    width = model.config.d_model
    weights = capture_attention(model, params, padded_batch())

    x = embed(params, INPUTS[1], width)
    layer = params["encoder"]["layer_0"]["self_attention"]
    np.testing.assert_allclose(
        weights.encoder_self[0, 1], softmax(by_hand(layer, x)), atol=1e-5
    )

    x = embed(params, DECODER_INPUTS[0], width)
    layer = params["decoder"]["layer_0"]["self_attention"]
    earlier = np.tril(np.ones((4, 4), bool))
    logits = np.where(earlier, by_hand(layer, x), -np.inf)
    np.testing.assert_allclose(weights.decoder_self[0, 0], softmax(logits), atol=1e-5)


def test_maps_do_not_depend_on_the_other_sentences_or_on_padding(deep_model, captured):
    (model, params), (_, together) = deep_model, captured
    alone = jax.tree.map(lambda x: x[:1], padded_batch())
    alone = alone._replace(
        inputs=alone.inputs[:, :4],
        input_segment_ids=alone.input_segment_ids[:, :4],
        input_positions=alone.input_positions[:, :4],
    )
    weights = capture_attention(model, params, alone)
    chex.assert_trees_all_close(
        (weights.encoder_self[:, 0], weights.cross[:, 0]),
        (together.encoder_self[:, 0, :, :4, :4], together.cross[:, 0, :, :, :4]),
        atol=1e-5,
    )


def test_rematerialised_layers_show_the_same_maps(deep_model, captured):
    model, params = deep_model
    remat = model.clone(config=dataclasses.replace(model.config, remat=True))
    again = capture_attention(remat, params, padded_batch())
    chex.assert_trees_all_close(again, captured[1], atol=1e-6)


def test_maps_of_a_pair_carry_its_pieces():
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
    )
    maps = attention_maps(model, params, tokenizer, "ein Bier", "a beer")
    S, T = len(maps.source), len(maps.targets)
    assert maps.encoder_self.shape[2:] == (S, S)
    assert maps.decoder_self.shape[2:] == (T, T)
    assert maps.cross.shape[2:] == (T, S)
    assert "".join(axis_labels(maps.source)).replace("·", "") == "einBier</s>"
    assert "".join(axis_labels(maps.targets)).replace("·", "") == "abeer</s>"
    assert maps.decoder_inputs == ["<s>", *maps.targets[:-1]]


def test_an_empty_sentence_is_an_error():
    tokenizer = tiny_tokenizer()
    model, params = tiny_model()
    with pytest.raises(ValueError, match="empty"):
        attention_maps(model, params, tokenizer, " ", "a beer")
