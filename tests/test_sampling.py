"""Samples come as often as they are likely, and do not depend on their neighbours."""

from collections import Counter
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from test_beam import (
    EOS,
    START,
    all_targets,
    empty_cache,
    log_probability,
    random_table,
    table_step,
)
from test_beam import search as other_search
from test_engine import LENGTHS, found_by, make_decoder, make_sentences

from transformer_jax.config import SearchConfig
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.result import SearchResult
from transformer_jax.search.sampling import (
    draw_tokens,
    nucleus,
    sample_keys,
    sample_search,
)

SAMPLES = 4000


def sample(table, *, samples=5, seed=3, numbers=None, **rest) -> SearchResult:
    sentences, length = table.shape[:2]
    numbers = range(sentences) if numbers is None else numbers
    options: dict[str, Any] = {
        "prefix": jnp.full((sentences, 1), START),
        "draws": jnp.array([[seed, number] for number in numbers], jnp.uint32),
        "max_length": length,
        "samples": samples,
        "eos_id": EOS,
    }

    @jax.jit
    def run(memory):
        cache = empty_cache(sentences * samples)
        return sample_search(table_step, cache, memory, **options | rest)

    return jax.device_get(run(jnp.asarray(table)))


def targets_of(found: SearchResult, sentence: int = 0) -> list[tuple[int, ...]]:
    both = zip(found.tokens[sentence], found.lengths[sentence], strict=True)
    return [tuple(tokens[:length].tolist()) for tokens, length in both]


def assert_drawn_from(probabilities: dict[Any, float], drawn: list[Any]) -> None:
    """Pearson's chi-square, at a level of one in a thousand; rare ones together."""
    counts = Counter(drawn)
    assert set(counts) <= {key for key, p in probabilities.items() if p > 0}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
    expected = {key: p * len(drawn) for key, p in probabilities.items()}
    cells = [[e, counts[key]] for key, e in expected.items() if e >= 5]
    rare = [[e, counts[key]] for key, e in expected.items() if e < 5]
    if sum(e for e, _ in rare) >= 5:
        cells.append(np.sum(rare, axis=0))
    wanted, got = np.array(cells).T
    assert len(wanted) > 1
    assert ((got - wanted) ** 2 / wanted).sum() < chi2.ppf(0.999, len(wanted) - 1)


def test_targets_come_as_often_as_they_are_likely():
    table = random_table(1, sentences=2, length=3, vocab=4)
    found = sample(table, samples=SAMPLES)
    for sentence in range(2):
        likely = table[sentence].copy()
        likely[-1] = np.where(np.arange(4) == EOS, 0, -np.inf)  # the end is forced
        probabilities = {
            target: float(np.exp(log_probability(likely, target)))
            for target in all_targets(4, 3)
        }
        assert_drawn_from(probabilities, targets_of(found, sentence))


def test_log_probabilities_are_the_models_own_and_scores_fall():
    table = random_table(2, sentences=3, length=5, vocab=4)
    found = sample(table, samples=7, temperature=0.5, top_k=3, top_p=0.9)
    for sentence in range(3):
        for rank, target in enumerate(targets_of(found, sentence)):
            assert target[-1] == EOS
            total = log_probability(table[sentence], target)
            np.testing.assert_allclose(
                [
                    found.log_probabilities[sentence, rank],
                    found.token_log_probabilities[sentence, rank].sum(),
                    found.scores[sentence, rank] * len(target),
                ],
                [total] * 3,
                rtol=1e-4,
            )
    assert (np.diff(found.scores, axis=-1) <= 0).all()


def plain_choice(logits, *, temperature, top_k, top_p) -> dict[int, float]:
    """The definition, with a sort: the probability of each token."""
    weights = np.exp(logits.astype(np.float64) / temperature)
    order = np.argsort(-weights, kind="stable")
    if top_k:
        order = order[:top_k]
    kept = weights[order] / weights[order].sum()
    count = next(n for n in range(1, len(kept) + 1) if n == len(kept) or
                 kept[:n].sum() >= top_p)  # fmt: skip
    kept = kept[:count] / kept[:count].sum()
    return dict(zip(order.tolist(), kept.tolist(), strict=False))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 0.4, "top_k": 0, "top_p": 1.0},
        {"temperature": 3.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 1.0, "top_k": 4, "top_p": 1.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 5, "top_p": 0.7},
    ],
    ids=str,
)
def test_tokens_come_from_the_part_that_is_asked_for(options):
    logits = np.random.default_rng(4).normal(size=9).astype(np.float32)
    rows = jnp.broadcast_to(jnp.asarray(logits), (2, SAMPLES // 2, 9))
    draws, places = jnp.array([[0, 5], [0, 6]], jnp.uint32), jnp.array([3, 3])
    keys = sample_keys(draws, places, samples=SAMPLES // 2)
    drawn = np.asarray(jax.jit(lambda k, x: draw_tokens(k, x, **options))(keys, rows))
    assert_drawn_from(plain_choice(logits, **options), drawn.ravel().tolist())


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_sorting(top_p):
    logits = 3 * np.random.default_rng(5).normal(size=(20, 300)).astype(np.float32)
    logits[3, ::2] = -np.inf
    found = np.isfinite(np.asarray(jax.jit(nucleus)(logits, top_p)))
    for row, inside in zip(logits, found, strict=True):
        expected = plain_choice(row, temperature=1.0, top_k=0, top_p=top_p)
        assert set(np.flatnonzero(inside)) == set(expected)


def test_equals_enter_the_nucleus_together():
    logits = jnp.log(jnp.array([0.2, 0.4, 0.2, 0.2]))
    assert jnp.isfinite(nucleus(logits, 0.5)).all()
    assert jnp.isfinite(nucleus(logits, 0.4)).tolist() == [False, True, False, False]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_the_likeliest_token_alone_is_greedy_search(options):
    table = random_table(6, sentences=4, length=6, vocab=5)
    limits = jnp.array([6, 0, 3, 6])
    options |= {"max_lengths": limits, "constraints": (banned_tokens((3,)),)}
    found = sample(table, samples=2, **options)
    options = {key: options[key] for key in ("max_lengths", "constraints")}
    greedy = other_search(table, **options)
    for rank in range(2):
        one = jax.tree.map(lambda x, rank=rank: x[:, rank : rank + 1], found)
        chex.assert_trees_all_equal(one.tokens, greedy.tokens)
        chex.assert_trees_all_close(one, greedy, rtol=1e-5)


def test_a_prefix_is_kept_and_banned_tokens_never_come():
    table = random_table(7, sentences=1, length=5, vocab=4)
    prefix = jnp.array([[START, 2, 3]])
    banned = (banned_tokens((1,)),)
    found = sample(table, samples=50, prefix=prefix, constraints=banned)
    targets = targets_of(found)
    assert {target[:2] for target in targets} == {(2, 3)}
    assert len(set(targets)) > 3
    assert not any(1 in target for target in targets)


def test_neighbours_change_no_bit_but_seed_and_number_do():
    table = random_table(9, sentences=6, length=6, vocab=5)
    order = np.array([4, 2, 5, 0, 3, 1])
    straight = sample(table)
    chex.assert_trees_all_equal(sample(table), straight)
    shuffled = sample(table[order], numbers=order)
    chex.assert_trees_all_equal(shuffled, jax.tree.map(lambda x: x[order], straight))
    assert (sample(table, seed=4).tokens != straight.tokens).any()
    assert (sample(table, numbers=range(1, 7)).tokens != straight.tokens).any()
    # One sentence six times, under six numbers.
    same = sample(np.repeat(table[:1], 6, axis=0), samples=20)
    assert len({str(targets_of(same, i)) for i in range(6)}) == 6


SEARCH = SearchConfig(method="sampling", n_best=3, top_k=12, temperature=0.7)


def numbered(sentences, seed=0):
    return [each._replace(draw=(seed, each.index)) for each in sentences]


def test_through_the_engine_places_change_no_bit():
    sentences = numbered(make_sentences([min(length, 7) for length in LENGTHS]))
    straight = found_by(make_decoder(SEARCH), sentences)
    chex.assert_tree_all_finite([each.scores for each in straight])
    order = np.random.default_rng(0).permutation(len(sentences))
    shuffled = found_by(make_decoder(SEARCH), [sentences[i] for i in order])
    chex.assert_trees_all_equal(shuffled, straight)
    other = found_by(make_decoder(SEARCH), numbered(sentences, seed=1))
    differ = [
        (one.tokens != two.tokens).any()
        for one, two in zip(other, straight, strict=True)
    ]
    assert np.mean(differ) > 0.5
