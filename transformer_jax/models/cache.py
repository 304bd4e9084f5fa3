"""What decoding remembers of the target tokens so far, and who shares it."""

from typing import NamedTuple

import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.models.attention import KeyValue
from transformer_jax.types import Array


class DecoderCache(NamedTuple):
    """Keys and values of R rows, the K = R/B beams of each of B sentences.

    What a row has written stays where it is. When beams change places, only `ancestors`
    does: a beam reads its past from the rows that wrote it, which costs a mask instead
    of a copy of everything at every step.
    """

    layers: tuple[KeyValue, ...]
    """Of each decoder layer, [B, N, K·T, H]: row after row of a sentence."""
    ancestors: Array
    """[R, T] int32: the row, counted inside its sentence, that wrote a row's past."""

    def reorder(self, parents: Array) -> "DecoderCache":
        """Each beam goes on from the past of its parent; parents [B, K] are beams."""
        sentences, beams = parents.shape
        ancestors = self.ancestors.reshape(sentences, beams, -1)
        chosen = jnp.take_along_axis(ancestors, parents[..., None], axis=1)
        return self._replace(ancestors=chosen.reshape(self.ancestors.shape))

    def places(self, positions: Array) -> Array:
        """Where in `layers` the rows write their tokens of `positions`: both [R, L]."""
        own = jnp.arange(positions.shape[0]) % self._beams
        return own[:, None] * self.ancestors.shape[1] + positions

    def claim(self, positions: Array) -> "DecoderCache":
        """Rows become their own ancestors at the positions [R, L] that they write."""
        rows, length = self.ancestors.shape
        if self._beams == 1:
            return self
        own = (jnp.arange(rows, dtype=jnp.int32) % self._beams)[:, None]
        here = jnp.arange(length)[None, None, :] == positions[..., None]  # [R, L, T]
        return self._replace(ancestors=jnp.where(here.any(axis=1), own, self.ancestors))

    @property
    def _beams(self) -> int:
        return self.ancestors.shape[0] // self.layers[0].key.shape[0]


def init_cache(
    config: ModelConfig, sentences: int, max_length: int, *, beams: int = 1
) -> DecoderCache:
    """An empty cache for B `sentences` of K `beams`, T = `max_length` tokens each."""
    heads, head_size = config.num_heads, config.d_model // config.num_heads
    shape = (sentences, heads, beams * max_length, head_size)
    empty = jnp.zeros(shape, jnp.dtype(config.dtype))
    return DecoderCache(
        layers=tuple(KeyValue(empty, empty) for _ in range(config.num_decoder_layers)),
        ancestors=jnp.zeros((sentences * beams, max_length), jnp.int32),
    )


def moved_cache(cache: DecoderCache, sentences: Array, max_length: int) -> DecoderCache:
    """The cache of the `sentences` [B'] alone, with room for `max_length` tokens."""
    length = cache.ancestors.shape[1]
    old, heads, places, head_size = cache.layers[0].key.shape
    more = max_length - length

    def move(x: Array) -> Array:
        x = x[sentences].reshape(-1, heads, places // length, length, head_size)
        x = x[..., :max_length, :]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, max(more, 0)), (0, 0)))
        return x.reshape(x.shape[0], heads, -1, head_size)

    ancestors = cache.ancestors.reshape(old, -1, length)[sentences]
    ancestors = ancestors.reshape(-1, length)[:, :max_length]
    return DecoderCache(
        layers=tuple(KeyValue(move(kv.key), move(kv.value)) for kv in cache.layers),
        ancestors=jnp.pad(ancestors, ((0, 0), (0, max(more, 0)))),
    )
