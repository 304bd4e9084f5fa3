"""What is minimised: a batch → the summed loss, and metrics as sums and weights."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.data.batching import Batch
from transformer_jax.training.losses import fused_cross_entropy
from transformer_jax.training.metrics import Mean, Metrics
from transformer_jax.types import Array, Params, PRNGKey

Objective = Callable[[Params, Batch, PRNGKey | None], tuple[Array, Metrics]]
"""(params, batch, dropout rng or None) → (summed loss, metrics)."""


def make_objective(
    model: nn.Module,
    label_smoothing: float,
    *,
    deterministic: bool,
    shards: int = 1,
    one_per_row: bool = False,
) -> Objective:
    """Label-smoothed cross-entropy of the targets, in nats, summed over the tokens that
    are not padding (section 5.4 of the paper).

    Metrics: `loss`, `nll` (without smoothing) and `accuracy` (of the likeliest token
    under teacher forcing), each weighted by the number of target tokens. `shards` is in
    how many parts devices share out the rows (see `fused_cross_entropy`), `one_per_row`
    the promise of `Segments`.
    """

    def objective(
        params: Params, batch: Batch, rng: PRNGKey | None
    ) -> tuple[Array, Metrics]:
        rngs = None if rng is None else {"dropout": rng}
        hidden, table, bias = last_hidden(
            model,
            params,
            batch,
            deterministic=deterministic,
            rngs=rngs,
            one_per_row=one_per_row,
        )
        weights = (batch.target_segment_ids > 0).astype(jnp.float32)
        with jax.named_scope("loss"):
            sums = fused_cross_entropy(
                hidden,
                table,
                bias,
                batch.targets,
                weights,
                label_smoothing,
                shards=shards,
            )
        tokens = weights.sum()
        metrics = {
            "loss": Mean(sums.loss, tokens),
            "nll": Mean(sums.nll, tokens),
            "accuracy": Mean(sums.correct, tokens),
        }
        return sums.loss, metrics

    return objective


def last_hidden(
    model: nn.Module,
    params: Params,
    batch: Batch,
    *,
    deterministic: bool = True,
    rngs: dict[str, PRNGKey] | None = None,
    one_per_row: bool = False,
) -> tuple[Array, Array, Array | None]:
    """Encode and decode a batch in one pass: hidden [B, T, D], table [V, D] and bias
    [V] or None."""

    def forward(model: Any) -> tuple[Array, Array, Array | None]:
        encoded = model.encode(
            batch.inputs,
            batch.input_segment_ids,
            batch.input_positions,
            deterministic=deterministic,
            one_per_row=one_per_row,
        )
        return model.decode_hidden(
            batch.decoder_inputs,
            encoded,
            input_segment_ids=batch.input_segment_ids,
            target_segment_ids=batch.target_segment_ids,
            target_positions=batch.target_positions,
            deterministic=deterministic,
            one_per_row=one_per_row,
        )

    apply: Callable[..., Any] = model.apply
    return apply({"params": params}, rngs=rngs, method=forward)
