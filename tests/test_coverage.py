"""The coverage penalty on tables with made-up attention, against the formula."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beam import EOS, START, all_targets, empty_cache, random_table, table_step

from transformer_jax.search.beam import beam_search
from transformer_jax.search.greedy import greedy_search
from transformer_jax.search.result import penalty_table

SENTENCES, VOCAB, LENGTH, SOURCE = 4, 4, 4, 3
MASK = np.array(
    [
        [True, True, True],
        [True, True, False],
        [True, False, False],
        [True, True, True],
    ]
)
TABLE = random_table(31, sentences=SENTENCES, length=LENGTH, vocab=VOCAB)


def make_attention() -> np.ndarray:
    """[B, T, V, V, S] by place and the two tokens before; none on padding. The last
    sentence never looks at its last token at all."""
    draw = np.random.default_rng(32)
    weights = (
        draw.gamma(0.5, size=(*TABLE.shape[:4], SOURCE)) * MASK[:, None, None, None]
    )
    weights[3, ..., 2] = 0.0
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


ATTENTION = make_attention()


def attending_step(tokens, positions, cache, memory):
    table, attention = memory
    output, new = table_step(tokens, positions, cache, table)
    places = positions[:, None] + jnp.arange(tokens.shape[1])[None, :]
    rows = jnp.repeat(attention, len(tokens) // len(attention), axis=0)
    looks = rows[
        jnp.arange(len(tokens))[:, None], places, cache["token"][:, None], tokens
    ]
    return output._replace(attention=looks), new


def search(beam_size: int, *, penalty: float, n=1, stop: Any = "bound", **rest):
    options: dict[str, Any] = {
        "prefix": jnp.full((SENTENCES, 1), START),
        "max_length": LENGTH,
        "eos_id": EOS,
        "length_penalty": "gnmt",
        "coverage_penalty": penalty,
        "source_mask": jnp.asarray(MASK),
    }

    @jax.jit
    def run(*memory):
        cache = empty_cache(SENTENCES * max(beam_size, 1))
        if not beam_size:
            return greedy_search(attending_step, cache, memory, **options)
        options.update(beam_size=beam_size, n_best=n, stop=stop, **rest)
        return beam_search(attending_step, cache, memory, **options)

    return jax.device_get(run(jnp.asarray(TABLE), jnp.asarray(ATTENTION)))


def score(sentence: int, tokens, *, penalty: float) -> float:
    """Equation 14, as it is written."""
    history, total = [START, START], 0.0
    covered = np.zeros(SOURCE)
    for place, token in enumerate(tokens):
        before = (sentence, place, history[-2], history[-1])
        total += float(TABLE[before][token])
        covered += ATTENTION[before]
        history.append(token)
    total /= float(penalty_table("gnmt", 1.0, LENGTH)[len(tokens)])
    for position in np.flatnonzero(MASK[sentence]):
        total += penalty * np.log(min(max(covered[position], 1e-9), 1.0))
    return total


@pytest.mark.parametrize("penalty", [0.2, 5.0])
def test_with_enough_beams_equals_brute_force(penalty):
    found = search((VOCAB - 1) ** (LENGTH - 1), penalty=penalty, n=6)
    changed = False
    for sentence in range(SENTENCES):
        targets = sorted(
            all_targets(VOCAB, LENGTH),
            key=lambda each: -score(sentence, each, penalty=penalty),
        )
        plain = sorted(targets, key=lambda each: -score(sentence, each, penalty=0.0))
        changed |= targets[:6] != plain[:6]
        for rank in range(6):
            length = found.lengths[sentence, rank]
            assert tuple(found.tokens[sentence, rank, :length]) == targets[rank]
            np.testing.assert_allclose(
                found.scores[sentence, rank],
                score(sentence, targets[rank], penalty=penalty),
                rtol=1e-4,
            )
    assert changed


def test_with_required_phrases_equals_brute_force_over_those_that_hold_them():
    phrase = (3, 2)
    rest: dict[str, Any] = {"phrases": jnp.array([[phrase]] * SENTENCES)}
    found = search(VOCAB * (VOCAB - 1) ** 2, penalty=5.0, n=3, **rest)
    for sentence in range(SENTENCES):
        targets = sorted(
            (t for t in all_targets(VOCAB, LENGTH) if phrase in itertools.pairwise(t)),
            key=lambda each: -score(sentence, each, penalty=5.0),
        )
        for rank in range(3):
            length = found.lengths[sentence, rank]
            assert tuple(found.tokens[sentence, rank, :length]) == targets[rank]


@pytest.mark.parametrize(("beam_size", "stop"), [(0, ""), (1, "beams"), (3, "beams")])
def test_what_is_found_has_the_score_of_its_own_attention(beam_size, stop):
    n = max(beam_size, 1)
    found = search(beam_size, penalty=0.5, n=n, stop=stop)
    assert found.lengths.all()
    for sentence in range(SENTENCES):
        for rank in range(n):
            length = found.lengths[sentence, rank]
            tokens = found.tokens[sentence, rank, :length].tolist()
            np.testing.assert_allclose(
                found.scores[sentence, rank],
                score(sentence, tokens, penalty=0.5),
                rtol=1e-4,
            )


def test_what_coverage_needs_is_asked_for():
    rest: dict[str, Any] = {
        "prefix": jnp.full((SENTENCES, 1), START),
        "max_length": LENGTH,
        "eos_id": EOS,
        "coverage_penalty": 0.2,
    }
    cache = empty_cache(SENTENCES)
    with pytest.raises(ValueError, match="there is no source_mask"):
        greedy_search(table_step, cache, jnp.asarray(TABLE), **rest)
    rest["source_mask"] = jnp.asarray(MASK)
    with pytest.raises(ValueError, match="a step function that gives attention"):
        greedy_search(table_step, cache, jnp.asarray(TABLE), **rest)
