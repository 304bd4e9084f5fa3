"""Scaled dot-product and multi-head attention (section 3.2 of the paper)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.models.dropout import Dropout
from transformer_jax.models.products import rows_product
from transformer_jax.types import Array

NEG_INF = -1e30
"""Finite, so that a row with nothing to attend to gives no NaN."""


class KeyValue(NamedTuple):
    """Projected keys and values of one attention layer, each [B, N, S, H]: a head's lie
    side by side, so that decoding, which reads them at every step, never moves them."""

    key: Array
    value: Array


def dot_product_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    *,
    drop: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """softmax(q kᵀ / √H) v.  q [B,T,N,H]; k, v [B,N,S,H]; mask [B,1,T,S] → [B,T,N,H],
    and the weights [B,N,T,S] in float32.

    A query that may attend to nothing gives zeros. `drop` is applied to the weights.
    """
    logits = jnp.einsum("BTNH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask, logits / math.sqrt(q.shape[-1]), NEG_INF)
    weights = jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0.0)
    kept = drop(weights) if drop else weights
    # Heads first here too: a product that also turns its result is ten times slower.
    mixed = jnp.einsum("BNTS,BNSH->BNTH", kept.astype(v.dtype), v)
    return mixed.transpose(0, 2, 1, 3), weights


class MultiHeadAttention(nn.Module):
    """concat(head₁ … head_N) W_o, head_n = attention(x W_q, y W_k, y W_v).

    Keys and values are projected by `keys_values`, so that decoding projects those of
    the encoder's output once, and those of earlier target tokens never again.
    """

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        heads = (config.num_heads, config.d_model // config.num_heads)
        self.query = self._projection(heads)
        self.key = self._projection(heads)
        self.value = self._projection(heads)
        self.out = self._projection(config.d_model, axis=(-2, -1))
        self.attention_dropout = Dropout(config.attention_dropout)

    def _projection(
        self, features: int | tuple[int, ...], axis: int | tuple[int, ...] = -1
    ) -> nn.DenseGeneral:
        return nn.DenseGeneral(
            features,
            axis=axis,
            use_bias=self.config.attention_bias,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=jnp.dtype(self.config.dtype),
            param_dtype=jnp.dtype(self.config.param_dtype),
            dot_general=rows_product,
        )

    def keys_values(self, y: Array) -> KeyValue:
        """[B, S, D] → keys and values [B, N, S, H]."""
        heads_first = (0, 2, 1, 3)
        return KeyValue(
            self.key(y).transpose(heads_first), self.value(y).transpose(heads_first)
        )

    def queries_keys_values(self, x: Array) -> tuple[Array, KeyValue]:
        """[B, T, D] → what `query` and `keys_values` give of it, by one product: a step
        of decoding has so few rows that three small ones take longer."""
        dtype = jnp.dtype(self.config.dtype)
        parts = [
            each.variables["params"] for each in (self.query, self.key, self.value)
        ]
        kernel = jnp.stack([each["kernel"] for each in parts], axis=1)  # [D, 3, N, H]
        product = jnp.einsum("BTD,DPNH->BTPNH", x.astype(dtype), kernel.astype(dtype))
        if self.config.attention_bias:
            bias = jnp.stack([each["bias"] for each in parts]).astype(dtype)
            product = product + bias[None, None]
        q, k, v = (product[:, :, part] for part in range(3))
        return q, KeyValue(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))

    def __call__(
        self, x: Array, kv: KeyValue, mask: Array, deterministic: bool
    ) -> tuple[Array, Array]:
        """X [B,T,D], kv [B,N,S,H], mask [B,1,T,S] → [B,T,D], weights [B,N,T,S]."""
        return self.attend(self.query(x), kv, mask, deterministic)

    def attend(
        self, q: Array, kv: KeyValue, mask: Array, deterministic: bool
    ) -> tuple[Array, Array]:
        """As `__call__`, of queries [B, T, N, H]."""

        def drop(weights: Array) -> Array:
            return self.attention_dropout(weights, deterministic=deterministic)

        attended, weights = dot_product_attention(q, *kv, mask, drop=drop)
        self.sow("intermediates", "attention", weights)
        return self.out(attended), weights

    def of_rows(self, q: Array, kv: KeyValue, mask: Array) -> tuple[Array, Array]:
        """Queries of rows [R,L,N,H] over what their sentences share: kv [B,N,S,H], mask
        [B,1,1 or R/B·L,S].

        The R/B rows of a sentence are laid side by side as queries of one attention, so
        that its keys and values are read once and never copied: → [R,L,D], [R,N,L,S].
        """
        rows, block = q.shape[:2]
        sentences = kv.key.shape[0]
        beams = rows // sentences
        q = q.reshape(sentences, beams * block, *q.shape[2:])
        out, weights = self.attend(q, kv, mask, deterministic=True)
        heads, length = weights.shape[1], weights.shape[-1]
        weights = weights.reshape(sentences, heads, beams, block, length)
        weights = weights.transpose(0, 2, 1, 3, 4).reshape(rows, heads, block, length)
        return out.reshape(rows, block, -1), weights
