"""How the models in PyTorch are fed and trained: as fast as PyTorch lets them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from transformer_jax.config import ModelConfig, OptimizerConfig
from transformer_jax.data.batching import Batch
from transformer_jax.models.embeddings import sinusoidal_table

Tensor = torch.Tensor
MAX_POSITIONS = 1024


class TorchBatch(NamedTuple):
    """Ids [B, S] and [B, T]. Where no row is padded there are no masks to look at."""

    inputs: Tensor
    decoder_inputs: Tensor
    targets: Tensor
    """Padding is -100, which `cross_entropy` leaves out."""
    input_padding: Tensor | None
    """True where the source is padding."""
    target_padding: Tensor | None
    num_targets: int


def torch_batch(batch: Batch, device: str = "cpu") -> TorchBatch:
    """Arrays as tensors."""
    source, target = batch.input_segment_ids == 0, batch.target_segment_ids == 0

    def ids(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.astype(np.int64)).to(device)

    def padding(x: np.ndarray) -> Tensor | None:
        return torch.from_numpy(x).to(device) if x.any() else None

    return TorchBatch(
        ids(batch.inputs),
        ids(batch.decoder_inputs),
        ids(np.where(target, -100, batch.targets)),
        padding(source),
        padding(target),
        int(np.count_nonzero(~target)),
    )


class Embedded(nn.Module):
    """dropout(table[token] · √D + sinusoid); one table for everything."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.target_vocab_size, config.d_model)
        nn.init.normal_(self.table.weight, std=config.d_model**-0.5)
        waves = sinusoidal_table(MAX_POSITIONS, config.d_model)
        self.register_buffer("waves", torch.from_numpy(waves))
        self.scale = config.d_model**0.5
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] → [B, T, D]."""
        waves = self.get_buffer("waves")[: tokens.shape[1]]
        return self.dropout(self.table(tokens) * self.scale + waves)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, T, D] → [B, T, V]."""
        return F.linear(hidden, self.table.weight)


Loss = Callable[[Tensor, TorchBatch, float], Tensor]


def cross_entropy(logits: Tensor, batch: TorchBatch, smoothing: float) -> Tensor:
    """PyTorch's own, with label smoothing; the mean over real targets."""
    return F.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), label_smoothing=smoothing
    )


class TorchPeer:
    """One model, trained on given batches with fused Adam."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        smoothing: float,
        batches: Sequence[Batch],
        loss: Loss = cross_entropy,
        *,
        device: str = "cpu",
        compiled: bool = False,
        autocast: bool = False,
    ) -> None:
        for each in model.parameters():
            if each.dim() > 1 and each.shape[0] != getattr(model, "vocab_size", None):
                nn.init.xavier_uniform_(each)
        self.model = model.train().to(device)
        self.parameters = sum(each.numel() for each in model.parameters())
        self.adam = torch.optim.Adam(
            model.parameters(),
            optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            fused=True,
        )
        self.batches = [torch_batch(batch, device) for batch in batches]

        def mean_loss(batch: TorchBatch) -> Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                return loss(self.model(batch), batch, smoothing)

        self.mean_loss = torch.compile(mean_loss) if compiled else mean_loss

    def update(self, place: int) -> Tensor:
        """One update on a batch, without waiting for it: its loss."""
        loss = self.mean_loss(self.batches[place])
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return loss.detach()

    def step(self, place: int) -> float:
        """One update on a batch: its loss for each target token."""
        return self.update(place).item()
