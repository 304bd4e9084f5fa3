"""From token ids and positions to vectors (section 3.4 and 3.5 of the paper)."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.models.dropout import Dropout
from transformer_jax.types import Array


def sinusoidal_table(
    num_positions: int, d_model: int, layout: str = "interleaved"
) -> np.ndarray:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(…) → [positions, D].

    Section 3.5 of the paper. Three layouts are in use, and weights trained with one do
    not work with another:

    - "interleaved": sine and cosine alternate; exponent 2i/d (the paper, Annotated
      Transformer, OpenNMT-py, Joey NMT);
    - "halves": all sines, then all cosines; exponent i/(d/2 - 1) (tensor2tensor,
      fairseq, Flax's WMT example);
    - "halves_paper": all sines, then all cosines; exponent 2i/d (Sockeye).

    Computed in float64 and rounded once.

    >>> (100 * sinusoidal_table(2, 4)).astype(int).tolist()
    [[0, 100, 0, 100], [84, 54, 0, 99]]
    """
    half = d_model // 2
    i = np.arange(half)
    exponent = i / max(half - 1, 1) if layout == "halves" else i / half
    angles = np.arange(num_positions)[:, None] * 10_000.0 ** -exponent[None, :]
    waves = np.stack([np.sin(angles), np.cos(angles)])  # [2, positions, D/2]
    order = (1, 2, 0) if layout == "interleaved" else (1, 0, 2)
    return waves.transpose(order).reshape(num_positions, d_model).astype(np.float32)


class Embedding(nn.Module):
    """dropout(table[token] · √d + position) for one side of the model.

    The token table is handed in, because it may be shared between the two sides and
    with the output projection. Learned positions are this module's own.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array,
        table: Array,
        *,
        num_positions: int,
        deterministic: bool,
    ) -> Array:
        """Tokens, positions [B, T], table [V, D] → [B, T, D].

        `num_positions` bounds the positions; a learned table must be at least as long.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        x = jnp.take(table, tokens, axis=0).astype(dtype)
        if config.scale_embeddings:
            x = x * math.sqrt(config.d_model)
        x = x + self.position_table(num_positions).astype(dtype)[positions]
        return Dropout(config.dropout)(x, deterministic=deterministic)

    def position_table(self, num_positions: int) -> Array:
        """Vectors of the positions 0 … num_positions - 1: [positions, D]."""
        config, first = self.config, self.config.position_offset
        last = first + num_positions
        if config.positions == "sinusoidal":
            table = sinusoidal_table(last, config.d_model, config.sinusoid_layout)
            return jnp.asarray(table[first:])
        if last > config.max_positions:
            raise ValueError(
                f"A sequence has {num_positions} positions, starting at {first}, and "
                f"the learned table {config.max_positions}: split the text, or train "
                "with a larger model.max_positions or with sinusoidal positions."
            )
        table = self.param(
            "embedding",
            nn.initializers.normal(config.d_model**-0.5),
            (config.max_positions, config.d_model),
            jnp.dtype(config.param_dtype),
        )
        return table[first:last]
