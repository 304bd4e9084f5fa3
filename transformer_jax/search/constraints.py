"""Tokens that a target may not have next.

A constraint is a pure function of logits [B, K, V] and the beams that gives logits in
which forbidden tokens are -inf. Those that are left keep their log-probabilities: they
are not normalised anew. One that is not asked for is not in the compiled program.

A token that must come (that of a prefix, and the end at the last place) comes although
it is forbidden. A beam for which all tokens are forbidden dies.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from transformer_jax.search.beams import FREE, Beams
from transformer_jax.types import Array

Constraint = Callable[[Array, Beams], Array]


def banned_tokens(tokens: Sequence[int]) -> Constraint:
    """None of `tokens`, anywhere."""

    def constrain(logits: Array, beams: Beams) -> Array:
        forbidden = np.zeros((1, 1, logits.shape[-1]), bool)
        forbidden[..., list(tokens)] = True
        return jnp.where(forbidden, -jnp.inf, logits)

    return constrain


def banned_sequences(sequences: Sequence[Sequence[int]]) -> Constraint:
    """None of `sequences`, each of at least two tokens, anywhere.

    The last token of a sequence is forbidden where those before it have just come.
    """
    width = max(len(each) for each in sequences) - 1
    before = np.full((1, 1, len(sequences), width), FREE, np.int32)  # FREE: any token
    for row, sequence in enumerate(sequences):
        before[..., row, width - len(sequence) + 1 :] = sequence[:-1]
    last = np.array([each[-1] for each in sequences], np.int32)

    def constrain(logits: Array, beams: Beams) -> Array:
        tail = last_tokens(beams, width)[:, :, None]  # [B, K, 1, width]
        said = jnp.all((before == FREE) | (before == tail), axis=-1)
        return logits.at[:, :, last].min(jnp.where(said, -jnp.inf, jnp.inf))

    return constrain


def minimum_length(min_length: int, eos_id: int) -> Constraint:
    """No end before the target has `min_length` tokens, the end not counted."""

    def constrain(logits: Array, beams: Beams) -> Array:
        short = (beams.lengths < min_length)[:, None, None]
        ends = (np.arange(logits.shape[-1]) == eos_id)[None, None, :]
        return jnp.where(short & ends, -jnp.inf, logits)

    return constrain


def no_repeated_ngram(size: int) -> Constraint:
    """No `size` tokens in a row that the target has held before, as n-grams may
    overlap; with size 1, no token twice.

    Those of a forced prefix count as held, and may themselves be repetitions. The start
    token belongs to none. The end comes once, and so is never forbidden.
    """

    def constrain(logits: Array, beams: Beams) -> Array:
        sentences, beam_size, vocab_size = logits.shape
        history = beams.tokens[..., 1:]  # [B, K, T]
        places = np.arange(history.shape[-1])[None, None, :]
        # An n-gram ends at these places; it is held if it begins as the new one would.
        held = (places >= size - 1) & (places < beams.lengths[:, None, None])
        tail = last_tokens(beams, size - 1)
        for back in range(1, size):
            held = held & (jnp.roll(history, back, axis=-1) == tail[..., -back, None])
        forbidden = jnp.where(held, history, vocab_size)
        sentence = np.arange(sentences)[:, None, None]
        beam = np.arange(beam_size)[None, :, None]
        return logits.at[sentence, beam, forbidden].set(-jnp.inf, mode="drop")

    return constrain


def last_tokens(beams: Beams, count: int) -> Array:
    """[B, K, count]: what the targets end with so far; `FREE` before their beginning,
    and in place of the start token."""
    places = beams.lengths[:, None] + np.arange(1 - count, 1)[None, :]
    places = places[:, None]  # [B, 1, count]
    found = jnp.take_along_axis(beams.tokens, jnp.maximum(places, 0), axis=-1)
    return jnp.where(places > 0, found, FREE)
