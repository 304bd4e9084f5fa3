"""Golden files of torch.nn.Transformer: `python make_torch.py`, with torch installed.

The library's own part is `torch.nn.Transformer`; what is around it follows PyTorch's
translation tutorial (`../seq2seq.py`).
"""
# pyright: reportMissingImports=false

import sys
import warnings
from typing import Any

import golden
import numpy as np
import torch

sys.path.append(str(golden.HERE.parent))
IDS = {"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3}
SPECIAL = ["<unk>", "<pad>", "<bos>", "<eos>"]
SETTINGS: dict[str, Any] = {
    "nhead": golden.HEADS,
    "d_model": golden.D_MODEL,
    "num_encoder_layers": golden.ENCODER_LAYERS,
    "num_decoder_layers": golden.DECODER_LAYERS,
    "dim_feedforward": golden.D_FF,
    "src_vocab_size": len(SPECIAL) + len(golden.SOURCE_WORDS),
    "tgt_vocab_size": len(SPECIAL) + len(golden.TARGET_WORDS),
    "layer_norm_eps": 1e-5,
    "activation": "relu",
    "norm_first": False,
    "bias": True,
    "batch_first": False,
    "final_norm": True,
    "positions": "sinusoidal",
    "maxlen": 5000,
    "scale_embeddings": True,
    "tied_embeddings": "none",
    "generator_bias": True,
    **IDS,
}
VARIANTS = {"post": {}, "pre": {"norm_first": True, "activation": "gelu"}}


def padded(lines: list[str], words: list[str], *, end: bool) -> torch.Tensor:
    """Ids of lines between bos and eos, or after bos only: [B, longest]."""
    symbols = [*SPECIAL, *words]
    rows = [
        [
            IDS["bos_id"],
            *(symbols.index(w) if w in symbols else 0 for w in line.split()),
            *([IDS["eos_id"]] if end else []),
        ]
        for line in lines
    ]
    longest = max(map(len, rows))
    filled = [row + [IDS["pad_id"]] * (longest - len(row)) for row in rows]
    return torch.from_numpy(np.array(filled))


def make(variant: str, seed: int) -> None:
    """One variant: model, state dict, forward pass."""
    from seq2seq import Seq2SeqTransformer

    settings = {**SETTINGS, **VARIANTS[variant]}
    model = Seq2SeqTransformer(settings).eval()
    golden.fill(model, seed)
    sources, targets = map(list, zip(*golden.PAIRS, strict=True))
    source = padded(sources, golden.SOURCE_WORDS, end=True)
    target = padded(targets, golden.TARGET_WORDS, end=False)
    with torch.no_grad():
        pad = IDS["pad_id"]
        logits = model(source, target, source == pad, target == pad)
    tables = {"positional_encoding.pos_embedding": 0}
    state, whole = golden.cut(model.state_dict(), tables)
    golden.write(
        f"torch_{variant}",
        {
            **{f"state/{key}": tensor for key, tensor in state.items()},
            "source": source,
            "decoder_inputs": target,
            "logits": logits,
        },
        {
            "library": "PyTorch",
            "version": torch.__version__,
            "config": settings,
            "src_vocab": SPECIAL + golden.SOURCE_WORDS,
            "tgt_vocab": SPECIAL + golden.TARGET_WORDS,
            "ids": IDS,
            "cut_tables": whole,
        },
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "enable_nested_tensor is True")
    for number, variant in enumerate(VARIANTS):
        make(variant, seed=300 + number)
