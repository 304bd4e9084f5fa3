"""What decoding remembers of the target tokens so far, and who shares it."""

from typing import NamedTuple

import jax
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


def chosen_cache(cache: DecoderCache, sentences: Array) -> DecoderCache:
    """The cache of the `sentences` [B'] alone."""
    length = cache.ancestors.shape[1]
    ancestors = cache.ancestors.reshape(cache.layers[0].key.shape[0], -1, length)
    return DecoderCache(
        layers=jax.tree.map(lambda x: x[sentences], cache.layers),
        ancestors=ancestors[sentences].reshape(-1, length),
    )


def resized_cache(cache: DecoderCache, max_length: int) -> DecoderCache:
    """A cache with room for `max_length` tokens; what is beyond them is lost."""
    length = cache.ancestors.shape[1]

    def resize(x: Array) -> Array:
        x = x[..., :max_length, :]
        more = max_length - x.shape[-2]
        return jnp.pad(x, (*[(0, 0)] * (x.ndim - 2), (0, more), (0, 0)))

    def resize_each(x: Array) -> Array:
        whole = resize(x.reshape(*x.shape[:2], -1, length, x.shape[-1]))
        return whole.reshape(*x.shape[:2], -1, x.shape[-1])

    return DecoderCache(
        layers=jax.tree.map(resize_each, cache.layers),
        ancestors=resize(cache.ancestors[..., None])[..., 0],
    )
