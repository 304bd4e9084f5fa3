"""Layer normalisation against Flax's own, in value and in gradients."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models.norms import layer_norm
from transformer_jax.testing import tiny_model_config


@pytest.mark.parametrize("norm_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_is_that_of_flax(norm_bias, dtype):
    draw = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * draw.normal(size=(2, 5, 16)), dtype)
    wanted = jnp.asarray(draw.normal(size=x.shape), jnp.float32)
    params = {"scale": jnp.asarray(1 + 0.1 * draw.normal(size=16), jnp.float32)}
    if norm_bias:
        params["bias"] = jnp.asarray(draw.normal(size=16), jnp.float32)
    config = tiny_model_config(norm_bias=norm_bias, dtype=dtype, norm_eps=0.1)
    theirs = nn.LayerNorm(
        epsilon=0.1, use_bias=norm_bias, use_fast_variance=False, dtype=dtype
    )

    def both(module):
        def total(params, x):
            y: Any = module.apply({"params": params}, x)
            return (wanted * y.astype(jnp.float32)).sum(), y

        return jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)

    tolerance = 1e-5 if dtype == "float32" else 0.03
    chex.assert_trees_all_close(
        both(layer_norm(config)), both(theirs), rtol=tolerance, atol=tolerance
    )
