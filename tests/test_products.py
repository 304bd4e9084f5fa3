"""Products with kernels, against `lax.dot_general` itself."""

import chex
import jax
import numpy as np
import pytest

from transformer_jax.models.products import rows_product


@pytest.mark.parametrize(
    ("shape", "kernel_shape"), [((2, 3, 4), (4, 5, 6)), ((2, 3, 5, 6), (5, 6, 4))]
)
def test_product_and_gradients_are_those_of_dot_general(shape, kernel_shape):
    draw = np.random.default_rng(0)
    x, kernel = draw.normal(size=shape), draw.normal(size=kernel_shape)
    count = len(shape) - 2
    axes = tuple(range(2, len(shape))), tuple(range(count))
    arguments = (x.astype(np.float32), kernel.astype(np.float32))

    def both(product):
        def total(x, kernel):
            y = product(x, kernel, (axes, ((), ())))
            return (y**2).sum(), y

        return jax.grad(total, argnums=(0, 1), has_aux=True)(*arguments)

    chex.assert_trees_all_close(
        both(rows_product), both(jax.lax.dot_general), rtol=1e-4
    )
