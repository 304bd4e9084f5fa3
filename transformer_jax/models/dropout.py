"""Dropout from a hash of each value's place: a few operations, fused with their use."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.types import Array, PRNGKey


def drop(x: Array, rate: float, rng: PRNGKey) -> Array:
    """Zero a share `rate` of x and scale the rest so that the mean stays (Srivastava et
    al., 2014).

    >>> x = drop(jnp.ones(10_000), 0.25, jax.random.key(0))
    >>> bool(abs(x.mean() - 1) < 0.02), round(float(x.max()), 2)
    (True, 1.33)
    """
    threshold = min(round(rate * 2**32), 2**32 - 1)
    kept = random_words(rng, x.shape) >= jnp.uint32(threshold)
    scaled = x.astype(jnp.float32) * (1 / (1 - rate))  # bfloat16 would round the factor
    return jnp.where(kept, scaled.astype(x.dtype), jnp.zeros_like(x))


def random_words(rng: PRNGKey, shape: tuple[int, ...]) -> Array:
    """32 random bits for each place, uint32.

    Two rounds of a mixing function on the place's number, with a word of the key before
    each. That is random enough to drop values by, and takes a few operations where
    `jax.random.bits` takes some hundred, in a loop that XLA does not fuse.
    """
    first, second = jax.random.bits(rng, (2,), "uint32")
    number, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        places = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        number += places * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return _mix(_mix(number + first) ^ second)


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words in which each bit of x changes half of the bits
    (constants: Wellons, 2018, hash-prospector)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


class Dropout(nn.Module):
    """`drop` with a rate of its own and keys from the `dropout` stream."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        if deterministic or self.rate == 0:
            return x
        return drop(x, self.rate, self.make_rng("dropout"))
