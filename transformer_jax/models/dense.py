"""Dense layers as products of two matrices, in the form that XLA computes fastest."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from transformer_jax.config import ModelConfig
from transformer_jax.types import Array, PRNGKey


class Dense(nn.Module):
    """x W + b over the last `axes` axes of x: [..., inputs] → [..., features].

    x and W are multiplied as two matrices, [B·T, D] and [D, F], whatever the axes, and
    the bias is added before the product gets its axes back. A gradient then sums over
    one axis, where XLA reads both matrices as they are; over two axes it first turns
    one of them around in memory. And the gradients of kernel and bias share one matrix,
    where XLA would compute it once for each of two shapes.
    """

    config: ModelConfig
    features: tuple[int, ...]
    axes: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs, features = x.shape[x.ndim - self.axes :], self.features
        width, count = math.prod(inputs), math.prod(features)
        dtype = jnp.dtype(self.config.dtype)
        param_dtype = jnp.dtype(self.config.param_dtype)
        init = reshaped(nn.initializers.xavier_uniform(), (width, count))
        kernel = self.param("kernel", init, (*inputs, *features), param_dtype)
        rows = x.astype(dtype).reshape(-1, width)  # [B·T, D]
        y = jax.lax.dot(rows, kernel.astype(dtype).reshape(width, count))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, features, param_dtype)
            y = y + bias.astype(dtype).reshape(1, count)
        return y.reshape(*x.shape[: x.ndim - self.axes], *features)


def reshaped(init: Initializer, matrix: tuple[int, int]) -> Initializer:
    """Draws a kernel as the matrix that it is, since heads are no fan of their own."""

    def draw(rng: PRNGKey, shape: Any, dtype: Any) -> Array:
        return init(rng, matrix, dtype).reshape(shape)

    return draw
