"""The Annotated Transformer (Rush, 2018; Huang et al., 2022), made by `make_model`.

Pre-norm with final norms. Its norm divides by the unbiased standard deviation plus
epsilon, where everyone else adds epsilon to the variance; its generator has a bias;
sources begin with a start token. `linears` are query, key, value and output.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transformer_jax.config import Count, Fraction, ModelConfig, Positive
from transformer_jax.interop.folder import (
    SPECIAL_IDS,
    count_layers,
    found_tying,
    read_settings,
    read_state,
    rows_and_width,
    tokenizer_from,
    with_tied,
    write_folder,
)
from transformer_jax.interop.library import (
    Foreign,
    Options,
    differences,
    refuse,
)
from transformer_jax.interop.rules import (
    Derived,
    StateDict,
    Table,
    attention,
    dense,
    norm,
    token_tables,
)
from transformer_jax.models.embeddings import sinusoidal_table
from transformer_jax.validation import settings as checked

SOURCE, TARGET, OUTPUT = "src_embed.0.lut", "tgt_embed.0.lut", "generator.proj"
TABLES = tuple(f"{name}.weight" for name in (SOURCE, TARGET, OUTPUT))
SINUSOIDS = ("src_embed.1.pe", "tgt_embed.1.pe")
MAX_LEN = 5000
"""Rows of its stored sinusoids."""
FLOAT32_ERROR = 2e-3
"""Its angles are computed in float32: see `interop.torch`."""
NORM_EPS = 1e-6
ALWAYS = {
    "norm_position": "pre",
    "norm": "std",
    "norm_eps": NORM_EPS,
    "norm_bias": True,
    "activation": "relu",
    "gated": False,
    "attention_bias": True,
    "feed_forward_bias": True,
    "positions": "sinusoidal",
    "sinusoid_layout": "interleaved",
    "position_offset": 0,
    "scale_embeddings": True,
    "output_bias": True,
    "decoder_start": "bos",
}
"""Settings of ours that all its models share."""
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    **{name: (value,) for name, value in ALWAYS.items()},
    "has_final_norm": (True,),
}


@checked
class AnnotatedSettings:
    """Arguments of `make_model` by their own names, and what its data adds.

    Sizes and tied tables are read from the weights where they are left out.
    """

    h: Positive
    """Heads; `make_model` has 8 unless told otherwise."""
    N: Positive
    """Layers of each stack."""
    d_model: Positive
    d_ff: Positive
    src_vocab: Positive
    tgt_vocab: Positive
    dropout: Fraction = 0.1
    """On attention weights and inside the feed-forward layers too."""
    tied_embeddings: Literal["all", "target_output", "source_target", "none"] = "none"
    source_bos: bool = True
    source_eos: bool = True
    bos_id: Count = 0
    eos_id: Count = 1
    pad_id: Count = 2
    unk_id: Count = 3


SAME_NAME = ("d_model", "dropout", "tied_embeddings", "source_bos", "source_eos")
"""Settings that `ModelConfig` has too, with the same values."""


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Their settings in ours."""
    theirs = AnnotatedSettings(**settings)
    return ModelConfig(
        **ALWAYS,
        **{name: getattr(theirs, name) for name in SAME_NAME},
        num_encoder_layers=theirs.N,
        num_decoder_layers=theirs.N,
        num_heads=theirs.h,
        d_ff=theirs.d_ff,
        attention_dropout=theirs.dropout,
        activation_dropout=theirs.dropout,
        final_norm=True,
        source_vocab_size=theirs.src_vocab,
        target_vocab_size=theirs.tgt_vocab,
    )


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Our settings in theirs; the special ids are those of its data."""
    depth = {"num_decoder_layers": (config.num_encoder_layers,)}
    refuse("annotated", differences(config, {**EXPRESSIBLE, **depth}))
    return dataclasses.asdict(
        AnnotatedSettings(  # pyright: ignore[reportCallIssue]
            **{name: getattr(config, name) for name in SAME_NAME},
            h=config.num_heads,
            N=config.num_encoder_layers,
            d_ff=config.d_ff,
            src_vocab=config.source_vocab_size,
            tgt_vocab=config.target_vocab_size,
        )
    )


def table(config: ModelConfig, settings: Mapping[str, Any]) -> Table:
    """Their names of our parameters."""
    rows = token_tables(config, SOURCE, TARGET, OUTPUT)

    def make(shape: tuple[int, ...]) -> np.ndarray:
        return sinusoidal_table(shape[-2], config.d_model)[None]

    shape = (1, MAX_LEN, config.d_model)
    rows += [Derived(key, make, shape, tolerance=FLOAT32_ERROR) for key in SINUSOIDS]
    for side, blocks in (
        ("encoder", {"self_attention": "self_attn"}),
        ("decoder", {"self_attention": "self_attn", "cross_attention": "src_attn"}),
    ):
        ours, theirs = f"{side}/layer_{{i}}", f"{side}.layers.{{i}}"
        for name, block in blocks.items():
            linears = [f"{theirs}.{block}.linears.{number}" for number in range(4)]
            rows += attention(f"{ours}/{name}", *linears, bias=True)
        rows += dense(f"{ours}/feed_forward/up", f"{theirs}.feed_forward.w_1")
        rows += dense(f"{ours}/feed_forward/down", f"{theirs}.feed_forward.w_2")
        names = ("a_2", "b_2")
        for number, name in enumerate([*blocks, "feed_forward"]):
            sublayer = f"{theirs}.sublayer.{number}.norm"
            rows += norm(f"{ours}/{name}_norm", sublayer, names=names)
        rows += norm(f"{side}/final_norm", f"{side}.norm", names=names)
    return Table(config, rows)


def completed(
    state: StateDict, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tied arrays under all their names, and the settings that the weights tell."""
    given = dict(settings)
    tying = given.get("tied_embeddings") or found_tying(state, *TABLES)
    state = with_tied(state, tying, *TABLES)
    given["tied_embeddings"] = tying
    if {"N", "d_model", "d_ff", "src_vocab", "tgt_vocab"} <= given.keys():
        return state, given
    source_size, width = rows_and_width(state, TABLES[0])
    found = {
        "N": count_layers(state, "encoder.layers."),
        "d_model": width,
        "d_ff": rows_and_width(state, "encoder.layers.0.feed_forward.w_1.weight")[0],
        "src_vocab": source_size,
        "tgt_vocab": rows_and_width(state, TABLES[1])[0],
    }
    return state, {**found, **given}


def read(path: Path, options: Options) -> Foreign:
    """A folder with weights and config.json, or a file of weights and --settings."""
    state, given = completed(read_state(path), read_settings(path, options))
    theirs = AnnotatedSettings(**given)
    tokenizer = tokenizer_from(
        path,
        options,
        (theirs.src_vocab, theirs.tgt_vocab),
        {name: getattr(theirs, name) for name in SPECIAL_IDS},
    )
    return Foreign(dataclasses.asdict(theirs), state, tokenizer)


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """model.safetensors, config.json, and the tokenizer's files."""
    write_folder(path, foreign, config)
