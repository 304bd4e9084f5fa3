"""Greedy search in blocks gives what greedy search gives, in fewer passes."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models.cache import init_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.search.beams import FREE
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.greedy import greedy_search
from transformer_jax.search.parallel_greedy import (
    Drafted,
    ParallelResult,
    parallel_greedy_search,
)
from transformer_jax.search.result import SearchResult
from transformer_jax.testing import tiny_batch, tiny_model
from transformer_jax.types import StepOutput

EOS, START = 0, 1
SENTENCES, LENGTH, VOCAB = 40, 7, 5


def table_step(tokens, positions, cache, memory):
    """Logits after two tokens, from a table [B, T, V, V, V]. The token before the last
    is read from the cache [R, T], so that a cache that went astray is noticed."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    places = positions[:, None] + jnp.arange(tokens.shape[1])[None, :]
    cache = cache.at[rows, places].set(tokens)
    before = jnp.where(places > 0, cache[rows, jnp.maximum(places - 1, 0)], START)
    return StepOutput(memory[rows, places, before, tokens]), cache


def random_table(seed: int, sharpness=1.0, sentences=SENTENCES) -> np.ndarray:
    shape = (sentences, LENGTH, VOCAB, VOCAB, VOCAB)
    logits = np.random.default_rng(seed).normal(size=shape)
    logits[..., EOS] -= 1.0
    return (sharpness * logits).astype(np.float32)


def unread(sentences=SENTENCES) -> jax.Array:
    return jnp.full((sentences, LENGTH), 3, jnp.int32)


def mixed_jobs() -> dict[str, jax.Array]:
    """Forced beginnings of none, one and four tokens; limits from none to all."""
    prefix = np.full((SENTENCES, 5), FREE)
    prefix[:, 0] = START
    prefix[::3, 1] = 3
    prefix[::5, 1:] = [2, 4, 3, 2]
    limits = np.random.default_rng(3).integers(0, LENGTH + 1, SENTENCES)
    return {"prefix": jnp.array(prefix), "max_lengths": jnp.array(limits)}


# In the shapes of `mixed_jobs`, so that both are compiled once.
FREELY = {
    "prefix": jnp.full((SENTENCES, 5), FREE).at[:, 0].set(START),
    "max_lengths": jnp.full((SENTENCES,), LENGTH),
}


def options(sentences=SENTENCES) -> dict[str, Any]:
    prefix = jnp.full((sentences, 1), START)
    return {"prefix": prefix, "max_length": LENGTH, "eos_id": EOS, "alpha": 0.7}


@jax.jit
def greedily(table, rest) -> SearchResult:
    settings = options(table.shape[0]) | rest
    return greedy_search(table_step, unread(table.shape[0]), table, **settings)


@jax.jit(static_argnames="block")
def in_blocks(table, rest, block) -> ParallelResult:
    settings = options(table.shape[0]) | rest
    cache = unread(table.shape[0])
    return parallel_greedy_search(table_step, cache, table, block=block, **settings)


@jax.jit(static_argnames="block")
def with_draft(table, draft, rest, block) -> ParallelResult:
    return parallel_greedy_search(
        table_step,
        Drafted(unread(), unread()),
        Drafted(table, draft),
        draft=table_step,
        block=block,
        **options() | rest,
    )


def assert_same(found: ParallelResult, expected: SearchResult, block: int) -> None:
    """Tokens, probabilities, and passes that are neither too few nor too many."""
    chex.assert_trees_all_equal(found.found.tokens, expected.tokens)
    chex.assert_trees_all_equal(found.found.lengths, expected.lengths)
    chex.assert_trees_all_close(found.found, expected, rtol=1e-6)
    passes, lengths = found.effort.passes, expected.lengths[:, 0]
    assert np.all(passes <= lengths)
    assert np.all(block * passes >= lengths)


@pytest.mark.parametrize("rest", [FREELY, mixed_jobs()], ids=["free", "mixed"])
@pytest.mark.parametrize("block", [2, 5])
def test_finds_what_greedy_search_finds(block, rest):
    table = random_table(0)
    expected = greedily(table, rest)
    assert len(set(np.asarray(expected.lengths[:, 0]))) > 3
    found = in_blocks(table, rest, block)
    assert_same(found, expected, block)
    assert found.effort.passes.sum() < expected.lengths.sum()
    drafted = with_draft(table, table + random_table(1, 0.5), rest, block)
    assert_same(drafted, expected, block)
    assert drafted.effort.passes.sum() < found.effort.passes.sum()


def test_a_draft_that_is_right_saves_most_passes_and_one_that_is_wrong_none():
    table, block = random_table(0), 5
    expected = greedily(table, FREELY)
    lengths = expected.lengths[:, 0]
    right = with_draft(table, table, FREELY, block)
    assert_same(right, expected, block)
    chex.assert_trees_all_equal(right.effort.passes, -(-lengths // block))
    wrong = with_draft(table, -table, FREELY, block)
    assert_same(wrong, expected, block)
    chex.assert_trees_all_equal(wrong.effort.passes, lengths)


def jacobi_passes(table: np.ndarray, block: int) -> int:
    """The definition, as a loop over one sentence."""
    tokens, guesses, passes = [START], [EOS] * (block - 1), 0
    while tokens[-1] != EOS or len(tokens) == 1:
        read = [START, *tokens, *guesses]
        place = len(tokens) - 1
        choices = []
        for i in range(place, min(place + block, LENGTH)):
            choice = int(table[i, read[i], read[i + 1]].argmax())
            choices.append(EOS if i + 1 == LENGTH else choice)
        passes += 1
        for i, choice in enumerate(choices):
            tokens.append(choice)
            if choice == EOS or i == block - 1 or guesses[i] != choice:
                break
        left = choices[i + 1 :]
        guesses = (left + [(left or choices)[-1]] * block)[: block - 1]
        for i in range(block - 1):
            if len(tokens) + i >= LENGTH:
                guesses[i] = EOS
    return passes


@pytest.mark.parametrize("block", [2, 5])
def test_guesses_are_what_the_last_pass_chose(block):
    table = random_table(2)
    passes = in_blocks(table, FREELY, block).effort.passes
    assert passes.tolist() == [jacobi_passes(each, block) for each in table]


def test_what_must_come_is_read_a_block_at_a_time():
    prefix = jnp.array([[START, 2, 4, 3, 2]] * SENTENCES)
    rest = {"prefix": prefix, "max_lengths": jnp.full((SENTENCES,), 5)}
    found = in_blocks(random_table(0), rest, 5)
    assert found.found.tokens[:, 0, :5].tolist() == [[2, 4, 3, 2, EOS]] * SENTENCES
    assert set(found.effort.passes.tolist()) == {1}
    assert np.all(np.isinf(found.effort.smallest_gap))


def test_the_smallest_gap_is_that_of_the_places_that_were_chosen():
    table, rest = random_table(0), mixed_jobs()
    found, effort = in_blocks(table, rest, 5)
    for sentence in range(SENTENCES):
        history, gaps = [START, START], [np.inf]
        limit = int(rest["max_lengths"][sentence])
        prefix = rest["prefix"][sentence]
        limit = max(limit, int((prefix != FREE).sum())) if limit else 0
        for place in range(int(found.lengths[sentence, 0])):
            logits = table[sentence, place, history[-2], history[-1]]
            second, best = np.sort(logits)[-2:]
            inside = place + 1 < len(prefix) and prefix[place + 1] != FREE
            if not inside and place + 1 < limit:
                gaps.append(best - second)
            history.append(int(found.tokens[sentence, 0, place]))
        assert effort.smallest_gap[sentence] == pytest.approx(min(gaps))


def test_constraints_hold_and_neighbours_change_no_bit():
    table = random_table(5)
    constraints = (banned_tokens([2, 4]),)

    @jax.jit
    def both(table):
        sizes: dict[str, Any] = {**options(table.shape[0]), "constraints": constraints}
        cache = unread(table.shape[0])
        return (
            greedy_search(table_step, cache, table, **sizes),
            parallel_greedy_search(table_step, cache, table, block=3, **sizes),
        )

    expected, found = both(table)
    assert_same(found, expected, 3)
    assert not np.isin(found.found.tokens, [2, 4]).any()
    order = np.random.default_rng(0).permutation(SENTENCES)
    shuffled = jax.tree.map(lambda x: x[np.argsort(order)], both(table[order])[1])
    chex.assert_trees_all_equal(shuffled, found)


def test_a_block_needs_a_guess():
    with pytest.raises(ValueError, match="block is 1"):
        parallel_greedy_search(table_step, unread(), (), block=1, **options())


@pytest.mark.parametrize("drafted", [False, True])
def test_a_transformer_with_a_cache_no_longer_than_its_targets(drafted):
    """What is read beyond its last place is dropped."""
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "norm_position": "pre"}
    model, params = tiny_model(**sizes, output_bias=True)
    other = tiny_model(1, **sizes, output_bias=True)[1]
    params["output"]["bias"] = params["output"]["bias"].at[2].add(-0.5)
    batch = tiny_batch(source_lengths=(5, 3, 4, 6, 1, 2), target_lengths=(1,) * 6)
    settings = {"max_length": 11, "eos_id": 2, "prefix": jnp.full((6, 1), START)}
    block, step_of = 4, functools.partial(make_step_fn, model)

    @jax.jit
    def both(params, other):
        def memory_of(params):
            return encode_memory(model, params, batch.inputs, batch.input_segment_ids)

        cache, memory = init_cache(model.config, 6, 11), memory_of(params)
        expected = greedy_search(step_of(params), cache, memory, **settings)
        rest: dict[str, Any] = {"block": block, **settings}
        if drafted:
            cache, memory = Drafted(cache, cache), Drafted(memory, memory_of(other))
            rest["draft"] = step_of(other)
        found = parallel_greedy_search(step_of(params), cache, memory, **rest)
        return expected, found

    for draft in (other, params):
        expected, found = both(params, draft)
        assert found.effort.smallest_gap.min() > 1e-4  # no near ties
        chex.assert_trees_all_equal(found.found.tokens, expected.tokens)
        chex.assert_trees_all_close(found.found, expected, atol=1e-4)
        lengths, passes = expected.lengths[:, 0], found.effort.passes
        assert lengths.max() == 11
        assert np.all(passes <= lengths)
        if drafted and draft is params:
            chex.assert_trees_all_equal(passes, -(-lengths // block))
