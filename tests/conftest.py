"""Eight fake devices and strictness: warnings, rank promotion, reused keys raise."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# Toy models spend their time in the compiler, not in what it compiles.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs are freed after each file: a process may map only so many
    pieces of memory (65 530 on Linux), and each program takes dozens."""
    yield
    jax.clear_caches()
