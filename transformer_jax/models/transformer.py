"""The encoder-decoder Transformer (Vaswani et al., 2017, section 3) as pure functions.

`Transformer` is trained with `decode_hidden` (whole target at once) and searched with
`encode`, `make_memory` and `decode_step` (a few tokens a row, with a cache).
"""

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.config import ModelConfig
from transformer_jax.models.cache import DecoderCache
from transformer_jax.models.embeddings import Embedding
from transformer_jax.models.layers import Decoder, Encoder, Memory
from transformer_jax.models.masks import Segments
from transformer_jax.models.output import (
    Output,
    OutputProjection,
    RoughOutput,
    project,
    project_roughly,
    rough_output,
)
from transformer_jax.types import Array, StepOutput


class Transformer(nn.Module):
    """Encoder and decoder between embeddings and an output projection."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config

        def table(vocab_size: int) -> nn.Embed:
            return nn.Embed(
                vocab_size,
                config.d_model,
                embedding_init=nn.initializers.normal(config.d_model**-0.5),
                param_dtype=jnp.dtype(config.param_dtype),
            )

        if not (config.source_vocab_size and config.target_vocab_size):
            raise ValueError(
                f"The model has {config.source_vocab_size} source and "
                f"{config.target_vocab_size} target words: set source_vocab_size and "
                "target_vocab_size from the tokenizer."
            )
        if config.source_is_target_table:
            if config.source_vocab_size != config.target_vocab_size:
                raise ValueError(
                    f"tied_embeddings is {config.tied_embeddings!r}, but the source "
                    f"has {config.source_vocab_size} words and the target "
                    f"{config.target_vocab_size}: one table needs one vocabulary."
                )
            self.shared_embedding = table(config.target_vocab_size)
        else:
            self.source_embedding = table(config.source_vocab_size)
            self.target_embedding = table(config.target_vocab_size)
        self.source_positions = Embedding(config)
        self.target_positions = Embedding(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.output = OutputProjection(config)

    def _source_table(self) -> Array:
        shared = self.config.source_is_target_table
        return (self.shared_embedding if shared else self.source_embedding).embedding

    def _target_table(self) -> Array:
        shared = self.config.source_is_target_table
        return (self.shared_embedding if shared else self.target_embedding).embedding

    def encode(
        self,
        inputs: Array,
        segment_ids: Array,
        positions: Array,
        *,
        deterministic: bool,
        one_per_row: bool = False,
    ) -> Array:
        """Source ids, segment ids, positions [B, S] → [B, S, D].

        `one_per_row` is a promise, here and in `decode_hidden`: see `Segments`.
        """
        x = self.source_positions(
            inputs,
            positions,
            self._source_table(),
            num_positions=inputs.shape[1],
            deterministic=deterministic,
        )
        segments = Segments(segment_ids, segment_ids, one_per_row=one_per_row)
        return self.encoder(x, segments, deterministic=deterministic)

    def decode_hidden(
        self,
        decoder_inputs: Array,
        encoded: Array,
        *,
        input_segment_ids: Array,
        target_segment_ids: Array,
        target_positions: Array,
        deterministic: bool,
        one_per_row: bool = False,
    ) -> tuple[Array, Array, Array | None]:
        """Target ids [B, T] over encoded [B, S, D] → last hidden states [B, T, D],
        output table [V, D] and bias [V] or None; logits are hidden · tableᵀ + bias."""
        table = self._target_table()
        x = self.target_positions(
            decoder_inputs,
            target_positions,
            table,
            num_positions=decoder_inputs.shape[1],
            deterministic=deterministic,
        )
        target = target_segment_ids
        own = Segments(target, target, causal=True, one_per_row=one_per_row)
        source = Segments(target, input_segment_ids, one_per_row=one_per_row)
        hidden = self.decoder(x, encoded, own, source, deterministic=deterministic)
        return hidden, *self.output(table)

    def __call__(
        self,
        inputs: Array,
        decoder_inputs: Array,
        *,
        input_segment_ids: Array,
        target_segment_ids: Array,
        input_positions: Array,
        target_positions: Array,
        deterministic: bool,
    ) -> Array:
        """Source [B, S] and shifted target [B, T] → logits [B, T, V] in float32."""
        encoded = self.encode(
            inputs, input_segment_ids, input_positions, deterministic=deterministic
        )
        hidden, table, bias = self.decode_hidden(
            decoder_inputs,
            encoded,
            input_segment_ids=input_segment_ids,
            target_segment_ids=target_segment_ids,
            target_positions=target_positions,
            deterministic=deterministic,
        )
        return project(hidden, table, bias)

    def make_memory(self, encoded: Array, segment_ids: Array) -> Memory:
        """Encoded [B, S, D], segment ids [B, S] → what `decode_step` needs of them."""
        return Memory(self.decoder.memory(encoded), segment_ids)

    def output_columns(self, tokens: Array | None = None) -> Output:
        """The output table turned, for these tokens [U] or for all, and their bias."""
        table, bias = self.output(self._target_table())
        if tokens is not None:
            table = table.at[tokens].get(mode="clip")
            bias = None if bias is None else bias.at[tokens].get(mode="clip")
        return Output(table.T, bias)

    def rough_output(self) -> RoughOutput:
        """What logits of all tokens are made of that are not exact."""
        return rough_output(*self.output(self._target_table()))

    def decode_step(
        self,
        tokens: Array,
        positions: Array,
        cache: DecoderCache,
        memory: Memory,
        *,
        return_attention: bool = False,
        output: Output | RoughOutput | None = None,
    ) -> tuple[StepOutput, DecoderCache]:
        """L tokens a row [R, L], the first at `positions` [R]: see `types.StepFn`.

        With `output`, logits are of its tokens; or rough ones, of all.
        """
        places = positions[:, None] + jnp.arange(tokens.shape[1])[None, :]
        table = self._target_table()
        x = self.target_positions(
            tokens,
            places,
            table,
            num_positions=cache.ancestors.shape[1],
            deterministic=True,
        )
        hidden, cache, attention = self.decoder.step(x, places, cache, memory)
        if output is None:
            logits = project(hidden, *self.output(table))
        elif isinstance(output, RoughOutput):
            logits = project_roughly(hidden, output, *self.output(table))
        else:
            logits = project(hidden, output.columns.T, output.bias)
        return StepOutput(logits, attention if return_attention else None), cache
