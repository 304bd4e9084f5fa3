"""Beam search against brute force, and against a plain loop, on small tables."""

import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.search.beam import beam_search
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.greedy import greedy_search
from transformer_jax.search.result import SearchResult, penalty_table
from transformer_jax.types import StepOutput

EOS, START = 0, 1
PENALTIES = [("average", 1.0), ("average", 0.6), ("gnmt", 0.8), ("none", 1.0)]


def random_table(seed: int, *, sentences: int, length: int, vocab: int) -> np.ndarray:
    """Log-probabilities [B, T, V, V, V] of the next token, by sentence, place and the
    two tokens before it: enough history to notice a cache that went astray."""
    shape = (sentences, length, vocab, vocab, vocab)
    logits = 2 * np.random.default_rng(seed).normal(size=shape)
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1))


def table_step(tokens, positions, cache, memory):
    """A step over a table: the cache remembers the token fed before."""
    rows, block = tokens.shape
    table = jnp.repeat(memory, rows // memory.shape[0], axis=0)  # [R, T, V, V, V]
    before = jnp.concatenate([cache["token"][:, None], tokens[:, :-1]], axis=1)
    places = positions[:, None] + jnp.arange(block)[None, :]
    logits = table[jnp.arange(rows)[:, None], places, before, tokens]
    return StepOutput(logits), {"token": tokens[:, -1]}


def empty_cache(rows: int):
    return {"token": jnp.full((rows,), START, jnp.int32)}


class Hypothesis(NamedTuple):
    tokens: tuple[int, ...]
    log_probability: float
    score: float


def log_probability(table: np.ndarray, tokens) -> float:
    """Of one sentence's target under its table [T, V, V, V]."""
    history, total = [START, START], 0.0
    for place, token in enumerate(tokens):
        total += float(table[place, history[-2], history[-1], token])
        history.append(token)
    return total


def all_targets(vocab: int, limit: int, prefix=()):
    """Every sequence that ends with the end token, and has it nowhere else."""
    others = [token for token in range(vocab) if token != EOS]
    for length in range(len(prefix) + 1, limit + 1):
        for body in itertools.product(others, repeat=length - 1 - len(prefix)):
            yield (*prefix, *body, EOS)


def brute_force(table, limit, *, kind, alpha, n, prefix=()) -> list[Hypothesis]:
    penalties = penalty_table(kind, alpha, limit)
    found = []
    for tokens in all_targets(table.shape[-1], limit, prefix):
        total = log_probability(table, tokens)
        found.append(Hypothesis(tokens, total, total / float(penalties[len(tokens)])))
    return sorted(found, key=lambda each: -each.score)[:n]


def plain_beam(
    table, limit, *, kind, alpha, n, beam_size, enough=10**6
) -> list[Hypothesis]:
    """The definition, written as a loop that stops when `enough` have ended."""
    penalties = penalty_table(kind, alpha, limit)
    live, ended = [((), 0.0)], []
    for place in range(limit):
        if len(ended) >= enough:
            break
        candidates = []
        for tokens, _ in live:
            for token in range(table.shape[-1]):
                if place == limit - 1 and token != EOS:
                    continue
                longer = (*tokens, token)
                candidates.append((longer, log_probability(table, longer)))
        best = sorted(candidates, key=lambda each: -each[1])[: 2 * beam_size]
        ended += [each for each in best[:beam_size] if each[0][-1] == EOS]
        live = [each for each in best if each[0][-1] != EOS][:beam_size]
    found = [Hypothesis(t, p, p / float(penalties[len(t)])) for t, p in ended]
    return sorted(found, key=lambda each: -each.score)[:n]


def search(
    table,
    *,
    beam_size=0,
    kind: Any = "average",
    alpha=1.0,
    n=1,
    step=table_step,
    **rest,
) -> SearchResult:
    """Beam search, compiled; greedy search without beams."""
    sentences, length = table.shape[:2]
    options: dict[str, Any] = {
        "prefix": jnp.full((sentences, 1), START),
        "max_length": length,
        "eos_id": EOS,
        "length_penalty": kind,
        "alpha": alpha,
    }
    options |= ({"stop": "bound"} if beam_size else {}) | rest

    @jax.jit
    def run(memory):
        cache = empty_cache(sentences * max(beam_size, 1))
        if not beam_size:
            return greedy_search(step, cache, memory, **options)
        options.update(beam_size=beam_size, n_best=n)
        return beam_search(step, cache, memory, **options)

    return jax.device_get(run(jnp.asarray(table)))


def assert_is(found: SearchResult, sentence: int, expected: list[Hypothesis]) -> None:
    for rank, hypothesis in enumerate(expected):
        length = found.lengths[sentence, rank]
        assert tuple(found.tokens[sentence, rank, :length]) == hypothesis.tokens
        assert not found.tokens[sentence, rank, length:].any()
        np.testing.assert_allclose(
            [found.log_probabilities[sentence, rank], found.scores[sentence, rank]],
            [hypothesis.log_probability, hypothesis.score],
            rtol=1e-5,
            atol=1e-5,
        )
        np.testing.assert_allclose(
            found.token_log_probabilities[sentence, rank].sum(),
            hypothesis.log_probability,
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize(("kind", "alpha"), PENALTIES)
def test_with_enough_beams_equals_brute_force(kind, alpha):
    table = random_table(0, sentences=9, length=4, vocab=4)
    prefixes = 4**3
    found = search(table, beam_size=prefixes, kind=kind, alpha=alpha, n=6)
    for sentence in range(9):
        expected = brute_force(table[sentence], 4, kind=kind, alpha=alpha, n=6)
        assert_is(found, sentence, expected)


@pytest.mark.parametrize(
    ("beam_size", "kind", "alpha"),
    [(3, *penalty) for penalty in PENALTIES] + [(5, "average", 1.0)],
)
def test_stopping_early_changes_nothing(beam_size, kind, alpha):
    table = random_table(7, sentences=6, length=7, vocab=5)
    limits = np.array([7, 1, 2, 5, 7, 3])
    found = search(
        table,
        beam_size=beam_size,
        kind=kind,
        alpha=alpha,
        n=beam_size,
        max_lengths=jnp.asarray(limits),
    )
    for sentence, limit in enumerate(limits):
        expected = plain_beam(
            table[sentence],
            limit,
            kind=kind,
            alpha=alpha,
            n=beam_size,
            beam_size=beam_size,
        )
        assert_is(found, sentence, expected)
        assert np.isneginf(found.scores[sentence, len(expected) :]).all()


@pytest.mark.parametrize(("stop", "n"), [("beams", 2), ("beams", 4), ("first", 1)])
def test_a_search_stops_when_enough_have_ended(stop, n):
    table = random_table(17, sentences=6, length=7, vocab=5)
    options: dict[str, Any] = {"kind": "average", "alpha": 1.0, "n": n, "beam_size": 4}
    found = search(table, stop=stop, **options)
    differ = False
    for sentence in range(6):
        enough = {"beams": 4, "first": n}[stop]
        expected = plain_beam(table[sentence], 7, enough=enough, **options)
        assert_is(found, sentence, expected)
        differ |= expected != plain_beam(table[sentence], 7, **options)
    assert differ


def test_a_drawn_table_where_greedy_is_wrong():
    #  place 0: a .6  b .4   then after a: end .5, a .3, b .2; after b: end .9, …
    end, a, b = EOS, 1, 2
    table = np.full((1, 3, 3, 3, 3), 1e-9)
    table[0, 0, :, :, [a, b]] = np.array([0.6, 0.4])[:, None, None]
    table[0, 1, :, a, :] = [0.5, 0.3, 0.2]
    table[0, 1, :, b, :] = [0.9, 0.05, 0.05]
    table[0, 2, :, :, :] = [0.8, 0.1, 0.1]
    table = np.log(table / table.sum(axis=-1, keepdims=True)).astype(np.float32)
    greedy = search(table, beam_size=1, kind="none")
    beam = search(table, beam_size=2, kind="none")
    assert greedy.tokens[0, 0].tolist() == [a, end, 0]
    assert beam.tokens[0, 0].tolist() == [b, end, 0]
    np.testing.assert_allclose(np.exp(beam.log_probabilities[0, 0]), 0.36, rtol=1e-5)


@pytest.mark.parametrize(("kind", "alpha"), [("average", 1.0), ("gnmt", 0.8)])
def test_one_beam_is_greedy_search(kind, alpha):
    table = random_table(3, sentences=8, length=9, vocab=6)
    limits = jnp.array([9, 9, 9, 1, 2, 0, 5, 9])
    options = {"max_lengths": limits, "kind": kind, "alpha": alpha}
    beam, greedy = search(table, beam_size=1, **options), search(table, **options)
    chex.assert_trees_all_close(beam, greedy, rtol=1e-6)
    chex.assert_trees_all_equal(beam.tokens, greedy.tokens)


def test_a_forced_prefix_is_kept_and_counted():
    table = random_table(11, sentences=2, length=5, vocab=4)
    prefix = jnp.array([[START, 2, 3], [START, 3, 3]])
    found = search(table, beam_size=4**2, n=5, prefix=prefix)
    for sentence, forced in enumerate([(2, 3), (3, 3)]):
        expected = brute_force(
            table[sentence], 5, kind="average", alpha=1.0, n=5, prefix=forced
        )
        assert_is(found, sentence, expected)


def test_a_limit_leaves_room_for_the_prefix_and_the_end():
    table = random_table(11, sentences=1, length=5, vocab=4)
    prefix = jnp.array([[START, 2, 3]])
    found = search(table, beam_size=2, prefix=prefix, max_lengths=jnp.array([1]))
    assert found.tokens[0, 0].tolist() == [2, 3, EOS, 0, 0]
    with pytest.raises(ValueError, match="room for the end token"):
        search(table, beam_size=2, prefix=prefix, max_length=2)


def test_n_best_are_different_whole_and_in_order():
    table = random_table(5, sentences=4, length=6, vocab=5)
    found = search(table, beam_size=5, n=5)
    assert (np.diff(found.scores, axis=-1) <= 0).all()
    for sentence in range(4):
        targets = {tuple(tokens) for tokens in found.tokens[sentence]}
        assert len(targets) == 5
        for tokens, length in zip(
            found.tokens[sentence], found.lengths[sentence], strict=True
        ):
            assert tokens[length - 1] == EOS
            assert EOS not in tokens[: length - 1]


def test_fewer_n_best_are_the_first_of_more():
    table = random_table(6, sentences=4, length=6, vocab=5)
    many = search(table, beam_size=4, n=4)
    one = search(table, beam_size=4, n=1)
    chex.assert_trees_all_equal(one, jax.tree.map(lambda x: x[:, :1], many))


def test_equals_are_broken_by_beam_and_then_by_token():
    even = np.full((1, 3, 4, 4, 4), np.log(0.25), np.float32)
    found = search(even, beam_size=3, kind="none", n=3)
    assert found.tokens[0].tolist() == [[EOS, 0, 0], [1, EOS, 0], [1, 1, EOS]]
    assert search(even).tokens[0, 0].tolist() == [EOS, 0, 0]


def test_neighbours_change_no_bit():
    table = random_table(9, sentences=6, length=6, vocab=5)
    order = np.array([4, 2, 5, 0, 3, 1])
    straight = search(table, beam_size=3, n=2)
    shuffled = search(table[order], beam_size=3, n=2)
    chex.assert_trees_all_equal(shuffled, jax.tree.map(lambda x: x[order], straight))
    others = random_table(10, sentences=6, length=6, vocab=5).copy()
    others[2] = table[2]
    mixed = search(others, beam_size=3, n=2)
    pick = lambda found: jax.tree.map(lambda x: x[2], found)  # noqa: E731
    chex.assert_trees_all_equal(pick(mixed), pick(straight))


def test_a_limit_of_zero_asks_for_nothing():
    table = random_table(9, sentences=2, length=4, vocab=5)
    found = search(table, beam_size=3, n=2, max_lengths=jnp.array([0, 4]))
    assert not found.tokens[0].any()
    assert not found.lengths[0].any()
    assert np.isneginf(found.scores[0]).all()
    assert found.lengths[1].all()


def test_search_ends_when_the_last_sentence_is_done():
    steps = []

    def counted(tokens, positions, cache, memory):
        jax.debug.callback(lambda: steps.append(1))
        return table_step(tokens, positions, cache, memory)

    certain = np.full((2, 50, 3, 3, 3), -20.0, np.float32)
    certain[..., 2] = 0.0
    certain[:, 4, ..., EOS] = 20.0
    found = search(certain, beam_size=2, step=counted)
    assert found.lengths.tolist() == [[5], [5]]
    jax.effects_barrier()
    assert len(steps) < 20


def test_an_unknown_penalty_is_named():
    with pytest.raises(ValueError, match="choose 'average', 'gnmt' or 'none'"):
        penalty_table("wu", 1.0, 3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("beam_size", [0, 1, 3])
def test_banned_tokens_are_passed_over_and_the_others_keep_their_probabilities(
    beam_size,
):
    table = random_table(8, sentences=4, length=4, vocab=4)
    found = search(table, beam_size=beam_size, constraints=(banned_tokens((2,)),))
    assert (search(table, beam_size=beam_size).tokens == 2).any()
    for sentence in range(4):
        length = found.lengths[sentence, 0]
        tokens = found.tokens[sentence, 0, :length]
        assert 2 not in tokens
        np.testing.assert_allclose(
            found.log_probabilities[sentence, 0],
            log_probability(table[sentence], tokens),
            rtol=1e-5,
        )
