"""The model out of Flax's own modules, trained the usual way: the baseline in JAX.

`nn.MultiHeadDotProductAttention`, `nn.LayerNorm`, `nn.Dense`, `nn.Embed` and
`nn.Dropout`; Optax's cross-entropy of smoothed labels over full logits; `optax.adam`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from transformer_jax.config import ModelConfig, OptimizerConfig
from transformer_jax.data.batching import Batch
from transformer_jax.models.embeddings import sinusoidal_table

Array = jax.Array


class Sublayers(nn.Module):
    """The sublayers of one layer, post-norm; with `memory`, those of a decoder's."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None,
        memory: Array | None,
        memory_mask: Array | None,
    ) -> Array:
        """X [B, T, D], memory [B, S, D] → [B, T, D]."""
        config = self.config

        def residual(x: Array, y: Array) -> Array:
            dropped = nn.Dropout(config.dropout, deterministic=False)(y)
            return nn.LayerNorm(epsilon=config.norm_eps)(x + dropped)

        def attention(x: Array, y: Array, mask: Array | None) -> Array:
            heads = config.num_heads
            return nn.MultiHeadDotProductAttention(heads)(x, y, mask=mask)

        x = residual(x, attention(x, x, mask))
        if memory is not None:
            x = residual(x, attention(x, memory, memory_mask))
        h = nn.relu(nn.Dense(config.d_ff)(x))
        return residual(x, nn.Dense(config.d_model)(h))


class FlaxTransformer(nn.Module):
    """Embeddings, two stacks, tied output: logits."""

    config: ModelConfig

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        """→ [B, T, V]."""
        config = self.config
        table = nn.Embed(
            config.target_vocab_size,
            config.d_model,
            embedding_init=nn.initializers.normal(config.d_model**-0.5),
        )

        def embed(tokens: Array) -> Array:
            places = sinusoidal_table(tokens.shape[1], config.d_model)
            x = table(tokens) * config.d_model**0.5 + places[None]
            return nn.Dropout(config.dropout, deterministic=False)(x)

        source, target = batch.input_segment_ids > 0, batch.target_segment_ids > 0
        source_mask = nn.make_attention_mask(source, source)
        cross_mask = nn.make_attention_mask(target, source)
        target_mask = nn.combine_masks(
            nn.make_attention_mask(target, target), nn.make_causal_mask(target)
        )
        x, y = embed(batch.inputs), embed(batch.decoder_inputs)
        for _ in range(config.num_encoder_layers):
            x = Sublayers(config)(x, source_mask, None, None)
        for _ in range(config.num_decoder_layers):
            y = Sublayers(config)(y, target_mask, x, cross_mask)
        return table.attend(y)


class FlaxStack:
    """One state, trained on given batches."""

    def __init__(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        smoothing: float,
        batches: Sequence[Batch],
    ) -> None:
        module = FlaxTransformer(model)
        self.batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]
        self.rng = jax.random.key(0)
        first = self.batches[0]
        init = jax.jit(lambda rng: module.init({"params": rng, "dropout": rng}, first))
        self.params = init(self.rng)
        self.parameters = sum(x.size for x in jax.tree.leaves(self.params))
        chain = optax.adam(
            optimizer.learning_rate, optimizer.b1, optimizer.b2, optimizer.eps
        )
        self.opt_state = chain.init(self.params)
        self.count = 0

        def mean_loss(params: Any, batch: Batch, rng: Array) -> Array:
            apply: Any = module.apply
            logits = apply(params, batch, rngs={"dropout": rng})
            one_hot = jax.nn.one_hot(batch.targets, logits.shape[-1])
            labels = optax.smooth_labels(one_hot, smoothing)
            losses = optax.softmax_cross_entropy(logits, labels)
            weights = batch.target_segment_ids > 0
            return (losses * weights).sum() / weights.sum()

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train_step(params: Any, opt_state: Any, batch: Batch, rng: Array):
            loss, grads = jax.value_and_grad(mean_loss)(params, batch, rng)
            updates, opt_state = chain.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        self.train_step = train_step

    def step(self, place: int) -> float:
        """One update on a batch: its loss for each target token."""
        self.count += 1
        rng = jax.random.fold_in(self.rng, self.count)
        self.params, self.opt_state, loss = self.train_step(
            self.params, self.opt_state, self.batches[place], rng
        )
        return float(loss)
