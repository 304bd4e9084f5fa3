"""`torch.nn.Transformer` with what PyTorch's translation tutorial puts around it.

Attribute names are the tutorial's, as they name the weights; import it only where torch
is installed.
"""
# pyright: reportMissingImports=false

import math
from typing import Any

import torch
from torch import nn


class TokenEmbedding(nn.Module):
    """A table, scaled by √d or not."""

    def __init__(self, size: int, width: int, *, scaled: bool):
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.factor = math.sqrt(width) if scaled else 1.0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T, B] → [T, B, D]."""
        return self.factor * self.embedding(tokens)


class PositionalEncoding(nn.Module):
    """Stored sinusoids [maxlen, 1, D], computed in float32."""

    def __init__(self, width: int, maxlen: int):
        super().__init__()
        places = torch.arange(maxlen).unsqueeze(1)
        frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
        waves = torch.zeros(maxlen, width)
        waves[:, 0::2] = torch.sin(places * frequencies)
        waves[:, 1::2] = torch.cos(places * frequencies)
        self.register_buffer("pos_embedding", waves.unsqueeze(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, B, D] → [T, B, D]."""
        return x + self.get_buffer("pos_embedding")[: x.shape[0]]


class Seq2SeqTransformer(nn.Module):
    """Logits of padded batches; made from the settings in config.json."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        names = (
            "d_model",
            "nhead",
            "num_encoder_layers",
            "num_decoder_layers",
            "dim_feedforward",
            "activation",
            "layer_norm_eps",
            "norm_first",
            "bias",
            "batch_first",
        )
        self.transformer = nn.Transformer(
            **{name: settings[name] for name in names}, dropout=0.0
        )
        if not settings["final_norm"]:
            self.transformer.encoder.norm = None
            self.transformer.decoder.norm = None
        width, scaled = settings["d_model"], settings["scale_embeddings"]
        sizes = settings["src_vocab_size"], settings["tgt_vocab_size"]
        self.src_tok_emb = TokenEmbedding(sizes[0], width, scaled=scaled)
        self.tgt_tok_emb = TokenEmbedding(sizes[1], width, scaled=scaled)
        self.generator = nn.Linear(width, sizes[1], bias=settings["generator_bias"])
        self.learned = settings["positions"] == "learned"
        if self.learned:
            self.src_pos_emb = nn.Embedding(settings["maxlen"], width)
            self.tgt_pos_emb = nn.Embedding(settings["maxlen"], width)
        else:
            self.positional_encoding = PositionalEncoding(width, settings["maxlen"])
        self._tie(settings["tied_embeddings"])

    def _tie(self, tying: str) -> None:
        target = self.tgt_tok_emb.embedding.weight
        if tying in ("all", "source_target"):
            self.src_tok_emb.embedding.weight = target
        if tying in ("all", "target_output"):
            self.generator.weight = target

    def forward(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        source_padding: torch.Tensor,
        target_padding: torch.Tensor,
    ) -> torch.Tensor:
        """Ids [B, S], [B, T], padding True where there is none → logits [B, T, V]."""
        x, y = self.src_tok_emb(source.T), self.tgt_tok_emb(target.T)
        if self.learned:
            x = x + self.src_pos_emb(torch.arange(len(x)))[:, None]
            y = y + self.tgt_pos_emb(torch.arange(len(y)))[:, None]
        else:
            x, y = self.positional_encoding(x), self.positional_encoding(y)
        first = self.transformer.batch_first
        future = torch.ones(len(y), len(y), dtype=torch.bool).triu(1)
        out = self.transformer(
            x.transpose(0, 1) if first else x,
            y.transpose(0, 1) if first else y,
            tgt_mask=future,
            src_key_padding_mask=source_padding,
            tgt_key_padding_mask=target_padding,
            memory_key_padding_mask=source_padding,
        )
        return self.generator(out if first else out.transpose(0, 1))
