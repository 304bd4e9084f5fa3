"""Layer normalisation, with statistics in float32 and a backward pass of its own."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardise(x: Array, eps: float) -> Array:
    """(x - mean) / √(variance + ε) over the last axis of x [..., D] (Ba et al., 2016).

    The backward pass needs x̂, the result, and one number a row:
    dx = (g - mean(g) - x̂ · mean(g x̂)) / √(variance + ε).
    """
    return _forward(x, eps)[0]


def _forward(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + eps)  # [..., 1]
    normed = centred * inverse
    return normed, (normed, inverse)


def _backward(eps: float, saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    del eps
    normed, inverse = saved
    along = (g * normed).mean(axis=-1, keepdims=True)
    return ((g - g.mean(axis=-1, keepdims=True) - normed * along) * inverse,)


standardise.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """(x - mean) / √(variance + ε) · scale + bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, dtype = x.shape[-1:], jnp.dtype(self.config.param_dtype)
        scale = self.param("scale", nn.initializers.ones, width, dtype)
        normed: Any = standardise(x.astype(jnp.float32), self.config.norm_eps)
        normed = normed * scale.astype(jnp.float32)[None, None]
        if self.config.norm_bias:
            bias = self.param("bias", nn.initializers.zeros, width, dtype)
            normed = normed + bias.astype(jnp.float32)[None, None]
        return normed.astype(self.config.dtype)


class StdNorm(nn.Module):
    """(x - mean) / (std + ε) · scale + bias, std unbiased, statistics in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, dtype = x.shape[-1:], jnp.dtype(self.config.param_dtype)
        scale = self.param("scale", nn.initializers.ones, width, dtype)
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        std = jnp.std(wide, axis=-1, keepdims=True, ddof=1)
        normed = scale[None, None] * centred / (std + self.config.norm_eps)
        if self.config.norm_bias:
            bias = self.param("bias", nn.initializers.zeros, width, dtype)
            normed = normed + bias[None, None]
        return normed.astype(self.config.dtype)


def layer_norm(config: ModelConfig, name: str | None = None) -> nn.Module:
    """The norm that the settings name."""
    kinds = {"layer_norm": LayerNorm, "std": StdNorm}
    return kinds[config.norm](config, name=name)
