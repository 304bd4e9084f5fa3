"""Layer normalisation, with statistics in float32 and a backward pass of its own."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalised(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / √(variance + ε) · scale + bias over the last axis of x [..., D], in
    the type of x (Ba et al., 2016). Scale and bias are [D], in float32.

    The backward pass needs x and two numbers a row. With x̂ the quotient, d = g · scale:
    dx = (d - mean(d) - x̂ · mean(d x̂)) / √(variance + ε).
    """
    if x.size == x.shape[-1]:
        # One row, as decoding has it: of a vector, XLA copies nothing for a product.
        row = x.reshape(-1)
        return _scaled(row, *_statistics(row, eps), scale, bias).reshape(x.shape)
    return _scaled(x, *_statistics(x, eps), scale, bias)


def _statistics(x: Array, eps: float) -> tuple[Array, Array]:
    """Mean and 1 / √(variance + ε) of each row, [..., 1]."""
    wide = x.astype(jnp.float32)
    mean = _mean(wide)
    variance = _mean(jnp.square(wide - mean))
    return mean, jax.lax.rsqrt(variance + eps)


def _mean(x: Array) -> Array:
    """Of each row, [..., 1]. A vector is folded first: the sum of the few numbers left
    is no program of its own, as that of more is on a CPU."""
    width = x.shape[-1]
    if x.ndim == 1:
        while x.shape[-1] > 16 and x.shape[-1] % 2 == 0:
            x = x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]
    return x.sum(axis=-1, keepdims=True) / width


def _scaled(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array) -> Array:
    normed = (x.astype(jnp.float32) - mean) * inverse
    return (normed * along(scale, x) + along(bias, x)).astype(x.dtype)


def _forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, Any]:
    # In memory: on a GPU the backward pass would else sum up the rows once more, and,
    # as it cannot do that in the loops that sum up columns, write x̂ for these.
    mean, inverse = jax.lax.optimization_barrier(_statistics(x, eps))
    return _scaled(x, mean, inverse, scale, bias), (x, mean, inverse, scale)


def _backward(eps: float, saved: Any, g: Array) -> tuple[Array, Array, Array]:
    del eps
    x, mean, inverse, scale = saved
    g = g.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    d = g * along(scale, g)
    centred = d - d.mean(axis=-1, keepdims=True)
    d_x = (centred - normed * (d * normed).mean(axis=-1, keepdims=True)) * inverse
    rows = tuple(range(x.ndim - 1))
    return d_x.astype(x.dtype), (g * normed).sum(axis=rows), g.sum(axis=rows)


normalised.defvjp(_forward, _backward)


def along(vector: Array, x: Array) -> Array:
    """[D] with as many axes as x has."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class LayerNorm(nn.Module):
    """(x - mean) / √(variance + ε) · scale + bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, dtype = x.shape[-1:], jnp.dtype(self.config.param_dtype)
        scale = self.param("scale", nn.initializers.ones, width, dtype)
        bias = jnp.zeros(width)
        if self.config.norm_bias:
            bias = self.param("bias", nn.initializers.zeros, width, dtype)
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
        apply: Any = normalised
        return apply(x.astype(self.config.dtype), scale, bias, self.config.norm_eps)


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
