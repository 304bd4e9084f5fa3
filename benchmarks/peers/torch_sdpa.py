"""A Transformer written by hand for speed in PyTorch.

Queries, keys and values of self-attention come from one product, keys and values of
cross-attention from another; `scaled_dot_product_attention` is told of padding only
where there is some. Targets are padded at the end, so being causal hides it.
"""

from torch import nn
from torch.nn import functional as F  # noqa: N812

from peers.torch_training import Embedded, Tensor, TorchBatch
from transformer_jax.config import ModelConfig


class Attention(nn.Module):
    """Multi-head attention of x over y, or over x itself."""

    def __init__(self, config: ModelConfig, *, cross: bool) -> None:
        super().__init__()
        width = config.d_model
        self.heads, self.cross = config.num_heads, cross
        if cross:
            self.query = nn.Linear(width, width)
            self.key_value = nn.Linear(width, 2 * width)
        else:
            self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, y: Tensor | None, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """X [B, T, D], y [B, S, D], mask [B, 1, 1, S] → [B, T, D]."""
        if y is None:
            q, k, v = self.query_key_value(x).chunk(3, dim=-1)
        else:
            q = self.query(x)
            k, v = self.key_value(y).chunk(2, dim=-1)
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Post-norm sublayers, of an encoder or of a decoder."""

    def __init__(self, config: ModelConfig, *, decoder: bool) -> None:
        super().__init__()
        width = config.d_model
        self.decoder = decoder
        self.self_attention = Attention(config, cross=False)
        self.self_norm = nn.LayerNorm(width, config.norm_eps)
        if decoder:
            self.cross_attention = Attention(config, cross=True)
            self.cross_norm = nn.LayerNorm(width, config.norm_eps)
        self.up = nn.Linear(width, config.d_ff)
        self.down = nn.Linear(config.d_ff, width)
        self.feed_forward_norm = nn.LayerNorm(width, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        """X [B, T, D] → [B, T, D]; mask of the source."""
        attended = self.self_attention(
            x, None, None if self.decoder else mask, self.decoder
        )
        x = self.self_norm(x + self.dropout(attended))
        if self.decoder:
            attended = self.cross_attention(x, memory, mask, False)
            x = self.cross_norm(x + self.dropout(attended))
        fed = self.down(F.relu(self.up(x)))
        return self.feed_forward_norm(x + self.dropout(fed))


class HandWritten(nn.Module):
    """Embeddings, two stacks, tied output: logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocab_size = config.target_vocab_size
        self.embedded = Embedded(config)
        self.encoder = nn.ModuleList(
            Layer(config, decoder=False) for _ in range(config.num_encoder_layers)
        )
        self.decoder = nn.ModuleList(
            Layer(config, decoder=True) for _ in range(config.num_decoder_layers)
        )

    def forward(self, batch: TorchBatch) -> Tensor:
        """→ logits [B, T, V]."""
        padding = batch.input_padding
        mask = None if padding is None else ~padding[:, None, None, :]
        memory = self.embedded(batch.inputs)
        for layer in self.encoder:
            memory = layer(memory, None, mask)
        x = self.embedded(batch.decoder_inputs)
        for layer in self.decoder:
            x = layer(x, memory, mask)
        return self.embedded.logits(x)
