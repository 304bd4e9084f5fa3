"""How likely a model finds given translations."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.data.batching import Batch
from transformer_jax.data.pipeline import eval_batches
from transformer_jax.data.sources import Pair
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.models.output import project
from transformer_jax.models.transformer import Transformer
from transformer_jax.training.objectives import last_hidden
from transformer_jax.types import Array, Params

LOGIT_TOKENS = 1024
"""Tokens whose logits are held at once, about."""


@dataclasses.dataclass(frozen=True)
class PairScore:
    """What a model says of one given translation."""

    log_probability: float
    """Of all target tokens given the source, end token included, in nats."""
    tokens: tuple[str, ...]
    """Target pieces, end token included."""
    token_log_probabilities: tuple[float, ...]
    """Of each token, given those before it."""


def score_pairs(
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], object] | None = None,
) -> list[PairScore]:
    """One score for each (source, target), in order; none is cut or left out.

    `progress` is called with the number of pairs just done.
    """
    pairs = [Pair(*pair) for pair in pairs]
    found: list[PairScore | None] = [None] * len(pairs)
    for batch, indices in eval_batches(
        pairs, tokenizer, model.config, batch_tokens=batch_tokens
    ):
        scores = jax.device_get(token_log_probabilities(params, batch, model=model))
        for row, index in enumerate(indices):
            if index < 0:
                continue
            length = int((batch.target_segment_ids[row] > 0).sum())
            of_tokens = scores[row, :length]
            found[index] = PairScore(
                log_probability=float(of_tokens.sum(dtype="float64")),
                tokens=tuple(
                    tokenizer.target_pieces(batch.targets[row, :length].tolist())
                ),
                token_log_probabilities=tuple(of_tokens.tolist()),
            )
        if progress:
            progress(int((indices >= 0).sum()))
    return cast(list[PairScore], found)


@functools.partial(jax.jit, static_argnames=("model",))
def token_log_probabilities(params: Params, batch: Batch, *, model: nn.Module) -> Array:
    """log p(target token | source, target tokens before it): [B, T], 0 at padding."""
    hidden, table, bias = last_hidden(model, params, batch)

    def of_row(row: tuple[Array, Array]) -> Array:
        states, targets = row
        logits = project(states[None], table, bias)[0]  # [T, V]
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    # A few rows at a time: logits [B, T, V] of a large vocabulary fill the memory.
    few = max(1, LOGIT_TOKENS // hidden.shape[1])
    scores = jax.lax.map(of_row, (hidden, batch.targets), batch_size=few)
    return jnp.where(batch.target_segment_ids > 0, scores, 0.0)
