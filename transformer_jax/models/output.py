"""From hidden states to logits: exact ones, and rough ones that cost half on some CPUs.

A processor that multiplies bfloat16 does it twice as fast as float32. Rounding the
hidden state h to h' and a token's row w of the output table to w' changes a logit by
h·w - h'·w' = (h - h')·w + h'·(w - w'), which is at most |h - h'| |w| + |h'| |w - w'|
(Cauchy and Schwarz). So tokens far below the highest rough logit cannot be the best,
and a search that wants the best alone computes exactly what a few others have.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.types import Array, RoughLogits


class Output(NamedTuple):
    """What logits of U tokens are made of."""

    columns: Array
    """[D, U]: of the output table, turned. A product with few rows is faster so on a
    CPU, which otherwise turns the table for each."""
    bias: Array | None
    """[U]"""


class RoughOutput(NamedTuple):
    """What rough logits of all tokens are made of, beside the exact table."""

    columns: Array
    """[D, V] in bfloat16: the output table, turned and rounded."""
    norm: Array
    """[]: the longest |w|."""
    rounding: Array
    """[]: the longest |w - w'|."""
    bias: Array
    """[]: the highest |bias|."""


class OutputProjection(nn.Module):
    """The matrix, where it is not the target embedding, and the bias of the logits."""

    config: ModelConfig

    @nn.compact
    def __call__(self, target_table: Array) -> tuple[Array, Array | None]:
        """→ table [V, D] and bias [V]."""
        config = self.config
        dtype = jnp.dtype(config.param_dtype)
        vocab_size, table, bias = config.target_vocab_size, target_table, None
        if not config.output_is_target_table:
            init = nn.initializers.xavier_uniform()
            shape = (config.d_model, vocab_size)
            table = self.param("kernel", init, shape, dtype).T
        if config.output_bias:
            bias = self.param("bias", nn.initializers.zeros, (vocab_size,), dtype)
        return table, bias


def project(hidden: Array, table: Array, bias: Array | None) -> Array:
    """Logits in float32: hidden [B, T, D] · table [V, D]ᵀ + bias [V] → [B, T, V]."""
    logits = jnp.einsum(
        "BTD,VD->BTV",
        hidden,
        table.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    return logits if bias is None else logits + bias.astype(jnp.float32)[None, None, :]


def rough_output(table: Array, bias: Array | None) -> RoughOutput:
    """Of a table [V, D] and bias [V] in float32; made once for many steps."""
    near = _rounded(table)
    return RoughOutput(
        columns=near.T.astype(jnp.bfloat16),
        norm=_length(table).max(),
        rounding=_length(table - near).max(),
        bias=jnp.zeros(()) if bias is None else jnp.abs(bias).max(),
    )


def project_roughly(
    hidden: Array, rough: RoughOutput, table: Array, bias: Array | None
) -> RoughLogits:
    """What `project` gives of hidden [R, L, D], all in float32, but rough."""
    near = _rounded(hidden)
    values = jnp.einsum(
        "RLD,DV->RLV",
        near.astype(jnp.bfloat16),
        rough.columns,
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        values = values + bias[None, None, :]

    def exactly(tokens: Array | None) -> Array:
        if tokens is None:
            return project(hidden, table, bias)
        values = jnp.einsum("RLD,RLCD->RLC", hidden, table[tokens])
        return values if bias is None else values + bias[tokens]

    # Both sums are rounded, too: by D units in the last place of |h| |w| at most, and
    # by one where the bias is added (Higham, Accuracy and Stability, section 3.1).
    # Twice that, so that the bound itself may be rounded.
    places = (hidden.shape[-1] + 2) * _length(hidden) * rough.norm + rough.bias
    error = _length(hidden - near) * rough.norm + _length(near) * rough.rounding
    error = error + 2 * jnp.finfo(jnp.float32).eps * places
    return RoughLogits(values, error, exactly)


def _rounded(x: Array) -> Array:
    """To bfloat16, held in float32. (XLA may leave out a conversion there and back.)"""
    kept = jnp.finfo(jnp.bfloat16)
    return jax.lax.reduce_precision(x, kept.nexp, kept.nmant)


def _length(x: Array) -> Array:
    """[…, D] → […], and what squares so small that they are 0 may have added to it."""
    return jnp.linalg.norm(x, axis=-1) + 1e-16
