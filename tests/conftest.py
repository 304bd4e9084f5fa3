"""Eight fake devices and strictness: warnings, rank promotion, reused keys raise."""

import os
import tempfile

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    # Toy models spend their time in the compiler, not in what it compiles: no
    # optimisation, the older and quicker way of writing loops, and one thread for a
    # program.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8"
        + " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
        + " --xla_cpu_parallel_codegen_split_count=1"
    )
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Compiled once for all tests, their workers and the commands that they start.
    PROGRAMS = tempfile.TemporaryDirectory(prefix="transformer_jax_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.devices()  # before a verb that runs in this process settles on fewer


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs are freed after each file: a process may map only so many
    pieces of memory (65 530 on Linux), and each program takes dozens."""
    yield
    jax.clear_caches()
