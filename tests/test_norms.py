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
@pytest.mark.parametrize(
    "shape", [(2, 5, 16), (1, 1, 16), (1, 1, 100), (1, 1, 128)], ids=str
)
@pytest.mark.parametrize(
    ("dtype", "param_dtype"),
    [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_layer_norm_is_that_of_flax(norm_bias, shape, dtype, param_dtype):
    draw, width = np.random.default_rng(0), shape[-1]
    x = jnp.asarray(3 + 2 * draw.normal(size=shape), dtype)
    wanted = jnp.asarray(draw.normal(size=x.shape), jnp.float32)
    params = {"scale": jnp.asarray(1 + 0.1 * draw.normal(size=width), param_dtype)}
    if norm_bias:
        params["bias"] = jnp.asarray(draw.normal(size=width), param_dtype)
    types = {"dtype": dtype, "param_dtype": param_dtype}
    config = tiny_model_config(norm_bias=norm_bias, norm_eps=0.1, **types)
    theirs = nn.LayerNorm(
        epsilon=0.1, use_bias=norm_bias, use_fast_variance=False, **types
    )

    def both(module):
        def total(params, x):
            y: Any = module.apply({"params": params}, x)
            return (wanted * y.astype(jnp.float32)).sum(), y

        gradients = jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)
        # Without gradients a single row goes another way.
        return gradients, module.apply({"params": params}, x)

    tolerance = 1e-5 if dtype == "float32" else 0.03
    chex.assert_trees_all_close(
        both(layer_norm(config)), both(theirs), rtol=tolerance, atol=tolerance
    )
