"""Compiled programs are kept between starts, so that a second start is quick."""

import os
import sys
from pathlib import Path


def keep_compiled_programs() -> None:
    """Lets jax find at the next start what it compiles at this one.

    In JAX_COMPILATION_CACHE_DIR if it is set, else in ~/.cache/transformer_jax/xla.
    Works before jax is imported and after, and does not import it.
    """
    default = str(Path("~/.cache/transformer_jax/xla").expanduser())
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", default)
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    seconds = os.environ.setdefault(name, "0.5")
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_compilation_cache_dir", folder or None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))
