"""An exp that takes a CPU half the time of XLA's."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.types import Array

LN_2_HIGH = 0.693359375
LN_2_LOW = math.log(2) - LN_2_HIGH
"""ln 2 in two parts: n times the first is exact in float32 for |n| ≤ 2⁷ (Cody and
Waite, 1980, Software Manual for the Elementary Functions)."""
COEFFICIENTS = (
    0.0013814540579915047,
    0.00836874544620514,
    0.04166838899254799,
    0.1666652113199234,
    0.4999999403953552,
    1.0,
    1.0,
)
"""Of f⁶, f⁵, … 1: e^f for |f| ≤ ½ ln 2 to within 4e-9, relatively (least squares,
weighted until the largest errors are equal)."""
LEAST, MOST = -87.0, 88.0
"""Between them 2ⁿ e^f is a normal number, so that adding to its exponent is enough."""
ROUNDER = 1.5 * 2.0**23
"""Adding it puts a small integer into the lowest bits."""


@jax.custom_jvp
def quick_exp(x: Array) -> Array:
    """e^x of float32, on a CPU to within 1.2e-7, relatively; there what is below
    `LEAST` gives 0, and above `MOST` ∞. Elsewhere it is XLA's.

    >>> quick_exp(jnp.array([0.0, -100.0])).tolist()
    [1.0, 0.0]
    """
    return jax.lax.platform_dependent(x, cpu=_on_cpu, default=jnp.exp)


@quick_exp.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    found: Any = quick_exp(*primals)
    return found, found * tangents[0]


def _on_cpu(x: Array) -> Array:
    """e^x = 2ⁿ e^f: n is added to the exponent of e^f."""
    nearest = jax.lax.RoundingMethod.TO_NEAREST_EVEN
    n = jax.lax.round(x * jnp.float32(1 / math.log(2)), nearest)
    f = x - n * jnp.float32(LN_2_HIGH) - n * jnp.float32(LN_2_LOW)
    power = jnp.float32(COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        power = power * f + jnp.float32(coefficient)
    # A conversion to integers would be checked for numbers that are too large.
    n_bits = jax.lax.bitcast_convert_type(n + jnp.float32(ROUNDER), jnp.int32)
    bits = jax.lax.bitcast_convert_type(power, jnp.int32) + (n_bits << 23)
    found = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(x < LEAST, 0, jnp.where(x <= MOST, found, x + jnp.inf))
