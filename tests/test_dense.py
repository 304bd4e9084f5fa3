"""Dense layers, against Flax's own of the same shape."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import ModelConfig
from transformer_jax.models.dense import Dense

SHAPES = {
    "to heads": ((2, 3, 4), (5, 6), 1),
    "from heads": ((2, 3, 5, 6), (4,), 2),
    "rows": ((7, 4), (3,), 1),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "features", "axes"), SHAPES.values(), ids=SHAPES)
def test_parameters_output_and_gradients_are_those_of_flax(
    shape, features, axes, dtype, use_bias
):
    ours = Dense(ModelConfig(dtype=dtype), features, axes, use_bias)
    flax = nn.DenseGeneral(
        features,
        axis=tuple(range(-axes, 0)),
        use_bias=use_bias,
        kernel_init=nn.initializers.xavier_uniform(),
        dtype=jnp.dtype(dtype),
    )
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params = ours.init(jax.random.key(0), x)
    chex.assert_trees_all_equal(params, flax.init(jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # no bias is zero

    def both(module):
        def total(params, x):
            y = module.apply(params, x)
            return (y.astype(jnp.float32) ** 2).sum(), y

        return jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)

    tolerance = 1e-5 if dtype == "float32" else 3e-2
    chex.assert_trees_all_close(both(ours), both(flax), rtol=tolerance, atol=tolerance)


def test_gradients_of_kernel_and_bias_read_one_matrix():
    layer: Any = Dense(ModelConfig(), (5, 6))
    x = jnp.ones((2, 3, 4))
    params = layer.init(jax.random.key(0), x)
    gradient = jax.grad(lambda params: layer.apply(params, x).sum())
    read = {"dot_general": set(), "reduce_sum": set()}
    for equation in jax.make_jaxpr(gradient)(params).eqns:
        if equation.primitive.name in read:
            of_outputs = {v for v in equation.invars if v.aval.shape == (6, 30)}
            read[equation.primitive.name] |= of_outputs
    assert read["dot_general"] & read["reduce_sum"]
