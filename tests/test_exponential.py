"""exp by a polynomial, held against that of NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.exponential import LEAST, MOST, quick_exp

EPS = float(np.finfo(np.float32).eps)


def test_it_is_exp_as_near_as_float32_holds():
    x = np.concatenate([np.linspace(LEAST, MOST, 2_000_001), -np.logspace(-30, 0, 999)])
    x = x.astype(np.float32)
    found = np.asarray(jax.jit(quick_exp)(x), np.float64)
    rtol = EPS if jax.default_backend() == "cpu" else 2 * EPS
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=rtol)


@pytest.mark.parametrize("x", [0.0, -0.0, -110.0, -1e30, -np.inf, 100, 1e30, np.inf])
def test_borders(x):
    with np.errstate(over="ignore"):
        expected = np.exp(np.float32(x))
    assert jax.jit(quick_exp)(jnp.float32(x)) == expected


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F80ABCD])
def test_what_is_no_number_stays_none(bits):
    x = np.array(bits, np.uint32).view(np.float32)
    assert np.isnan(jax.jit(quick_exp)(x))


def test_it_is_its_own_derivative():
    for x in (-3.0, 0.5):
        assert jax.grad(quick_exp)(x) == pytest.approx(np.exp(x), rel=1e-6)
