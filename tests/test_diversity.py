"""Diverse beam search against a plain loop."""

from typing import Any

import chex
import numpy as np
import pytest
from test_beam import (
    EOS,
    Hypothesis,
    assert_is,
    log_probability,
    random_table,
    search,
)

from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.result import penalty_table


def plain_diverse_beam(table, limit, *, rate, beam_size, n, banned=()):
    """The definition as a loop: siblings are ranked, charged, and then compared."""
    penalties = penalty_table("average", 1.0, limit)
    live, ended = [()], []
    for place in range(limit):
        if len(ended) >= beam_size or not live:
            break
        candidates = []
        for tokens in live:
            ways = [EOS] if place == limit - 1 else range(table.shape[-1])
            siblings = [(*tokens, way) for way in ways if way not in banned]
            siblings.sort(key=lambda each: -log_probability(table, each))
            for rank, each in enumerate(siblings):
                charged = log_probability(table, each) - rate * rank
                candidates.append((charged, each))
        candidates.sort(key=lambda each: -each[0])
        best = [tokens for _, tokens in candidates[: 2 * beam_size]]
        ended += [tokens for tokens in best[:beam_size] if tokens[-1] == EOS]
        live = [tokens for tokens in best if tokens[-1] != EOS][:beam_size]
    found = []
    for tokens in ended:
        total = log_probability(table, tokens)
        found.append(Hypothesis(tokens, total, total / float(penalties[len(tokens)])))
    return sorted(found, key=lambda each: -each.score)[:n]


@pytest.mark.parametrize(
    ("rate", "beam_size", "banned"), [(0.3, 3, ()), (1.5, 3, ()), (0.7, 4, (2,))]
)
def test_equals_a_plain_loop(rate, beam_size, banned):
    table = random_table(21, sentences=6, length=6, vocab=6)
    options: dict[str, Any] = {"beam_size": beam_size, "n": beam_size}
    constraints = (banned_tokens(banned),) if banned else ()
    found = search(
        table, stop="beams", diversity_rate=rate, constraints=constraints, **options
    )
    differ = 0
    for sentence in range(6):
        plain = {"limit": 6, "banned": banned, **options}
        expected = plain_diverse_beam(table[sentence], rate=rate, **plain)
        assert_is(found, sentence, expected)
        differ += expected != plain_diverse_beam(table[sentence], rate=0.0, **plain)
    assert differ >= 2


def test_a_prohibitive_rate_leaves_each_beam_its_own_first_choice():
    """From the start the K first tokens differ; then beams only go straight on."""
    table = np.array(random_table(22, sentences=5, length=5, vocab=6))
    table[:, :-1, ..., EOS] = -30
    found = search(table, beam_size=3, n=3, stop="bound", diversity_rate=100.0)
    for sentence in range(5):
        first = [tokens[0] for tokens in found.tokens[sentence]]
        assert len(set(first)) == 3
        for tokens, length in zip(
            found.tokens[sentence], found.lengths[sentence], strict=True
        ):
            history = [1, 1, *tokens]
            for place in range(1, length - 1):
                row = table[sentence, place, history[place], history[place + 1]]
                assert tokens[place] == np.argmax(row)


def test_neighbours_change_no_bit():
    table = random_table(23, sentences=4, length=5, vocab=5)
    options: dict[str, Any] = {"beam_size": 3, "n": 2, "diversity_rate": 0.5}
    both = search(table, **options), search(table[::-1].copy(), **options)
    chex.assert_trees_all_equal(both[0].tokens, both[1].tokens[::-1])
    chex.assert_trees_all_equal(both[0].scores, both[1].scores[::-1])
