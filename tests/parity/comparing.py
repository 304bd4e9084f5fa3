"""What comparisons with other libraries share: our logits, and how far they are off."""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.data.batching import Batch
from transformer_jax.models import Transformer
from transformer_jax.types import Params

TOLERANCE = 1e-4
"""Largest difference of float32 logits, of size 10 at most, between two libraries."""


def our_logits(config: ModelConfig, params: Params, batch: Batch) -> np.ndarray:
    """Logits [B, T, V] of a padded batch."""
    # Not jitted: models that differ a little then share most of what is compiled.
    logits = Transformer(config).apply(
        {"params": jax.tree.map(jnp.asarray, params)},
        batch.inputs,
        batch.decoder_inputs,
        input_segment_ids=batch.input_segment_ids,
        target_segment_ids=batch.target_segment_ids,
        input_positions=batch.input_positions,
        target_positions=batch.target_positions,
        deterministic=True,
    )
    return np.asarray(logits)


def padded_batch(inputs: np.ndarray, decoder_inputs: np.ndarray, pad_id: int) -> Batch:
    """One sentence a row, ids [B, S] and [B, T] with padding at the end."""
    source = (inputs != pad_id).astype(np.int32)
    target = (decoder_inputs != pad_id).astype(np.int32)
    return Batch(
        inputs=inputs,
        input_segment_ids=source,
        input_positions=np.arange(inputs.shape[1], dtype=np.int32) * source,
        decoder_inputs=decoder_inputs,
        targets=decoder_inputs,
        target_segment_ids=target,
        target_positions=np.arange(decoder_inputs.shape[1], dtype=np.int32) * target,
    )


def largest_difference(ours: np.ndarray, theirs: np.ndarray, batch: Batch) -> float:
    """Over the logits of real target tokens; also printed, for the record."""
    real = batch.target_segment_ids > 0
    assert ours.shape == theirs.shape
    assert np.abs(theirs[real]).max() > 0.5  # not a comparison of zeros
    difference = float(np.abs(ours[real] - theirs[real]).max())
    print(f"largest difference of logits: {difference:.2e}")
    return difference
