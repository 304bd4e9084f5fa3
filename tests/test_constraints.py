"""Constraints on tables: against all sequences, and against a plain loop."""

from typing import Any

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
from transformer_jax.search.result import penalty_table

VOCAB, LENGTH = 4, 4
ALL_PREFIXES = (VOCAB - 1) ** (LENGTH - 1)
BANNED = [(1, 2), (3, 3, 1), (2, 2), (1, 1)]


def too_short(least):
    return lambda history, token: token == EOS and len(history) < least


def repeats(size):
    def forbids(history, token):
        longer = (*history, token)
        ngrams = [longer[i : i + size] for i in range(len(longer) - size + 1)]
        return ngrams[-1:] != [] and ngrams[-1] in ngrams[:-1]

    return forbids


def is_banned(sequences):
    def forbids(history, token):
        longer = (*history, token)
        return any(longer[-len(each) :] == each for each in sequences)

    return forbids


CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "minimum": ([minimum_length(2, EOS)], [too_short(2)]),
    "unigrams": ([no_repeated_ngram(1)], [repeats(1)]),
    "bigrams": ([no_repeated_ngram(2)], [repeats(2)]),
    "longer than any target": ([no_repeated_ngram(9)], []),
    "sequences": ([banned_sequences(BANNED)], [is_banned(BANNED)]),
    "all": (
        [
            minimum_length(3, EOS),
            no_repeated_ngram(1),
            banned_sequences(BANNED),
            banned_tokens([3]),
        ],
        [too_short(3), repeats(1), is_banned([*BANNED, (3,)])],
    ),
}
EVERY_CASE = pytest.mark.parametrize(
    ("constraints", "rules"), CASES.values(), ids=CASES.keys()
)
PREFIXES = [(), (2,), (3, 3), (1, 2), (), ()]
LIMITS = [4, 4, 4, 4, 3, 4]


def stacked(prefixes) -> jnp.ndarray:
    """Prefixes of any lengths, behind the start token."""
    width = 1 + max(map(len, prefixes))
    rows = [(START, *each) + (FREE,) * (width - 1 - len(each)) for each in prefixes]
    return jnp.array(rows)


def forbidden(rules, tokens, place, *, prefix, limit) -> bool:
    """Whether the token at `place` may not stand there; what must come may."""
    if place < len(prefix) or place == limit - 1:
        return False
    return any(rule(tuple(tokens[:place]), tokens[place]) for rule in rules)


def allowed_targets(table, rules, *, prefix, limit) -> list[Hypothesis]:
    """All targets that keep the rules, best first."""
    penalties = penalty_table("average", 1.0, limit)
    found = []
    for tokens in all_targets(table.shape[-1], limit, prefix):
        if not any(
            forbidden(rules, tokens, place, prefix=prefix, limit=limit)
            for place in range(len(tokens))
        ):
            total = log_probability(table, tokens)
            score = total / float(penalties[len(tokens)])
            found.append(Hypothesis(tokens, total, score))
    return sorted(found, key=lambda each: -each.score)


def plain_greedy(table, rules, *, prefix, limit) -> list[Hypothesis]:
    """The likeliest token that may stand at each place; nothing where none may."""
    tokens: list[int] = []
    while EOS not in tokens:
        place = len(tokens)
        choices = range(table.shape[-1])
        if place < len(prefix):
            choices = [prefix[place]]
        elif place == limit - 1:
            choices = [EOS]
        choices = [
            token
            for token in choices
            if not forbidden(rules, [*tokens, token], place, prefix=prefix, limit=limit)
        ]
        if not choices:
            return []
        tokens.append(
            max(choices, key=lambda each: log_probability(table, [*tokens, each]))
        )
    total = log_probability(table, tokens)
    return [Hypothesis(tuple(tokens), total, total / len(tokens))]


def assert_is_all(found, sentence, expected) -> None:
    """Those that are expected, and nothing after them."""
    number = found.scores.shape[1]
    assert_is(found, sentence, expected[:number])
    assert np.isneginf(found.scores[sentence, len(expected) :]).all()
    assert not found.lengths[sentence, len(expected) :].any()


@EVERY_CASE
def test_with_enough_beams_all_targets_that_keep_the_rules_are_found(
    constraints, rules
):
    table = random_table(21, sentences=6, length=LENGTH, vocab=VOCAB)
    found = search(
        table,
        beam_size=ALL_PREFIXES,
        n=8,
        prefix=stacked(PREFIXES),
        max_lengths=jnp.array(LIMITS),
        constraints=constraints,
    )
    changed = False
    for sentence in range(6):
        options: dict[str, Any] = {
            "prefix": PREFIXES[sentence],
            "limit": LIMITS[sentence],
        }
        expected = allowed_targets(table[sentence], rules, **options)
        assert_is_all(found, sentence, expected)
        changed |= expected[:8] != allowed_targets(table[sentence], [], **options)[:8]
    assert changed == bool(rules)


@EVERY_CASE
@pytest.mark.parametrize("beam_size", [0, 1])
def test_greedy_search_takes_the_best_that_keeps_the_rules(
    beam_size, constraints, rules
):
    table = random_table(22, sentences=6, length=LENGTH, vocab=VOCAB)
    found = search(
        table,
        beam_size=beam_size,
        prefix=stacked(PREFIXES),
        max_lengths=jnp.array(LIMITS),
        constraints=constraints,
    )
    for sentence in range(6):
        expected = plain_greedy(
            table[sentence], rules, prefix=PREFIXES[sentence], limit=LIMITS[sentence]
        )
        assert_is_all(found, sentence, expected)


@pytest.mark.parametrize("beam_size", [0, 1, 3])
def test_nothing_is_found_where_everything_is_forbidden(beam_size):
    # Three words, none twice, and at least four: dead unless the end must come before.
    table = random_table(23, sentences=3, length=6, vocab=4)
    found = search(
        table,
        beam_size=beam_size,
        constraints=(no_repeated_ngram(1), minimum_length(4, EOS)),
        max_lengths=jnp.array([6, 4, 5]),
    )
    assert found.lengths[:, 0].tolist() == [0, 4, 0]
    assert not found.tokens[[0, 2]].any()
    assert np.isneginf(found.scores[[0, 2]]).all()
    assert sorted(found.tokens[1, 0].tolist()) == [EOS, 0, 0, 1, 2, 3]


def test_a_dead_beam_leaves_the_others_alone():
    # After a, nothing but the end may come, and the end may not come yet.
    a, b = 1, 2
    table = np.full((1, 4, 3, 3, 3), -3.0, np.float32)
    table[:, 0, ..., a] = 3.0
    rules: list[Any] = [banned_sequences([(a, a), (a, b)]), minimum_length(2, EOS)]
    assert search(table, constraints=rules).lengths.tolist() == [[0]]
    found = search(table, beam_size=2, constraints=rules)
    assert found.tokens[0, 0, 0] == b
    assert found.tokens[0, 0, found.lengths[0, 0] - 1] == EOS
