"""Position tables against the formula, element by element."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models.embeddings import sinusoidal_table
from transformer_jax.testing import tiny_batch, tiny_model


def by_loops(positions, d_model, layout):
    """Each layout as its library writes it down."""
    half = d_model // 2
    table = np.zeros((positions, d_model))
    for position in range(positions):
        for i in range(half):
            exponent = i / (half - 1) if layout == "halves" else 2 * i / d_model
            angle = position / math.pow(10_000, exponent)
            sine, cosine = (
                (2 * i, 2 * i + 1) if layout == "interleaved" else (i, half + i)
            )
            table[position, sine] = math.sin(angle)
            table[position, cosine] = math.cos(angle)
    return table


@pytest.mark.parametrize("layout", ["interleaved", "halves", "halves_paper"])
def test_sinusoids_follow_their_formula(layout):
    table = sinusoidal_table(40, 12, layout)
    chex.assert_trees_all_close(table, by_loops(40, 12, layout).astype(np.float32))


@functools.partial(jax.jit, static_argnums=0)
def encode(model, params, batch):
    return model.apply(
        {"params": params},
        batch.inputs,
        batch.input_segment_ids,
        batch.input_positions,
        deterministic=True,
        method="encode",
    )


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_offset_shifts_positions(positions):
    batch = tiny_batch()
    model, params = tiny_model(positions=positions, position_offset=3)
    plain, _ = tiny_model(positions=positions)
    later = batch._replace(input_positions=batch.input_positions + 3)
    wide = lambda x: np.pad(x, ((0, 0), (0, 3)))  # noqa: E731
    padded = type(batch)(*(wide(x) for x in later))
    expected = encode(plain, params, padded)[:, : batch.inputs.shape[1]]
    chex.assert_trees_all_close(encode(model, params, batch), expected, atol=1e-5)


def test_a_sequence_past_the_learned_table_is_refused():
    model, params = tiny_model(positions="learned", max_positions=8)
    with pytest.raises(ValueError, match=r"10 positions.*table 8.*max_positions"):
        encode(model, params, tiny_batch(source_width=10))


@pytest.mark.parametrize("scale", [True, False])
def test_embeddings_are_scaled_by_the_root_of_the_width(scale):
    batch = tiny_batch()
    model, params = tiny_model(
        scale_embeddings=scale, norm_position="pre", num_encoder_layers=1
    )
    table = params["shared_embedding"]["embedding"]
    scaled = jnp.asarray(table) * (4.0 if scale else 1.0)  # d_model is 16
    other, _ = tiny_model(
        scale_embeddings=False, norm_position="pre", num_encoder_layers=1
    )
    changed = {**params, "shared_embedding": {"embedding": scaled}}
    chex.assert_trees_all_close(
        encode(model, params, batch), encode(other, changed, batch), atol=1e-5
    )
