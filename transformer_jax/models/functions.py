"""The model as plain functions of parameters and arrays: what search and tools call."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.models.layers import Memory
from transformer_jax.models.output import Output, RoughOutput
from transformer_jax.types import Array, Cache, Params, PRNGKey, StepFn, StepOutput


def init_params(model: nn.Module, rng: PRNGKey) -> Params:
    """Fresh parameters; shapes do not depend on a batch."""
    ones = jnp.ones((1, 1), jnp.int32)
    return model.init(
        rng,
        ones,
        ones,
        input_segment_ids=ones,
        target_segment_ids=ones,
        input_positions=0 * ones,
        target_positions=0 * ones,
        deterministic=True,
    )["params"]


def row_positions(segment_ids: Array) -> Array:
    """Positions [B, S] of rows that hold one sentence each, from its first token on.

    >>> row_positions(jnp.array([[1, 1, 1, 0]]))
    Array([[0, 1, 2, 0]], dtype=int32)
    """
    places = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where(segment_ids > 0, places, 0)


def encode_memory(
    model: nn.Module, params: Params, inputs: Array, segment_ids: Array
) -> Memory:
    """Encode B sentences, one a row: inputs, segment ids [B, S] → memory."""
    variables = {"params": params}
    positions = row_positions(segment_ids)
    encoded: Any = model.apply(
        variables, inputs, segment_ids, positions, deterministic=True, method="encode"
    )
    memory: Any = model.apply(variables, encoded, segment_ids, method="make_memory")
    return memory


def make_step_fn(
    model: nn.Module,
    params: Params,
    *,
    return_attention: bool = False,
    output: Output | RoughOutput | None = None,
) -> StepFn:
    """The model's decoding step with its parameters bound, as search wants it; with
    `output`, logits are of its tokens, or rough ones, of all."""

    def step_fn(
        tokens: Array, positions: Array, cache: Cache, memory: Memory
    ) -> tuple[StepOutput, Cache]:
        return model.apply(
            {"params": params},
            tokens,
            positions,
            cache,
            memory,
            return_attention=return_attention,
            output=output,
            method="decode_step",
        )

    return step_fn
