"""Tokens that a target may not have next.

A constraint is a pure function of logits [B, K, V] and the beams that gives logits in
which forbidden tokens are -inf. Those that are left keep their log-probabilities: they
are not normalised anew. One that is not asked for is not in the compiled program.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from transformer_jax.search.beams import Beams
from transformer_jax.types import Array

Constraint = Callable[[Array, Beams], Array]


def banned_tokens(tokens: Sequence[int]) -> Constraint:
    """None of `tokens`, anywhere."""

    def constrain(logits: Array, beams: Beams) -> Array:
        forbidden = np.zeros((1, 1, logits.shape[-1]), bool)
        forbidden[..., list(tokens)] = True
        return jnp.where(forbidden, -jnp.inf, logits)

    return constrain


def minimum_length(length: int, eos_id: int) -> Constraint:
    """No end before the target has `length` tokens, the end included."""

    def constrain(logits: Array, beams: Beams) -> Array:
        early = (beams.lengths + 1 < length)[:, None]  # [B, 1]
        end = jnp.where(early, -jnp.inf, logits[..., eos_id])
        return logits.at[..., eos_id].set(end)

    return constrain


def banned_phrases(phrases: Sequence[Sequence[int]]) -> Constraint:
    """None of the phrases of one or more tokens: the last token of each is forbidden
    where those before it have just been chosen."""
    if not all(phrases):
        raise ValueError("A banned phrase has no tokens: leave it out.")

    def constrain(logits: Array, beams: Beams) -> Array:
        for *before, last in phrases:
            begun = jnp.ones(logits.shape[:2], bool)
            for distance, token in enumerate(reversed(before)):
                begun = begun & (_token_before(beams, distance) == token)
            value = jnp.where(begun, -jnp.inf, logits[..., last])
            logits = logits.at[..., last].set(value)
        return logits

    return constrain


def no_repeat_ngram(size: int) -> Constraint:
    """No n-gram of `size` tokens twice in a target (Paulus et al., 2018, section 2.5).

    The start token is no part of an n-gram.
    """
    if size < 1:
        raise ValueError(f"The n-gram size is {size}: it must be at least 1.")

    def constrain(logits: Array, beams: Beams) -> Array:
        targets = beams.tokens[..., 1:]  # [B, K, T]
        width = targets.shape[-1]
        if width < size:
            return logits
        starts = jnp.arange(width - size + 1)[None, None, :]
        length = beams.lengths[:, None, None]
        # An n-gram that begins at `starts` is whole when it ends before the length.
        seen = jnp.broadcast_to(
            starts + size <= length, (*targets.shape[:2], starts.shape[-1])
        )
        for place in range(size - 1):
            now = _token_before(beams, size - 2 - place)[..., None]
            seen = seen & (targets[..., place : place + starts.shape[-1]] == now)
        seen = seen & (length >= size - 1)
        ends = targets[..., size - 1 :]
        rows, beams_ = jnp.indices(logits.shape[:2])
        penalty = jnp.where(seen, -jnp.inf, 0.0)
        return logits.at[rows[..., None], beams_[..., None], ends].add(penalty)

    return constrain


def _token_before(beams: Beams, distance: int) -> Array:
    """The token `distance` places before the last one of each beam: [B, K]; -1 where
    the target is not that long."""
    place = beams.lengths - distance  # The start token stands at 0.
    index = jnp.maximum(place, 0)[:, None, None]
    found = jnp.take_along_axis(beams.tokens, index, axis=-1)[..., 0]
    return jnp.where((place > 0)[:, None], found, -1)
