"""What decoding remembers of the target tokens so far, and who shares it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.models.attention import KeyValue, with_turned_keys
from transformer_jax.types import Array


class DecoderCache(NamedTuple):
    """Keys and values of R rows, the K = R/B beams of each of B sentences.

    What a row has written stays where it is. When beams change places, only `ancestors`
    does: a beam reads its past from the rows that wrote it, which costs a mask instead
    of a copy of everything at every step.
    """

    layers: tuple[KeyValue, ...]
    """Of each decoder layer, values [B, N, T·K, H]: token after token, the rows of a
    sentence beside each other. Keys are the same where there is one row, and turned,
    [B, N, H, T·K], where there are several: as products read them fastest."""
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
        own = jnp.arange(positions.shape[0]) % self.beams
        return positions * self.beams + own[:, None]

    def claim(self, positions: Array) -> "DecoderCache":
        """Rows become their own ancestors at the positions [R, L] that they write."""
        rows, length = self.ancestors.shape
        if self.beams == 1:
            return self
        own = (jnp.arange(rows, dtype=jnp.int32) % self.beams)[:, None]
        here = jnp.arange(length)[None, None, :] == positions[..., None]  # [R, L, T]
        return self._replace(ancestors=jnp.where(here.any(axis=1), own, self.ancestors))

    @property
    def beams(self) -> int:
        """K"""
        return self.ancestors.shape[0] // self.layers[0].value.shape[0]


def init_cache(
    config: ModelConfig, sentences: int, max_length: int, *, beams: int = 1
) -> DecoderCache:
    """An empty cache for B `sentences` of K `beams`, T = `max_length` tokens each."""
    heads, head_size = config.num_heads, config.d_model // config.num_heads
    value = jnp.zeros(
        (sentences, heads, max_length * beams, head_size), jnp.dtype(config.dtype)
    )
    empty = KeyValue(value, value)
    if beams > 1:
        empty = with_turned_keys(empty)
    return DecoderCache(
        layers=(empty,) * config.num_decoder_layers,
        ancestors=jnp.zeros((sentences * beams, max_length), jnp.int32),
    )


def has_turned_keys(layer: KeyValue, rows: int) -> bool:
    """Whether its keys are turned: where the R `rows` are several of each sentence."""
    return rows > layer.value.shape[0]


def write_cache(layer: KeyValue, new: KeyValue, places: Array) -> KeyValue:
    """Puts new keys and values [R, N, L, H] at places [R, L] of their sentence."""
    rows = places.shape[0]
    beams = rows // layer.value.shape[0]
    sentences = jnp.arange(rows)[:, None, None] // beams
    # By head too: were a single row one place, XLA would copy the cache to write it.
    heads, places = jnp.arange(new.key.shape[1])[None, :, None], places[:, None, :]
    key = new.key.astype(layer.key.dtype)
    value = new.value.astype(layer.value.dtype)
    if has_turned_keys(layer, rows):
        keys = layer.key.at[sentences, heads, :, places].set(key)
    else:
        keys = layer.key.at[sentences, heads, places].set(key)
    return KeyValue(keys, layer.value.at[sentences, heads, places].set(value))


def chosen_cache(cache: DecoderCache, sentences: Array) -> DecoderCache:
    """The cache of the `sentences` [B'] alone."""
    length = cache.ancestors.shape[1]
    ancestors = cache.ancestors.reshape(cache.layers[0].value.shape[0], -1, length)
    return DecoderCache(
        layers=jax.tree.map(lambda x: x[sentences], cache.layers),
        ancestors=ancestors[sentences].reshape(-1, length),
    )


def placed_cache(
    cache: DecoderCache, other: DecoderCache, places: Array
) -> DecoderCache:
    """The cache with the sentences of another at `places` [B'] of its own; B: nowhere.
    What it has no room for is lost; what the other does not have stays as it was, which
    nobody reads."""
    rows, length = cache.ancestors.shape
    other = resized_cache(other, min(length, other.ancestors.shape[1]))

    def placed(x: Array, y: Array) -> Array:
        return x.at[(places, *map(slice, y.shape[1:]))].set(y, mode="drop")

    def by_sentence(ancestors: Array) -> Array:
        return ancestors.reshape(-1, cache.beams, ancestors.shape[1])

    ancestors = placed(by_sentence(cache.ancestors), by_sentence(other.ancestors))
    return DecoderCache(
        layers=jax.tree.map(placed, cache.layers, other.layers),
        ancestors=ancestors.reshape(rows, length),
    )


def begun_cache(
    cache: DecoderCache, first: DecoderCache, places: Array
) -> DecoderCache:
    """The cache in which the K > 1 beams of the sentences at `places` [B'] go on from
    what `first` holds of each: one row, which has written position 0. B: nowhere."""
    rows, length = cache.ancestors.shape
    layers = tuple(
        KeyValue(
            layer.key.at[places, :, :, 0].set(new.key[:, :, 0], mode="drop"),
            layer.value.at[places, :, 0].set(new.value[:, :, 0], mode="drop"),
        )
        for layer, new in zip(cache.layers, first.layers, strict=True)
    )
    ancestors = cache.ancestors.reshape(-1, cache.beams, length)
    ancestors = ancestors.at[places, :, 0].set(0, mode="drop")
    return DecoderCache(layers, ancestors.reshape(rows, length))


def resized_cache(cache: DecoderCache, max_length: int) -> DecoderCache:
    """A cache with room for `max_length` tokens; what is beyond them is lost."""
    length = cache.ancestors.shape[1]

    def resize(x: Array, axis: int) -> Array:
        places = x.shape[axis] // length * max_length
        x = jax.lax.slice_in_dim(x, 0, min(places, x.shape[axis]), axis=axis)
        more = [(0, 0)] * x.ndim
        more[axis] = (0, places - x.shape[axis])
        return jnp.pad(x, more)

    keys_axis = 2 if cache.beams == 1 else 3
    return DecoderCache(
        layers=tuple(
            KeyValue(resize(layer.key, keys_axis), resize(layer.value, 2))
            for layer in cache.layers
        ),
        ancestors=resize(cache.ancestors, 1),
    )
