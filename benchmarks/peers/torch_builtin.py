"""`torch.nn.Transformer` between embeddings and a tied output projection."""

import torch
from torch import nn

from peers.torch_training import Embedded, Tensor, TorchBatch
from transformer_jax.config import ModelConfig


class BuiltIn(nn.Module):
    """Dropout stands where ours does, and no norm follows the last layers: so the
    numbers of parameters agree, and its attention may take the fused kernel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocab_size = config.target_vocab_size
        self.embedded = Embedded(config)
        self.stacks = nn.Transformer(
            config.d_model,
            config.num_heads,
            config.num_encoder_layers,
            config.num_decoder_layers,
            config.d_ff,
            config.dropout,
            batch_first=True,
        )
        self.stacks.encoder.norm = self.stacks.decoder.norm = None
        for each in self.stacks.modules():
            if isinstance(each, nn.MultiheadAttention):
                each.dropout = 0.0
            if isinstance(
                each, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
            ):
                each.dropout = nn.Dropout(0.0)

    def forward(self, batch: TorchBatch) -> Tensor:
        """→ logits [B, T, V]."""
        length = batch.decoder_inputs.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=batch.inputs.device)
        hidden = self.stacks(
            self.embedded(batch.inputs),
            self.embedded(batch.decoder_inputs),
            tgt_mask=later.triu(1),
            tgt_is_causal=True,
            src_key_padding_mask=batch.input_padding,
            memory_key_padding_mask=batch.input_padding,
        )
        return self.embedded.logits(hidden)
