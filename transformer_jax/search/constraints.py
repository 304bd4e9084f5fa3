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
