"""Activations against Flax's own, in value and in gradients."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from transformer_jax.models.activations import relu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_relu_is_that_of_flax(dtype):
    x = jnp.asarray([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, jnp.inf], dtype)

    def both(function):
        def total(x):
            y = function(x)
            return (jnp.arange(1.0, 8.0) * y.astype(jnp.float32)).sum(), y

        return jax.jit(jax.grad(total, has_aux=True))(x)

    chex.assert_trees_all_equal(both(relu), both(nn.relu))
