"""Products of activations with a kernel, in the form that XLA computes fastest."""

import math
from typing import Any

import jax

from transformer_jax.types import Array


def rows_product(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **rest: Any
) -> Array:
    """`lax.dot_general` of x [B, T, …] over its last axes and the first of a kernel, as
    one product of two matrices.

    A gradient then sums over one axis, B·T, where XLA reads both matrices as they are.
    Over two axes it first turns one of them around in memory.
    """
    (x_axes, _), _ = dimension_numbers
    count = len(x_axes)
    width = math.prod(kernel.shape[:count])
    rows = x.reshape(-1, width)  # [B·T, …]
    product = jax.lax.dot(rows, kernel.reshape(width, -1), precision=precision, **rest)
    return product.reshape(*x.shape[:-count], *kernel.shape[count:])
