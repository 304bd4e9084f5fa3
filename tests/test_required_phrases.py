"""Beam search with required phrases: brute force and a plain loop, on small tables."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beam import (
    EOS,
    START,
    Hypothesis,
    all_targets,
    assert_is,
    log_probability,
    random_table,
    search,
)

from transformer_jax.search.beams import FREE
from transformer_jax.search.constraints import (
    banned_sequences,
    banned_tokens,
    minimum_length,
    no_repeated_ngram,
)
from transformer_jax.search.required import PRICE, first_progress, matched_after
from transformer_jax.search.result import penalty_table

VOCAB, LENGTH = 4, 5
EVERY = 3**4 + 3**3
"""Beams for all prefixes of LENGTH - 1 tokens, and for all that end there."""
ASKED = [
    [],
    [(2,)],
    [(1, 1)],
    [(2, 3), (3,)],
    [(3, 2), (1,)],
    [(1, 2), (2, 1)],  # 1 2 1 holds both
    [(1, 1, 2), (1, 1, 1)],  # 1 1 1 2
    [(3, 3), (1, 2), (2,)],  # just fits, as 1 2 3 3 or 3 3 1 2
    [(1, 2), (2, 3), (3, 1)],  # 1 2 3 1
]
TOO_MUCH = [
    [(1, 1, 1, 1, 1)],
    [(1, 2), (3, 3), (2, 2, 2)],
    [(2,), (3, 3), (1, 1)],
    [(1, 2, 3, 2, 1), (2, 2)],
]


def as_array(asked) -> jax.Array:
    """Phrases of each sentence [B, C, W]."""
    count = max(1, *(len(each) for each in asked))
    width = max(len(phrase) for each in asked for phrase in each)
    phrases = np.full((len(asked), count, width), FREE)
    for row, each in enumerate(asked):
        for column, phrase in enumerate(each):
            phrases[row, column, : len(phrase)] = phrase
    return jnp.asarray(phrases)


def lacks(tokens, phrases) -> int:
    """How many phrases are nowhere in the tokens."""
    text = "".join(map(str, tokens))
    return sum("".join(map(str, phrase)) not in text for phrase in phrases)


def brute_force(
    table,
    phrases,
    *,
    limit=LENGTH,
    n=4,
    kind: Any = "average",
    alpha=1.0,
    prefix=(),
    able=lambda tokens: True,
) -> list[Hypothesis]:
    """The best of those that lack fewest; what lacks some ends at the limit alone."""
    found = {}
    for tokens in all_targets(table.shape[-1], limit, prefix):
        lacking = lacks(tokens, phrases)
        if (lacking and len(tokens) < limit) or not able(tokens):
            continue
        total = log_probability(table, tokens)
        score = total / float(penalty_table(kind, alpha, limit)[len(tokens)])
        found.setdefault(lacking, []).append(Hypothesis(tokens, total, score))
    return sorted(found[min(found)], key=lambda each: -each.score)[:n]


def assert_are(found, sentence, expected) -> None:
    """These, and no others."""
    assert_is(found, sentence, expected)
    assert np.isneginf(found.scores[sentence, len(expected) :]).all()
    assert not found.lengths[sentence, len(expected) :].any()


def table_for(asked, seed=0, **sizes) -> np.ndarray:
    sizes = {"length": LENGTH, "vocab": VOCAB, **sizes}
    return random_table(seed, sentences=len(asked), **sizes)


def targets_of(found, sentence) -> list[list[int]]:
    """Those that were found, without their end."""
    tokens, lengths = found.tokens[sentence], found.lengths[sentence]
    return [
        each[: length - 1].tolist()
        for each, length in zip(tokens, lengths, strict=True)
        if length
    ]


def test_with_enough_beams_equals_brute_force():
    table = table_for(ASKED)
    rest: dict[str, Any] = {"kind": "gnmt", "alpha": 0.8, "n": 4}
    found = search(table, beam_size=EVERY, phrases=as_array(ASKED), **rest)
    differ = 0
    for sentence, phrases in enumerate(ASKED):
        expected = brute_force(table[sentence], phrases, **rest)
        assert_are(found, sentence, expected)
        assert not lacks(expected[0].tokens, phrases)
        differ += expected != brute_force(table[sentence], [], **rest)
    assert differ >= 6


def test_where_not_all_can_be_held_the_most_are():
    table = table_for(TOO_MUCH, seed=1)
    found = search(table, beam_size=EVERY, n=4, phrases=as_array(TOO_MUCH))
    for sentence, phrases in enumerate(TOO_MUCH):
        expected = brute_force(table[sentence], phrases)
        assert_are(found, sentence, expected)
        assert lacks(expected[0].tokens, phrases) > 0
        assert len(expected[0].tokens) == LENGTH


def test_every_sentence_has_its_own_limit():
    asked, limits = [[(1, 2)], [(1, 2)], [(1, 2)], [(3,)]], [5, 3, 2, 0]
    table = table_for(asked, seed=2)
    found = search(
        table,
        beam_size=EVERY,
        n=4,
        phrases=as_array(asked),
        max_lengths=jnp.array(limits),
    )
    for sentence in range(3):
        limit = limits[sentence]
        expected = brute_force(table[sentence], asked[sentence], limit=limit)
        assert_are(found, sentence, expected)
    assert lacks(targets_of(found, 2)[0], asked[2])
    assert not found.lengths[3].any()


def test_a_prefix_holds_phrases_too():
    asked = [[(2, 3)], [(3, 2)], [(3, 1), (2,)]]
    table = table_for(asked, seed=3)
    prefix = jnp.array([[START, 2, 3]] * 3)
    found = search(table, beam_size=EVERY, n=4, prefix=prefix, phrases=as_array(asked))
    for sentence, phrases in enumerate(asked):
        expected = brute_force(table[sentence], phrases, prefix=(2, 3))
        assert_are(found, sentence, expected)
    assert_are(found, 0, brute_force(table[0], [], prefix=(2, 3)))


CONSTRAINTS = {
    "token": (banned_tokens((2,)), lambda tokens: 2 not in tokens),
    "sequence": (banned_sequences([(1, 3)]), lambda tokens: lacks(tokens, [(1, 3)])),
    "length": (minimum_length(3, EOS), lambda tokens: len(tokens) > 3),
    "repeated": (no_repeated_ngram(1), lambda tokens: len({*tokens}) == len(tokens)),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_is_forbidden_is_passed_over(name):
    constraint, able = CONSTRAINTS[name]
    asked = [[(3,)], [(1,), (3,)], [(3, 1)]]
    table = table_for(asked, seed=4)
    rest: dict[str, Any] = {"constraints": (constraint,), "phrases": as_array(asked)}
    found = search(table, beam_size=EVERY, n=4, **rest)
    for sentence, phrases in enumerate(asked):
        assert_are(found, sentence, brute_force(table[sentence], phrases, able=able))
        assert not lacks(targets_of(found, sentence)[0], phrases)


def test_diversity_chooses_among_those_that_hold_the_phrases():
    table = table_for(ASKED, seed=5)
    rest: dict[str, Any] = {"n": 3, "diversity_rate": 0.7, "phrases": as_array(ASKED)}
    found = search(table, beam_size=EVERY, **rest)
    for sentence, phrases in enumerate(ASKED):
        assert_are(found, sentence, brute_force(table[sentence], phrases, n=3))


def plain_loop(table, phrases, *, beam_size, limit, n, enough) -> list[Hypothesis]:
    """The definition, written as a loop over texts."""

    def held(tokens) -> int:
        """Tokens of phrases that are whole, and of the one that is furthest."""
        whole = [each for each in phrases if not lacks(tokens, [each])]
        others = [each for each in phrases if each not in whole]
        ends = [
            i for each in others for i in range(len(each)) if tokens[-i:] == each[:i]
        ]
        return sum(map(len, whole)) + max(ends, default=0)

    penalties = penalty_table("average", 1.0, limit)
    size = sum(map(len, phrases))
    live, ended = [()], []
    for place in range(limit - 1):
        if len(ended) >= enough:
            break
        ways = {}
        for tokens in live:
            for token in range(table.shape[-1]):
                way = (*tokens, token)
                if token != EOS or not lacks(tokens, phrases):
                    ways[way] = log_probability(table, way)
        best = sorted(ways, key=lambda each: -ways[each])[: 2 * beam_size]
        for tokens in live:
            for phrase in phrases:
                if lacks(tokens, [phrase]):
                    there = [i for i in range(len(phrase)) if tokens[-i:] == phrase[:i]]
                    way = (*tokens, phrase[max(there, default=0)])
                    best += [way] * (way not in best)
            own = [way for way in ways if way[:-1] == tokens]
            way = max(own, key=lambda each: ways[each])
            best += [way] * (way not in best)
        best.sort(key=lambda each: -ways[each])
        furthest = max(best, key=held)  # the likeliest of them comes first
        turns = {
            way: (
                size - held(way) > limit - place - 2,
                way != furthest,
                PRICE * (size - held(way)) - ways[way],
            )
            for way in best
        }
        best.sort(key=lambda each: turns[each])
        ended += [each for each in best[:beam_size] if each[-1] == EOS]
        live = [each for each in best if each[-1] != EOS][:beam_size]
    if not ended:
        last = [(*tokens, EOS) for tokens in live]
        fewest = min(lacks(each, phrases) for each in last)
        ended = [each for each in last if lacks(each, phrases) == fewest]
    elif len(ended) < enough:
        ended += [(*each, EOS) for each in live if not lacks(each, phrases)]
    found = [(tokens, log_probability(table, tokens)) for tokens in ended]
    found = [Hypothesis(t, p, p / float(penalties[len(t)])) for t, p in found]
    return sorted(found, key=lambda each: -each.score)[:n]


@pytest.mark.parametrize("beam_size", [2, 5])
def test_small_beams_equal_a_plain_loop(beam_size):
    asked = [*ASKED, [(4, 2, 4, 2, 4, 1)], [(4,), (5,), (3,), (2,), (1, 1)]]
    table = table_for(asked, seed=6, length=8, vocab=6)
    rest: dict[str, Any] = {"beam_size": beam_size, "n": 2}
    found = search(table, stop="beams", phrases=as_array(asked), **rest)
    for sentence, phrases in enumerate(asked):
        phrases = list(map(tuple, phrases))
        expected = plain_loop(
            table[sentence], phrases, limit=8, enough=beam_size, **rest
        )
        assert_are(found, sentence, expected)
        assert all(not lacks(each, phrases) for each in targets_of(found, sentence))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_whatever_the_beam_all_are_held_where_there_is_room(beam_size):
    """A search for the likeliest would leave them all out: they cost 30 nats a token,
    and begin with each other's tokens."""
    asked = [[(1, 1, 1, 2), (1, 1, 1, 3), (2,)], [(3, 2, 3, 1), (3, 2, 3, 2)], []] * 2
    table = table_for(asked, seed=7, length=18, vocab=6)
    table = table - 30.0 * np.isin(np.arange(6), [1, 2, 3])
    limits = jnp.array([10, 9, 9, 14, 18, 18])
    options: dict[str, Any] = {"beam_size": beam_size, "n": beam_size}
    options |= {"phrases": as_array(asked), "max_lengths": limits, "stop": "beams"}
    found = search(table.astype(np.float32), **options)
    for sentence, phrases in enumerate(asked):
        targets = targets_of(found, sentence)
        assert targets
        assert all(not lacks(target, phrases) for target in targets)
        assert len({*map(tuple, targets)}) == len(targets)


def test_a_sentence_without_phrases_is_searched_as_ever():
    table = table_for(ASKED, seed=8, length=7, vocab=6)
    options: dict[str, Any] = {"beam_size": 3, "n": 3, "stop": "beams"}
    plain = search(table, **options)
    found = search(table, **options, phrases=as_array(ASKED))
    first = [jax.tree.map(lambda x: x[0], each) for each in (plain, found)]
    chex.assert_trees_all_equal(*first)
    assert (plain.tokens[1:] != found.tokens[1:]).any()


def test_neighbours_change_no_bit():
    table, order = table_for(ASKED, seed=9), np.random.default_rng(0).permutation(9)
    phrases = np.asarray(as_array(ASKED))
    options: dict[str, Any] = {"beam_size": 3, "n": 2, "stop": "beams"}
    straight = search(table, phrases=jnp.asarray(phrases), **options)
    shuffled = search(table[order], phrases=jnp.asarray(phrases[order]), **options)
    chex.assert_trees_all_equal(shuffled, jax.tree.map(lambda x: x[order], straight))


@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_the_way_through_a_phrase_is_its_longest_beginning_that_was_said(width):
    draw = np.random.default_rng(10)

    def drawn() -> tuple[int, ...]:
        """Of two tokens: some at random, again and again."""
        period, size = draw.integers(1, width + 1, 2)
        return tuple(np.resize(draw.integers(1, 3, period), size).tolist())

    asked = [[drawn() for _ in range(4)] for _ in range(20)]
    said = np.zeros((20, 12 + width), int)
    for row, phrases in zip(said, asked, strict=True):
        parts = [each[: draw.integers(1, 1 + len(each))] for each in phrases * 2]
        row[:] = np.resize(np.concatenate(parts), row.shape)
    progress = first_progress(as_array(asked), beam_size=1)
    assert progress is not None
    chex.assert_shape(progress.borders, (20, 4, width, width))
    for length in range(1, 1 + said.shape[1]):
        tokens = jnp.asarray(said[:, length - 1 : length])
        matched = jax.jit(matched_after)(progress, jnp.zeros_like(tokens), tokens)
        progress, held = progress._replace(matched=matched), np.asarray(matched)
        for sentence, phrases in enumerate(asked):
            so_far = tuple(said[sentence, :length].tolist())
            for place, phrase in enumerate(phrases):
                ends = [
                    i for i in range(len(phrase)) if so_far[length - i :] == phrase[:i]
                ]
                whole = not lacks(so_far, [phrase])
                expected = len(phrase) if whole else max(ends)
                assert held[sentence, 0, place] == expected
