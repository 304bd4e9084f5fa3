"""Scaled dot-product and multi-head attention (section 3.2 of the paper)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.exponential import quick_exp
from transformer_jax.models.chunked_attention import chunked_attention
from transformer_jax.models.dense import Dense
from transformer_jax.models.dropout import Dropout
from transformer_jax.models.fused_attention import (
    FUSED_LENGTH,
    LARGEST_HEAD,
    fused_attention,
    has_fused_kernel,
)
from transformer_jax.models.masks import NEG_INF, Segments
from transformer_jax.types import Array

CHUNKED_LENGTH = 512
"""Rows longer than this are attended to in chunks, unless a fused kernel does it."""


class KeyValue(NamedTuple):
    """Projected keys and values of one attention layer, each [B, N, S, H]: a head's lie
    side by side, so that decoding, which reads them at every step, never moves them. It
    keeps most keys turned: see `with_turned_keys`."""

    key: Array
    value: Array


def with_turned_keys(kv: KeyValue) -> KeyValue:
    """Keys [B, N, S, H] as [B, N, H, S]: so decoding, whose queries are few, multiplies
    with them in little more than half the time on a CPU."""
    return KeyValue(kv.key.swapaxes(2, 3), kv.value)


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
    # Heads first in every product: one that also turns its result is ten times slower.
    products: Any = _products
    softmax: Any = _masked_softmax
    mixtures: Any = _mixtures
    logits = products(q.transpose(0, 2, 1, 3), k) / math.sqrt(q.shape[-1])
    weights = softmax(logits, mask)
    kept = drop(weights) if drop else weights
    return mixtures(kept.astype(v.dtype), v).transpose(0, 2, 1, 3), weights


def decoding_attention(
    q: Array, k: Array, v: Array, bias: Array, *, keys_turned: bool
) -> tuple[Array, Array]:
    """`dot_product_attention` of a step of decoding.  q [B,T,N,H]; k, v [B,N,S,H] (or
    keys turned, [B,N,H,S]); bias [B,1,T or 1,S] of `mask_bias` → [B,T,N,H], and the
    weights [B,N,T,S] in float32.

    Values are mixed by parts that do not sum to 1 yet: the mixtures are fewer numbers
    to divide than the weights, which training needs for its backward pass.
    """
    products: Any = _products_turned if keys_turned else _products
    mixtures: Any = _mixtures
    logits = products(q.transpose(0, 2, 1, 3), k) / math.sqrt(q.shape[-1]) + bias
    highest = logits.max(axis=-1, keepdims=True)
    parts = quick_exp(logits - highest)
    sums = parts.sum(axis=-1, keepdims=True)
    attends = highest > NEG_INF / 2
    inverse_sums = jnp.where(attends, 1 / sums, 0)
    mixed = mixtures(parts.astype(v.dtype), v) * inverse_sums
    return mixed.astype(v.dtype).transpose(0, 2, 1, 3), parts * inverse_sums


@jax.custom_vjp
def _products(q: Array, k: Array) -> Array:
    """q kᵀ in float32: [B, N, T, H], [B, N, S, H] → [B, N, T, S]."""
    return jnp.einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32)


def _products_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return _products(q, k), (q, k)  # pyright: ignore[reportReturnType]


def _products_backward(kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    """As the forward products: of the computation's type, added up in float32. Left to
    itself, differentiation multiplies in float32 here whatever that type is."""
    q, k = kept
    d = d.astype(q.dtype)
    d_q = jnp.einsum("BNTS,BNSH->BNTH", d, k)
    return d_q, jnp.einsum("BNST,BNTH->BNSH", _turned(d), q)


_products.defvjp(_products_forward, _products_backward)


def _products_turned(q: Array, k: Array) -> Array:
    """q k in float32: [B, N, T, H], [B, N, H, S] → [B, N, T, S]. Were the keys turned
    back before, XLA would do that in memory for a single sentence."""
    return jnp.einsum("BNTH,BNHS->BNTS", q, k, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _mixtures(weights: Array, v: Array) -> Array:
    """Weights · v: [B, N, T, S], [B, N, S, H] → [B, N, T, H]."""
    return jnp.einsum("BNTS,BNSH->BNTH", weights, v)


def _mixtures_forward(weights: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
    return _mixtures(weights, v), (weights, v)  # pyright: ignore[reportReturnType]


def _mixtures_backward(kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    weights, v = kept
    d_weights = jnp.einsum("BNTH,BNSH->BNTS", d, v)
    return d_weights, jnp.einsum("BNST,BNTH->BNSH", _turned(weights), d)


_mixtures.defvjp(_mixtures_forward, _mixtures_backward)


def _turned(x: Array) -> Array:
    """[B, N, T, S] → [B, N, S, T]; on a CPU in memory, since XLA has no fast product of
    many small matrices the first of which is to be turned."""
    turned = x.swapaxes(2, 3)
    return jax.lax.platform_dependent(
        turned, cpu=jax.lax.optimization_barrier, default=lambda turned: turned
    )


@jax.custom_vjp
def _masked_softmax(logits: Array, mask: Array) -> Array:
    """softmax of logits [B, N, T, S] over the places where mask [B, 1, T, S] is true;
    zeros elsewhere, and where it is nowhere true.

    The backward pass needs the weights alone: d = w · (g - Σ g w).
    """
    weights = jax.nn.softmax(jnp.where(mask, logits, NEG_INF), axis=-1)
    return jnp.where(mask, weights, 0.0)


def _softmax_forward(logits: Array, mask: Array) -> tuple[Array, Array]:
    weights: Any = _masked_softmax(logits, mask)
    return weights, weights


def _softmax_backward(weights: Array, g: Array) -> tuple[Array, None]:
    return weights * (g - (g * weights).sum(axis=-1, keepdims=True)), None


_masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def attention_path(
    config: ModelConfig,
    lengths: tuple[int, int],
    *,
    weights: bool,
    kernel: bool,
    training: bool = False,
) -> str:
    """How attention of these lengths (T, S) is computed: plain, chunked or fused.

    `weights` says that they are needed themselves, `kernel` that there is a fused one
    for these arrays. Where 'fused' is asked for and there is none, `training` is
    refused; else it is as with 'auto', so that a model translates on any device.

    >>> config = ModelConfig()
    >>> attention_path(config, (64, 64), weights=False, kernel=False)
    'plain'
    >>> attention_path(config, (64, 8192), weights=False, kernel=False)
    'chunked'
    >>> attention_path(config, (64, 8192), weights=True, kernel=False)
    'plain'
    """
    if weights:
        return "plain"
    if lengths == (1, 1):
        return "plain"  # parameters are made with rows of one token
    if config.attention == "fused" and not kernel and training:
        raise ValueError(
            "model.attention is 'fused', but no kernel is there for queries and keys "
            f"of lengths {lengths}: it takes an NVIDIA GPU of Ampere or later, "
            f"model.dtype bfloat16, heads of at most {LARGEST_HEAD} in multiples of 8, "
            f"and even lengths up to {FUSED_LENGTH}. Set model.attention to auto."
        )
    if config.attention in ("plain", "chunked"):
        return config.attention
    if kernel:
        return "fused"
    return "chunked" if max(lengths) > CHUNKED_LENGTH else "plain"


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
        self.out = self._projection((config.d_model,), axes=2)
        self.attention_dropout = Dropout(config.attention_dropout)

    def _projection(self, features: tuple[int, ...], axes: int = 1) -> Dense:
        return Dense(self.config, features, axes, self.config.attention_bias)

    def keys_values(self, y: Array) -> KeyValue:
        """[B, S, D] → keys and values [B, N, S, H]."""
        heads_first = (0, 2, 1, 3)
        return KeyValue(
            self.key(y).transpose(heads_first), self.value(y).transpose(heads_first)
        )

    def queries_keys_values(self, x: Array) -> tuple[Array, KeyValue]:
        """[B, T, D] → what `query` and `keys_values` give of it, by one product: a step
        of decoding has so few rows that three small ones take longer. On a CPU a single
        row gains nothing, and would wait for kernels to be put together."""
        if x.shape[0] * x.shape[1] == 1:
            return self.query(x), self.keys_values(x)
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
        self, x: Array, kv: KeyValue, segments: Segments, deterministic: bool
    ) -> Array:
        """X [B, T, D], kv [B, N, S, H] → [B, T, D]."""
        q = self.query(x)
        lengths = (q.shape[1], kv.key.shape[2])
        path = attention_path(
            self.config,
            lengths,
            # Only the plain path has weights: to drop some of, and to show.
            weights=self.is_mutable_collection("intermediates")
            or (self.config.attention_dropout > 0 and not deterministic),
            kernel=has_fused_kernel(q, lengths),
            training=not deterministic,
        )
        if path == "chunked":
            return self.out(chunked_attention(q, *kv, segments))
        if path == "fused":
            return self.out(fused_attention(q, *kv, segments))
        return self.attend(q, kv, segments.mask(), deterministic)[0]

    def attend(
        self,
        q: Array,
        kv: KeyValue,
        mask: Array,
        deterministic: bool,
    ) -> tuple[Array, Array]:
        """Queries [B,T,N,H], kv [B,N,S,H], mask [B,1,T,S] → [B,T,D], the weights
        [B,N,T,S]."""

        def drop(weights: Array) -> Array:
            return self.attention_dropout(weights, deterministic=deterministic)

        attended, weights = dot_product_attention(q, *kv, mask, drop=drop)
        self.sow("intermediates", "attention", weights)
        return self.out(attended), weights

    def of_rows(
        self, q: Array, kv: KeyValue, bias: Array, *, keys_turned: bool
    ) -> tuple[Array, Array]:
        """Queries of rows [R,L,N,H] over what their sentences share: kv [B,N,S,H] (or
        keys turned, [B,N,H,S]), bias [B,1,1 or R/B·L,S].

        The R/B rows of a sentence are laid side by side as queries of one attention, so
        that its keys and values are read once and never copied: → [R,L,D], [R,N,L,S].
        """
        rows, block = q.shape[:2]
        sentences = kv.value.shape[0]
        beams = rows // sentences
        q = q.reshape(sentences, beams * block, *q.shape[2:])
        attended, weights = decoding_attention(q, *kv, bias, keys_turned=keys_turned)
        self.sow("intermediates", "attention", weights)
        out = self.out(attended)
        heads, length = weights.shape[1], weights.shape[-1]
        weights = weights.reshape(sentences, heads, beams, block, length)
        weights = weights.transpose(0, 2, 1, 3, 4).reshape(rows, heads, block, length)
        return out.reshape(rows, block, -1), weights
