"""Golden files of Hugging Face Marian: python make_marian.py, with the extra `compare`.

A toy MarianMTModel with random numbers in every array, and its own logits of a batch
that is padded on both sides.
"""

import numpy as np
import torch
import transformers
from golden import D_FF, D_MODEL, DECODER_LAYERS, ENCODER_LAYERS, HEADS, fill, write

VARIANTS = {
    "shared": {"scale_embedding": True},
    "separate": {
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 11,
        "activation_function": "swish",
    },
}
SOURCE, TARGET = (5, 3, 4), (2, 4, 3)


def ids(lengths: tuple[int, ...], last: int, pad: int, seed: int) -> np.ndarray:
    """Random ids, with padding behind them."""
    width = max(lengths) + 1
    draw = np.random.default_rng(seed).integers(2, last, (len(lengths), width))
    keep = np.arange(width)[None, :] < np.array(lengths)[:, None]
    return np.where(keep, draw, pad)


def make(name: str, settings: dict) -> None:
    """One variant."""
    vocab, target_vocab = 13, settings.get("decoder_vocab_size", 13)
    pad = target_vocab - 1
    config = transformers.MarianConfig(
        vocab_size=vocab,
        d_model=D_MODEL,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_ffn_dim=D_FF,
        decoder_ffn_dim=D_FF,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        max_position_embeddings=16,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        **settings,
    )
    model = transformers.MarianMTModel(config).eval()
    fill(model, seed=0)
    bias = np.random.default_rng(1).normal(size=(1, target_vocab))
    model.final_logits_bias.copy_(torch.from_numpy(bias))
    source = torch.from_numpy(ids(SOURCE, pad, pad, seed=2))
    target = torch.from_numpy(ids(TARGET, pad, pad, seed=3))
    decoder_inputs = torch.cat([torch.full((3, 1), pad), target[:, :-1]], dim=1)
    inside = decoder_inputs != pad
    inside[:, 0] = True
    with torch.no_grad():
        found = model(
            input_ids=source,
            attention_mask=(source != pad).long(),
            decoder_input_ids=decoder_inputs,
            decoder_attention_mask=inside.long(),
        )
    state = {f"state/{key}": x for key, x in model.state_dict().items()}
    copies = ("embed_positions", "lm_head") + (
        ("embed_tokens",) if config.share_encoder_decoder_embeddings else ()
    )
    kept = {k: x for k, x in state.items() if not any(c in k for c in copies)}
    write(
        f"marian_{name}",
        {
            **kept,
            "source": source,
            "decoder_inputs": decoder_inputs,
            "inside": inside.long(),
            "encoded": found.encoder_last_hidden_state,
            "logits": found.logits,
        },
        {
            "library": "transformers",
            "version": transformers.__version__,
            "settings": config.to_dict(),
        },
    )


if __name__ == "__main__":
    for each, chosen in VARIANTS.items():
        make(each, chosen)
