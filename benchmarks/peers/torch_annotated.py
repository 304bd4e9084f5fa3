"""The architecture of the Annotated Transformer (Rush, 2018; Huang et al., 2022).

What it does differently: pre-norm with a norm after each stack; norms of its own that
divide by the unbiased standard deviation; three projections for each attention, and
weights made and dropped out in the open; dropout inside the feed-forward layer; a loss
that compares log-probabilities with a full target distribution. Its tables are tied
here, as the others' are.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from peers.torch_training import Embedded, Tensor, TorchBatch
from transformer_jax.config import ModelConfig


class StdNorm(nn.Module):
    """scale · (x - mean) / (std + ε) + bias."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        centred = x - x.mean(-1, keepdim=True)
        return self.scale * centred / (x.std(-1, keepdim=True) + self.eps) + self.bias


class Attention(nn.Module):
    """softmax(q kᵀ / √H) v with the weights in the open."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.d_model, config.d_model) for _ in range(4)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """X [B, T, D] over y [B, S, D]; mask [B, 1, 1 or T, S], True = may attend."""
        q, k, v = (
            project(z).view(*z.shape[:2], self.heads, -1).transpose(1, 2)
            for project, z in ((self.query, x), (self.key, y), (self.value, y))
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        mixed = self.dropout(weights) @ v
        return self.out(mixed.transpose(1, 2).contiguous().flatten(2))


class Layer(nn.Module):
    """Pre-norm sublayers, of an encoder or of a decoder."""

    def __init__(self, config: ModelConfig, *, decoder: bool) -> None:
        super().__init__()
        width = config.d_model
        self.self_attention = Attention(config)
        self.cross_attention = Attention(config) if decoder else None
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.d_ff),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.d_ff, width),
        )
        self.norms = nn.ModuleList(StdNorm(width) for _ in range(2 + decoder))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor
    ) -> Tensor:
        """X [B, T, D], memory [B, S, D] → [B, T, D]."""
        y = self.norms[0](x)
        x = x + self.dropout(self.self_attention(y, y, mask))
        if self.cross_attention is not None:
            y = self.norms[1](x)
            x = x + self.dropout(self.cross_attention(y, memory, memory_mask))
        return x + self.dropout(self.feed_forward(self.norms[-1](x)))


class Annotated(nn.Module):
    """Embeddings, two stacks with a norm after each, tied output: logits."""

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
        self.norms = nn.ModuleList(StdNorm(config.d_model) for _ in range(2))

    def forward(self, batch: TorchBatch) -> Tensor:
        """→ logits [B, T, V]."""
        source, target = batch.inputs, batch.decoder_inputs
        mask = torch.ones_like(source, dtype=torch.bool)
        if batch.input_padding is not None:
            mask = ~batch.input_padding
        mask = mask[:, None, None, :]
        length = target.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=source.device)
        causal = causal.tril()[None, None]
        memory = self.embedded(source)
        for layer in self.encoder:
            memory = layer(memory, mask, memory, mask)
        memory = self.norms[0](memory)
        x = self.embedded(target)
        for layer in self.decoder:
            x = layer(x, causal, memory, mask)
        return self.embedded.logits(self.norms[1](x))


def divergence(logits: Tensor, batch: TorchBatch, smoothing: float) -> Tensor:
    """KL(smoothed targets ‖ model), the mean over real targets."""
    found = logits.flatten(0, 1).log_softmax(-1)
    targets = batch.targets.flatten()
    real = targets >= 0
    wanted = torch.full_like(found, smoothing / (found.shape[-1] - 1))
    wanted.scatter_(1, targets.clamp(min=0)[:, None], 1 - smoothing)
    wanted = wanted * real[:, None]
    return F.kl_div(found, wanted, reduction="sum") / batch.num_targets
