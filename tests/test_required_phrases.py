"""Beam search with required phrases against brute force, on small tables."""

import functools
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
    brute_force,
    log_probability,
    random_table,
    search,
)

from transformer_jax.search.beams import FREE
from transformer_jax.search.constraints import (
    banned_sequences,
    banned_tokens,
    minimum_length,
)
from transformer_jax.search.required import first_progress, matched_after
from transformer_jax.search.result import penalty_table

VOCAB, LENGTH = 4, 5
EVERY = 3**4 + 3**3
"""Beams for all prefixes of up to LENGTH - 1 tokens that any step looks at."""
ASKED = [
    [],
    [(2,)],
    [(1, 1)],
    [(2, 3), (3,)],
    [(3, 2), (1,)],
    [(1, 2), (2, 1)],  # 1 2 1 holds both
    [(1, 1, 2), (1, 1, 1)],
    [(3, 3), (1, 2), (2,)],  # just fits: 3 3 1 2 and the end
    [(1, 2), (2, 3), (3, 1)],  # 1 2 3 1 holds all
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


def holds(tokens, phrase) -> bool:
    size = len(phrase)
    return any(tuple(tokens[i : i + size]) == tuple(phrase) for i in range(len(tokens)))


def lacks(tokens, phrases) -> int:
    return sum(not holds(tokens, phrase) for phrase in phrases)


def expected_of(
    table,
    phrases,
    *,
    limit=LENGTH,
    n=4,
    kind="average",
    alpha=1.0,
    prefix=(),
    able=None,
) -> list[Hypothesis]:
    """The best of those that lack fewest; what lacks some ends at the limit alone."""
    found = {}
    for tokens in all_targets(table.shape[-1], limit, prefix):
        lacking = lacks(tokens, phrases)
        if (lacking and len(tokens) < limit) or not (able is None or able(tokens)):
            continue
        total = log_probability(table, tokens)
        score = total / float(penalty_table(kind, alpha, limit)[len(tokens)])
        found.setdefault(lacking, []).append(Hypothesis(tokens, total, score))
    if not found:
        return []
    return sorted(found[min(found)], key=lambda each: -each.score)[:n]


def assert_are(found, sentence, expected) -> None:
    assert_is(found, sentence, expected)
    assert np.isneginf(found.scores[sentence, len(expected) :]).all()
    assert not found.lengths[sentence, len(expected) :].any()


@pytest.mark.parametrize(("kind", "alpha"), [("average", 1.0), ("gnmt", 0.8)])
def test_with_enough_beams_equals_brute_force(kind, alpha):
    table = random_table(0, sentences=len(ASKED), length=LENGTH, vocab=VOCAB)
    found = search(
        table, beam_size=EVERY, n=4, kind=kind, alpha=alpha, phrases=as_array(ASKED)
    )
    for sentence, phrases in enumerate(ASKED):
        expected = expected_of(table[sentence], phrases, kind=kind, alpha=alpha)
        assert_are(found, sentence, expected)
        assert not lacks(expected[0].tokens, phrases)
