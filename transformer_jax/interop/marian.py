"""Hugging Face Marian: OPUS-MT models and their like, in both directions.

A folder with config.json, model.safetensors (or pytorch_model.bin), vocab.json,
source.spm and target.spm. Post-norm, sinusoids in two halves with exponent 2i/d,
decoder fed with the pad token first, a bias on the logits.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.interop import marian_files as files
from transformer_jax.interop.library import (
    NO_OPTIONS,
    Foreign,
    Options,
    differences,
    refuse,
)
from transformer_jax.interop.marian_settings import special_ids, with_defaults
from transformer_jax.interop.rules import (
    ROW,
    TRANSPOSE,
    Alias,
    Derived,
    Row,
    Rule,
    Table,
    attention,
    dense,
    norm,
)
from transformer_jax.models.embeddings import sinusoidal_table

logger = logging.getLogger(__name__)

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu"}
EXPRESSIBLE: Mapping[str, tuple[Any, ...]] = {
    "norm": ("layer_norm",),
    "norm_position": ("post",),
    "has_final_norm": (False,),
    "norm_eps": (1e-5,),
    "gated": (False,),
    "attention_bias": (True,),
    "feed_forward_bias": (True,),
    "norm_bias": (True,),
    "positions": ("sinusoidal",),
    "sinusoid_layout": ("halves_paper",),
    "position_offset": (0,),
    "source_eos": (True,),
    "source_bos": (False,),
    "tied_embeddings": ("all", "target_output", "none"),
}


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Our settings from config.json; what HF's class does not read is not asked."""
    there = with_defaults(settings)
    wrong = [
        f"{a} is {there[a]} and {b} is {there[b]}, and must be the same"
        for a, b in (
            ("encoder_ffn_dim", "decoder_ffn_dim"),
            ("encoder_attention_heads", "decoder_attention_heads"),
        )
        if there[a] != there[b]
    ]
    start = there["decoder_start_token_id"]
    starts = {
        there["eos_token_id"]: "eos",
        there["bos_token_id"]: "bos",
        there["pad_token_id"]: "pad",
    }
    if start not in starts:
        wrong.append(f"decoder_start_token_id is {start}, neither pad, eos nor bos")
    if there["activation_function"] not in ACTIVATIONS:
        wrong.append(f"activation_function is {there['activation_function']}")
    if there.get("model_type", "marian") != "marian":
        wrong.append(f"model_type is {there['model_type']}, not marian")
    shared, tied = (
        there["share_encoder_decoder_embeddings"],
        there["tie_word_embeddings"],
    )
    if shared and not tied:
        wrong.append("tie_word_embeddings is off, but embeddings are shared")
    refuse("marian", wrong)
    source = there["vocab_size"]
    return ModelConfig(
        num_encoder_layers=there["encoder_layers"],
        num_decoder_layers=there["decoder_layers"],
        d_model=there["d_model"],
        d_ff=there["encoder_ffn_dim"],
        num_heads=there["encoder_attention_heads"],
        dropout=there["dropout"],
        attention_dropout=there["attention_dropout"],
        activation_dropout=there["activation_dropout"],
        activation=ACTIVATIONS[there["activation_function"]],  # pyright: ignore[reportArgumentType]
        sinusoid_layout="halves_paper",
        scale_embeddings=there["scale_embedding"],
        tied_embeddings="all" if shared else "target_output" if tied else "none",
        output_bias=True,
        max_positions=there["max_position_embeddings"],
        decoder_start=starts[start],  # pyright: ignore[reportArgumentType]
        source_vocab_size=source,
        target_vocab_size=source if shared else there["decoder_vocab_size"] or source,
    )


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """config.json for our settings. Special ids are Marian's, or ours where the decoder
    does not start from pad; `write` puts the tokenizer's."""
    refuse("marian", differences(config, EXPRESSIBLE))
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != "silu"}
    last = config.target_vocab_size - 1
    pad, bos, eos = (last, None, 0) if config.decoder_start == "pad" else (0, 1, 2)
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "d_model": config.d_model,
        "encoder_ffn_dim": config.d_ff,
        "decoder_ffn_dim": config.d_ff,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "activation_function": names[config.activation],
        "scale_embedding": config.scale_embeddings,
        "share_encoder_decoder_embeddings": config.tied_embeddings == "all",
        "tie_word_embeddings": config.tied_embeddings != "none",
        "vocab_size": config.source_vocab_size,
        "decoder_vocab_size": config.target_vocab_size,
        "max_position_embeddings": config.max_positions,
        **special_ids(config, pad=pad, bos=bos, eos=eos),
    }


def table(config: ModelConfig, settings: Mapping[str, Any]) -> Table:
    """Between our parameters and MarianMTModel's state dict.

    HF leaves tied copies and sinusoids out of safetensors files and puts them into
    pytorch_model.bin: they may be there or not.
    """
    V, D = config.target_vocab_size, config.d_model
    rows = [*_embeddings(config), *_layers("encoder"), *_layers("decoder")]
    for side in ("encoder", "decoder"):
        rows.append(
            Derived(
                f"model.{side}.embed_positions.weight",
                lambda shape: _sinusoids(shape, D),
                (config.max_positions, D),
                optional=True,
            )
        )
    if config.output_bias:
        rows.append(Rule("output/bias", "final_logits_bias", ROW))
    else:
        zeros = Derived(
            "final_logits_bias", lambda shape: np.zeros(shape, np.float32), (1, V)
        )
        rows.append(zeros)
    return Table(config, rows)


def _sinusoids(shape: tuple[int, ...], d_model: int) -> np.ndarray:
    """Of as many positions as were found; of none if that is no such table."""
    positions = shape[0] if len(shape) == 2 else 0
    return sinusoidal_table(positions, d_model, layout="halves_paper")


def _embeddings(config: ModelConfig) -> list[Row]:
    sides = [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    if config.tied_embeddings == "all":
        copies = [*sides, "lm_head.weight"]
        shared = "model.shared.weight"
        return [
            Rule("shared_embedding/embedding", shared),
            *(Alias(name, shared, optional=True) for name in copies),
        ]
    rows: list[Row] = [
        Rule("source_embedding/embedding", sides[0]),
        Rule("target_embedding/embedding", sides[1]),
    ]
    if config.output_is_target_table:
        return [*rows, Alias("lm_head.weight", sides[1], optional=True)]
    return [*rows, Rule("output/kernel", "lm_head.weight", TRANSPOSE)]


def _layers(side: str) -> list[Row]:
    ours, theirs = f"{side}/layer_{{i}}", f"model.{side}.layers.{{i}}"
    blocks = {"self_attention": "self_attn"}
    if side == "decoder":
        blocks["cross_attention"] = "encoder_attn"
    rows: list[Row] = []
    for block, name in blocks.items():
        parts = {part[0]: f"{theirs}.{name}.{part}" for part in _PROJECTIONS}
        rows += attention(
            f"{ours}/{block}", parts["q"], parts["k"], parts["v"], parts["o"], bias=True
        )
        rows += norm(f"{ours}/{block}_norm", f"{theirs}.{name}_layer_norm")
    rows += dense(f"{ours}/feed_forward/up", f"{theirs}.fc1")
    rows += dense(f"{ours}/feed_forward/down", f"{theirs}.fc2")
    rows += norm(f"{ours}/feed_forward_norm", f"{theirs}.final_layer_norm")
    return rows


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def read(path: Path, options: Options = NO_OPTIONS) -> Foreign:
    """A folder as `save_pretrained` writes it."""
    return files.read_folder(path)


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """What `MarianMTModel.from_pretrained` and `MarianTokenizer` read."""
    foreign = files.numbered_as_marian(foreign, config)
    if reason := files.unlike_ctranslate2(foreign, config):
        logger.warning("%s", reason)
    files.write_folder(path, foreign, config)
