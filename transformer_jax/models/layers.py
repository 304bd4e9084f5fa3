"""Encoder and decoder layers, and their stacks (section 3.1 and 3.3 of the paper)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.models.activations import relu
from transformer_jax.models.attention import (
    KeyValue,
    MultiHeadAttention,
    with_turned_keys,
)
from transformer_jax.models.cache import DecoderCache, has_turned_keys, write_cache
from transformer_jax.models.dense import Dense
from transformer_jax.models.dropout import Dropout
from transformer_jax.models.masks import Segments, cache_bias, mask_bias
from transformer_jax.models.norms import layer_norm
from transformer_jax.models.scanning import scan_layers
from transformer_jax.trees import STACKED, stack_layers
from transformer_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
}


class Memory(NamedTuple):
    """What the decoder needs of B source sentences; computed once."""

    layers: tuple[KeyValue, ...]
    """Of each decoder layer, cross-attention values [B, N, S, H], and its keys turned,
    [B, N, H, S]."""
    segment_ids: Array
    """[B, S]; 0 = padding."""


class FeedForward(nn.Module):
    """act(x W₁ + b₁) W₂ + b₂ at each position (section 3.3); gated: the activation is
    multiplied by x W₃ + b₃ (Shazeer, 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        config = self.config
        # [B·T, D]: were there a reshape between product and relu, cuBLAS would not
        # apply it as it multiplies.
        rows = x.reshape(-1, x.shape[-1])
        h = ACTIVATIONS[config.activation](self._dense(config.d_ff, "up")(rows))
        if config.gated:
            h = h * self._dense(config.d_ff, "gate")(rows)
        h = Dropout(config.activation_dropout)(h, deterministic=deterministic)
        return self._dense(config.d_model, "down")(h).reshape(x.shape)

    def _dense(self, features: int, name: str) -> Dense:
        bias = self.config.feed_forward_bias
        return Dense(self.config, (features,), use_bias=bias, name=name)


class Layer(nn.Module):
    """What encoder and decoder layers share: residual connections around sublayers."""

    config: ModelConfig

    def residual(
        self,
        x: Array,
        norm: Callable[[Array], Array],
        sublayer: Callable[[Array], Array],
        deterministic: bool,
    ) -> Array:
        """Post-norm (the paper): norm(x + drop(f(x))). Pre: x + drop(f(norm(x)))."""
        if self.config.norm_position == "pre":
            return x + self.dropout(sublayer(norm(x)), deterministic=deterministic)
        return norm(x + self.dropout(sublayer(x), deterministic=deterministic))


class EncoderLayer(Layer):
    """Self-attention, then feed-forward (section 3.1).

    Modes travel by position here and in the decoder layer: `nn.remat` needs it so.
    """

    def setup(self) -> None:
        self.self_attention = MultiHeadAttention(self.config)
        self.self_attention_norm = layer_norm(self.config)
        self.feed_forward = FeedForward(self.config)
        self.feed_forward_norm = layer_norm(self.config)
        self.dropout = Dropout(self.config.dropout)

    def __call__(self, x: Array, segments: Segments, deterministic: bool) -> Array:
        """X [B, S, D] → [B, S, D]."""

        def attend(y: Array) -> Array:
            kv = self.self_attention.keys_values(y)
            return self.self_attention(y, kv, segments, deterministic)

        def feed(y: Array) -> Array:
            return self.feed_forward(y, deterministic)

        x = self.residual(x, self.self_attention_norm, attend, deterministic)
        return self.residual(x, self.feed_forward_norm, feed, deterministic)


class DecoderLayer(Layer):
    """Masked self-attention, attention over the source, feed-forward (section 3.1)."""

    def setup(self) -> None:
        self.self_attention = MultiHeadAttention(self.config)
        self.self_attention_norm = layer_norm(self.config)
        self.cross_attention = MultiHeadAttention(self.config)
        self.cross_attention_norm = layer_norm(self.config)
        self.feed_forward = FeedForward(self.config)
        self.feed_forward_norm = layer_norm(self.config)
        self.dropout = Dropout(self.config.dropout)

    def __call__(
        self,
        x: Array,
        encoded: Array,
        own: Segments,
        source: Segments,
        deterministic: bool,
    ) -> Array:
        """The whole target at once: x [B, T, D], encoded [B, S, D] → [B, T, D]."""

        def attend_self(y: Array) -> Array:
            kv = self.self_attention.keys_values(y)
            return self.self_attention(y, kv, own, deterministic)

        def attend_source(y: Array) -> Array:
            kv = self.cross_attention.keys_values(encoded)
            return self.cross_attention(y, kv, source, deterministic)

        return self._sublayers(x, attend_self, attend_source, deterministic)

    def step(
        self,
        x: Array,
        places: Array,
        cache: KeyValue,
        self_bias: Array,
        memory: KeyValue,
        memory_bias: Array,
    ) -> tuple[Array, KeyValue, Array]:
        """L new tokens a row: x [R, L, D], written at `places` [R, L] of the cache
        (see `DecoderCache.layers`), of the memory those of this layer → [R, L, D], the
        cache with them in it, and cross-attention weights [R, N, L, S]."""
        written, weights = cache, jnp.zeros(())

        def attend_self(y: Array) -> Array:
            nonlocal written
            q, new = self.self_attention.queries_keys_values(y)
            written = write_cache(cache, new, places)
            turned = has_turned_keys(cache, x.shape[0])
            return self.self_attention.of_rows(
                q, written, self_bias, keys_turned=turned
            )[0]

        def attend_source(y: Array) -> Array:
            nonlocal weights
            q = self.cross_attention.query(y)
            out, weights = self.cross_attention.of_rows(
                q, memory, memory_bias, keys_turned=True
            )
            return out

        x = self._sublayers(x, attend_self, attend_source, True)
        return x, written, weights

    def _sublayers(
        self,
        x: Array,
        attend_self: Callable[[Array], Array],
        attend_source: Callable[[Array], Array],
        deterministic: bool,
    ) -> Array:
        def feed(y: Array) -> Array:
            return self.feed_forward(y, deterministic)

        x = self.residual(x, self.self_attention_norm, attend_self, deterministic)
        x = self.residual(x, self.cross_attention_norm, attend_source, deterministic)
        return self.residual(x, self.feed_forward_norm, feed, deterministic)


class Stack(nn.Module):
    """What encoder and decoder share: equal layers in a row, with names layer_0 …"""

    config: ModelConfig

    def run(
        self,
        layers: Sequence[Callable[..., Array]],
        kind: type[Layer],
        x: Array,
        *others: Any,
        deterministic: bool,
    ) -> Array:
        """Apply the layers, which are of this kind, one after the other. A loop may be
        given parameters that are stacked already: those of a train step are."""
        config = self.config
        # What modules leave behind for those who look inside does not leave a loop.
        looked_into = self.is_mutable_collection("intermediates")
        if not config.scan_layers or looked_into or self.is_initializing():
            for layer in layers:
                x = layer(x, *others, deterministic)
            return x
        params = stack_layers(self.variables["params"])
        draws = self.has_rng("dropout") and not deterministic
        return scan_layers(
            kind(config, parent=None),
            params[STACKED],
            x,
            *others,
            length=len(layers),
            deterministic=deterministic,
            rng=self.make_rng("dropout") if draws else None,
            remat=config.remat,
        )


class Encoder(Stack):
    """A stack of encoder layers."""

    @nn.compact
    def __call__(self, x: Array, segments: Segments, *, deterministic: bool) -> Array:
        """X [B, S, D] → [B, S, D]."""
        config = self.config
        layer = EncoderLayer
        if config.remat:
            layer = nn.remat(EncoderLayer, static_argnums=(3,))
        layers = [
            layer(config, name=f"layer_{i}") for i in range(config.num_encoder_layers)
        ]
        x = self.run(layers, EncoderLayer, x, segments, deterministic=deterministic)
        return layer_norm(config, "final_norm")(x) if config.has_final_norm else x


class Decoder(Stack):
    """A stack of decoder layers."""

    def setup(self) -> None:
        config = self.config
        layer = DecoderLayer
        if config.remat:
            layer = nn.remat(DecoderLayer, static_argnums=(5,))
        self.layers = [
            layer(config, name=f"layer_{i}") for i in range(config.num_decoder_layers)
        ]
        if config.has_final_norm:
            self.final_norm = layer_norm(config)

    def __call__(
        self,
        x: Array,
        encoded: Array,
        own: Segments,
        source: Segments,
        *,
        deterministic: bool,
    ) -> Array:
        """X [B, T, D], encoded [B, S, D] → [B, T, D]."""
        others = (encoded, own, source)
        layers = self.layers
        x = self.run(layers, DecoderLayer, x, *others, deterministic=deterministic)
        return self.final_norm(x) if self.config.has_final_norm else x

    def memory(self, encoded: Array) -> tuple[KeyValue, ...]:
        """See `Memory.layers`."""
        return tuple(
            with_turned_keys(layer.cross_attention.keys_values(encoded))
            for layer in self.layers
        )

    def step(
        self, x: Array, positions: Array, cache: DecoderCache, memory: Memory
    ) -> tuple[Array, DecoderCache, Array]:
        """X [R, L, D], positions [R, L] → [R, L, D], the new cache, and cross-attention
        weights [R, L, S], the mean over layers and heads."""
        sentences = memory.segment_ids.shape[0]
        cache, places = cache.claim(positions), cache.places(positions)
        self_bias = cache_bias(positions, cache.ancestors, sentences)
        memory_bias = mask_bias((memory.segment_ids > 0)[:, None, None, :])
        written, weights = [], []
        for layer, kv, source in zip(
            self.layers, cache.layers, memory.layers, strict=True
        ):
            x, kv, attention = layer.step(x, places, kv, self_bias, source, memory_bias)
            written.append(kv)
            weights.append(attention.mean(axis=1))
        if self.config.has_final_norm:
            x = self.final_norm(x)
        attention = jnp.stack(weights).mean(axis=0)
        return x, cache._replace(layers=tuple(written)), attention
