"""The Transformer: pure functions of parameters and arrays."""

from transformer_jax.models.cache import init_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.models.transformer import Transformer

__all__ = ["Transformer", "encode_memory", "init_cache", "make_step_fn"]
