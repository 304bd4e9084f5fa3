"""The first tokens of sentences that wait, found in one row each."""

from collections import deque
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import SearchConfig
from transformer_jax.models.attention import KeyValue
from transformer_jax.models.cache import (
    DecoderCache,
    begun_cache,
    init_cache,
    placed_cache,
    write_cache,
)
from transformer_jax.search.beam import advance_beams
from transformer_jax.search.beams import FREE, alive, first_beams, make_job
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.result import penalty_table
from transformer_jax.testing import TINY_VOCAB_SIZE, tiny_config, tiny_model
from transformer_jax.translation import engine, preparing
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.ensembles import Ensemble
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.sentences import Sentence
from transformer_jax.translation.side_by_side import side_by_side

B, K, V, T, EOS, START = 5, 3, 300, 6, 2, 1
LIMITS = (6, 1, 0, 6, 4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": "first"},
        {"diversity_rate": 0.7},
        {"coverage_penalty": 0.3},
        {"prefix": [[START, 7], [START, FREE], [START, 8], [START, FREE], [START, 9]]},
        {"phrases": np.arange(10, 10 + B * 4).reshape(B, 2, 2)},
    ],
    ids=["plain", "first", "diverse", "coverage", "prefix", "phrases"],
)
def test_one_row_gives_the_beams_that_several_give(options):
    options = dict(options)
    prefix = jnp.array(options.pop("prefix", [[START]] * B))
    phrases = options.pop("phrases", None)
    phrases = None if phrases is None else jnp.asarray(phrases)
    job = make_job(prefix, jnp.array(LIMITS), max_length=T, phrases=phrases)
    logits = np.random.default_rng(0).normal(size=(B, 1, V)).astype(np.float32) * 3
    logits[3, 0, EOS] = 20.0  # ends at once, beside others that go on
    options = {"stop": "beams", "coverage_penalty": 0.0, **options}

    def begun(rows: int):
        start = first_beams(job, None, beam_size=rows, n_best=2, max_length=T)
        if options["coverage_penalty"]:
            looked = jnp.linspace(0.1, 0.9, B * 4).reshape(B, 1, 4)
            start = start._replace(coverage=jnp.repeat(looked, rows, axis=1))
        return advance_beams(
            jnp.repeat(logits, rows, axis=1),
            start,
            eos_id=EOS,
            penalties=penalty_table("average", 1.0, T),
            constraints=(banned_tokens((0, START)),),
            beam_size=K,
            **options,
        )

    one, several = begun(1), begun(K)
    live = np.asarray(several.log_probabilities) > -np.inf
    assert alive(several).tolist() == [limit > 1 for limit in LIMITS]
    chex.assert_trees_all_equal_shapes(one, several)
    chex.assert_trees_all_equal(one.finished.tokens, several.finished.tokens)
    chex.assert_trees_all_close(one.finished, several.finished, atol=1e-5)
    chex.assert_trees_all_equal(one.num_finished, several.num_finished)
    chex.assert_trees_all_equal(one.lengths, several.lengths)
    scores = one.log_probabilities, several.log_probabilities
    chex.assert_trees_all_close(*scores, atol=1e-5)
    chex.assert_trees_all_equal(one.tokens[live], several.tokens[live])
    chex.assert_trees_all_equal(one.parents[live], several.parents[live])
    kept: Any = (one.coverage, one.progress), (several.coverage, several.progress)
    (coverage, progress), (all_coverage, all_progress) = kept
    if coverage is not None:
        chex.assert_trees_all_equal(coverage[live], all_coverage[live])
    if progress is not None:
        matched = all_progress.matched[live]
        assert matched.max() == 1
        chex.assert_trees_all_equal(progress.matched[live], matched)


def random_cache(seed: int, sentences: int, length: int, beams: int) -> DecoderCache:
    """One in which every number is another."""
    empty = init_cache(tiny_config().model, sentences, length, beams=beams)
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(draw.integers(1, 10**6, x.shape), x.dtype), empty
    )


def test_a_cache_that_has_begun_is_that_of_rows_which_wrote_the_same():
    old, first = random_cache(0, B, T, K), random_cache(1, 2, 1, 1)
    begun = begun_cache(old, first, jnp.array([3, B]))
    zeros = jnp.zeros((B * K, 1), jnp.int32)
    places = old.places(zeros)
    for layer, before, new in zip(begun.layers, old.layers, first.layers, strict=True):
        rows = jax.tree.map(lambda x: jnp.repeat(x[:1], B * K, axis=0), new)
        written = write_cache(before, KeyValue(*rows), places)
        np.testing.assert_array_equal(layer.key[3, ..., 0], written.key[3, ..., 0])
        np.testing.assert_array_equal(layer.value[3, :, 0], written.value[3, :, 0])
        for now, was in zip(layer, before, strict=True):
            np.testing.assert_array_equal(np.delete(now, 3, 0), np.delete(was, 3, 0))
        np.testing.assert_array_equal(layer.key[3, ..., 1:], before.key[3, ..., 1:])
        np.testing.assert_array_equal(layer.value[3, :, 1:], before.value[3, :, 1:])
    ancestors = np.array(old.ancestors).reshape(B, K, T)
    ancestors[3, :, 0] = 0
    np.testing.assert_array_equal(begun.ancestors.reshape(B, K, T), ancestors)


@pytest.mark.parametrize("beams", [1, K])
@pytest.mark.parametrize("length", [T - 2, T, T + 3])
def test_sentences_take_their_past_to_another_cache(beams, length):
    old, other = random_cache(0, B, T, beams), random_cache(1, 2, length, beams)
    placed = placed_cache(old, other, jnp.array([4, B]))
    both = min(T, length)
    chex.assert_trees_all_equal_shapes(placed, old)

    def by_sentence(cache: DecoderCache):
        """Keys and values [B, N, T·K, H] of each layer, and ancestors [B, K, T]."""
        turn = cache.beams > 1
        for key, value in cache.layers:
            yield from ((key.swapaxes(2, 3) if turn else key), value)
        yield cache.ancestors.reshape(-1, beams, cache.ancestors.shape[1])

    views = (by_sentence(placed), by_sentence(old), by_sentence(other))
    for now, was, theirs in zip(*views, strict=True):
        held = both if now.ndim == 3 else both * beams  # of an axis of T, of one of T·K
        np.testing.assert_array_equal(now[4][:, :held], theirs[0][:, :held])
        np.testing.assert_array_equal(now[4][:, held:], was[4][:, held:])
        np.testing.assert_array_equal(now[:4], was[:4])


def sentences() -> list[Sentence]:
    """Some have room for one token, and some for two."""
    draw = np.random.default_rng(5)
    return [
        Sentence(
            index,
            draw.integers(4, TINY_VOCAB_SIZE, 2 + index % 7).astype(np.int32),
            (1, 2, 14, 9)[index % 4],
        )
        for index in range(17)
    ]


def model_and_params(members: int) -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"num_encoder_layers": 1, "num_decoder_layers": 2}
    found = [tiny_model(seed, norm_position="pre", **sizes) for seed in range(members)]
    if members == 1:
        return found[0]
    models, params = zip(*found, strict=True)
    return Ensemble(models), params


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"stop": "first"}, {"coverage_penalty": 0.4}, {"diversity_rate": 0.5}],
    ids=["plain", "first", "coverage", "diverse"],
)
def test_slots_find_the_same_whether_sentences_begin_before_or_in_them(
    members, options, monkeypatch
):
    search = SearchConfig(beam_size=K, n_best=2, **options)
    plan = SearchPlan(search, 16, START, EOS, banned=(0, START))
    model, params = model_and_params(members)

    def found() -> list[Any]:
        decoder = Decoder(model, params, plan, slots=4, length=16)
        results = side_by_side([decoder.run(deque(sentences()))])
        return sorted(results, key=lambda each: each.index)

    begun = []

    def begin(*parts, **rest):
        begun.append(preparing.begin(*parts, **rest))
        return begun[-1]

    monkeypatch.setattr(engine, "begin", begin)
    with_it = found()
    assert len(begun) == 5, "four sentences at a time"
    assert all(state.beams.lengths.max() == 1 for state in begun)
    monkeypatch.setattr(engine, "may_begin", lambda model, plan: False)
    without = found()
    assert len(begun) == 5
    for one, other in zip(with_it, without, strict=True):
        assert one.index == other.index
        chex.assert_trees_all_equal(one.result.tokens, other.result.tokens)
        chex.assert_trees_all_close(one.result, other.result, atol=1e-5)


@pytest.mark.parametrize(
    ("search", "begins"),
    [
        (SearchConfig(beam_size=K), True),
        (SearchConfig(beam_size=1), False),
        (SearchConfig(method="greedy"), False),
        (SearchConfig(method="sampling", n_best=4), False),
        (SearchConfig(beam_size=TINY_VOCAB_SIZE + 1), False),
    ],
)
def test_who_begins(search, begins):
    model, _ = model_and_params(1)
    plan = SearchPlan(search, 16, START, EOS, banned=())
    assert preparing.may_begin(model, plan) == begins
