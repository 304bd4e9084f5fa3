"""Greedy search on tables, and on a model read all at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models.cache import init_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.search.greedy import greedy_search
from transformer_jax.testing import tiny_batch, tiny_model
from transformer_jax.types import StepOutput

EOS, START = 0, 1


def table_step(tokens, positions, cache, memory):
    """Logits of the token after (place, token), from a table [B, T, V, V]."""
    places = positions[:, None] + jnp.arange(tokens.shape[1])[None, :]
    rows = jnp.arange(tokens.shape[0])[:, None]
    return StepOutput(memory[rows, places, tokens]), cache


def random_table(seed: int, *, sentences=5, length=8, vocab=6) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(sentences, length, vocab, vocab)).astype(np.float32)


def search(table, **rest):
    sentences, length = table.shape[:2]
    rest = {"prefix": jnp.full((sentences, 1), START), "max_length": length} | rest
    run = jax.jit(
        lambda memory: greedy_search(table_step, (), memory, eos_id=EOS, **rest)
    )
    return jax.device_get(run(table))


def plain_greedy(table, limit, prefix=()):
    """The definition as a loop over one sentence: tokens, log-probabilities."""
    tokens, scores, token = [], [], START
    while token != EOS and len(tokens) < limit:
        logits = np.asarray(table[len(tokens), token], np.float64)
        if len(tokens) < len(prefix):
            token = prefix[len(tokens)]
        else:
            token = EOS if len(tokens) + 1 == limit else int(logits.argmax())
        tokens.append(token)
        scores.append(logits[token] - np.log(np.exp(logits).sum()))
    return tokens, scores


@pytest.mark.parametrize("prefix", [(), (3,), (2, 4)])
def test_equals_a_plain_loop(prefix):
    table = random_table(0)
    limits = [8, 8, 3, 4, 6]
    found = search(
        table,
        prefix=jnp.array([[START, *prefix]] * 5),
        max_lengths=jnp.array(limits),
    )
    for sentence, limit in enumerate(limits):
        tokens, scores = plain_greedy(table[sentence], limit, prefix)
        length = len(tokens)
        assert found.lengths[sentence, 0] == length
        assert found.tokens[sentence, 0].tolist() == tokens + [0] * (8 - length)
        of_tokens = found.token_log_probabilities[sentence, 0]
        np.testing.assert_allclose(of_tokens[:length], scores, rtol=1e-5)
        assert not of_tokens[length:].any()
        total = found.log_probabilities[sentence, 0]
        np.testing.assert_allclose(total, sum(scores), rtol=1e-5)
        np.testing.assert_allclose(
            found.scores[sentence, 0], sum(scores) / length, rtol=1e-5
        )


def test_neighbours_change_no_bit():
    table, others = random_table(1), random_table(2)
    others[3] = table[0]
    here = jax.tree.map(lambda x: x[0], search(table))
    there = jax.tree.map(lambda x: x[3], search(others))
    chex.assert_trees_all_equal(here, there)


def test_a_limit_of_zero_asks_for_nothing():
    found = search(random_table(3), max_lengths=jnp.array([0, 8, 8, 8, 8]))
    assert found.lengths[0, 0] == 0
    assert not found.tokens[0].any()
    assert np.isneginf(found.scores[0, 0])
    assert found.lengths[1:].all()


def test_a_model_read_step_by_step_chooses_as_when_read_at_once():
    model, params = tiny_model(norm_position="pre")
    batch, length = tiny_batch(), 9
    start = jnp.full((3, 1), START, jnp.int32)
    places = jnp.arange(length)[None, :]

    @jax.jit
    def by_steps(params):
        return greedy_search(
            make_step_fn(model, params),
            init_cache(model.config, 3, length),
            encode_memory(model, params, batch.inputs, batch.input_segment_ids),
            prefix=start,
            max_length=length,
            eos_id=2,
        )

    @jax.jit
    def at_once(params, tokens, lengths):
        logits = model.apply(
            {"params": params},
            batch.inputs,
            jnp.concatenate([start, tokens[:, :-1]], axis=1),
            input_segment_ids=batch.input_segment_ids,
            target_segment_ids=(places < lengths).astype(jnp.int32),
            input_positions=batch.input_positions,
            target_positions=jnp.broadcast_to(places, tokens.shape),
            deterministic=True,
        )
        return jax.nn.log_softmax(jnp.asarray(logits))

    found = by_steps(params)
    tokens = found.tokens[:, 0]
    scores = np.asarray(at_once(params, tokens, found.lengths))
    inside = np.asarray(places < found.lengths)
    chosen = np.take_along_axis(scores, np.asarray(tokens)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(
        np.where(inside, chosen, 0.0), found.token_log_probabilities[:, 0], atol=1e-4
    )
    free = inside & (np.arange(length) < length - 1)[None, :]
    np.testing.assert_array_equal(scores.argmax(axis=-1)[free], tokens[free])
