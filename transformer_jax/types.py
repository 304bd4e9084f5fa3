"""Words shared by the whole package: the axes, and the arrays that carry them.

| letter | axis                                                      |
|--------|-----------------------------------------------------------|
| B      | sentences (or packed rows) in the batch                   |
| S, T   | source and target length; in attention: keys and queries  |
| D, F   | `d_model`, `d_ff`                                         |
| N, H   | heads, head size                                          |
| V      | vocabulary                                                |
| K      | beams                                                     |
| R      | rows being decoded: B, or B·K                             |
| L      | tokens fed to a row in one decoding step                  |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PRNGKey = jax.Array
"""A typed key, as `jax.random.key` makes it."""
Params = Any
"""A nested dict of arrays: what `model.init(...)["params"]` returns."""
Cache = Any
"""Decoding state that search reorders: a pytree whose every leaf leads with R."""
Memory = Any
"""What the decoder needs of the source: a pytree whose every leaf leads with B."""


class RoughLogits(NamedTuple):
    """Logits that cost less, and how to learn the exact ones that matter. Greedy search
    without scores takes them, and finds what it finds of exact ones."""

    values: Array
    """[R, L, V]"""
    error: Array
    """[R, L]: none of the values is farther from the exact one than this."""
    exactly: Callable[[Array | None], Array]
    """Tokens [R, L, C] → their exact logits [R, L, C]; None → those of all."""


Logits = Any
"""[R, L, V] in float32: an `Array`, all that most methods of search know of; or
`RoughLogits`."""


class StepOutput(NamedTuple):
    """What one decoding step gives for a block of L tokens per row."""

    logits: Logits
    """Of the token that follows each of the L tokens."""
    attention: Array | None = None
    """[R, L, S] cross-attention, averaged over heads; None unless asked for."""


StepFn = Callable[[Array, Array, Cache, Memory], tuple[StepOutput, Cache]]
"""(tokens [R, L], positions [R], cache, memory) → (StepOutput, cache).

`positions[r]` is the place of the first of row r's L tokens. Memory leads with B;
row r reads the memory of sentence r // (R // B).
"""
