"""JoeyNMT 2: transformers of `joeynmt train`.

Its conventions: eps 1e-6, biases in attention, none on the logits; interleaved
sinusoids. Where `layer_norm` is not written in config.yaml, encoder and decoder differ,
and the final norms are only there if it says `pre`. Residual connections are weighted
with `alpha`, which the initializer `xavier_normal` sets again whenever a model is
built, also for translation. Special symbols: `<unk>` 0, `<pad>` 1, `<s>` 2, `</s>` 3.

Settings are config.yaml, with two more: `source_vocab_size` and `target_vocab_size`.
What config.yaml says beyond what is read here, the library does not read either, or
only to train.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.interop import joeynmt_files as files
from transformer_jax.interop.checks import Kinds, changed, check_fields, kinds_of
from transformer_jax.interop.library import (
    NO_OPTIONS,
    Foreign,
    Options,
    differences,
    final_norm_differences,
    refuse,
)
from transformer_jax.interop.rules import (
    Derived,
    Row,
    Table,
    attention,
    dense,
    norm,
    token_tables,
)
from transformer_jax.models.embeddings import sinusoidal_table

POSITIONS = 5000
"""Rows of the sinusoid tables that its class makes."""
FLOAT32_ERROR = 1e-3
"""It computes angles in float32, and so is off by up to 4e-4 at position 5000."""
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu"}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "encoder": {"type": "recurrent", "num_layers": 8, "num_heads": 4},
    "decoder": {"type": "transformer", "num_layers": 4, "num_heads": 8},
}
BOTH_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 512,
    "ff_size": 2048,
    "dropout": 0.1,
    "activation": "relu",
    "alpha": 1.0,
    "embeddings": {},
}
"""What it supposes when config.yaml does not say."""
KINDS: Kinds = kinds_of({**BOTH_DEFAULTS, **DEFAULTS["encoder"]})
SAME_SIDES = ("hidden_size", "ff_size", "num_heads", "activation")
EXPRESSIBLE: Mapping[str, tuple[Any, ...]] = {
    "norm": ("layer_norm",),
    "norm_bias": (True,),
    "source_bos": (False,),
    "norm_eps": (1e-6,),
    "gated": (False,),
    "attention_bias": (True,),
    "feed_forward_bias": (True,),
    "positions": ("sinusoidal",),
    "sinusoid_layout": ("interleaved",),
    "position_offset": (0,),
    "output_bias": (False,),
    "decoder_start": ("bos",),
    "source_eos": (True,),
}


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Our settings from config.yaml; refuses what has no place in them."""
    check_fields(settings, {"model": dict}, "config.yaml of JoeyNMT")
    model = settings["model"]
    sides = {"encoder": dict, "decoder": dict}
    check_fields(model, sides, "'model' in config.yaml of JoeyNMT")
    encoder, decoder = _stacks(model)
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        check_fields(stack, KINDS, f"'{side}' in config.yaml of JoeyNMT")
    refuse("joeynmt", _unlike(settings, encoder, decoder))
    source, target = model.get("tied_embeddings"), model.get("tied_softmax")
    tied = ("all" if target else "source_target") if source else ""
    dropout = encoder["dropout"]
    return ModelConfig(
        num_encoder_layers=encoder["num_layers"],
        num_decoder_layers=decoder["num_layers"],
        d_model=encoder["hidden_size"],
        d_ff=encoder["ff_size"],
        num_heads=encoder["num_heads"],
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
        norm_position=encoder["layer_norm"],
        norm_eps=1e-6,
        activation=ACTIVATIONS[encoder["activation"]],  # pyright: ignore[reportArgumentType]
        sinusoid_layout="interleaved",
        scale_embeddings=_scaled(encoder),
        tied_embeddings=tied or ("target_output" if target else "none"),
        source_vocab_size=settings.get("source_vocab_size", 0),
        target_vocab_size=settings.get("target_vocab_size", 0),
    )


def _stacks(model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of encoder and decoder, with what is supposed."""
    encoder, decoder = (
        {**BOTH_DEFAULTS, **DEFAULTS[side], **model[side]}
        for side in ("encoder", "decoder")
    )
    return encoder, decoder


def _scaled(stack: Mapping[str, Any]) -> bool:
    return bool(stack["embeddings"].get("scale", False))


def _unlike(
    settings: Mapping[str, Any], encoder: Mapping[str, Any], decoder: Mapping[str, Any]
) -> list[str]:
    """What config.yaml asks for that we have not, as a list of words."""
    model, found = settings["model"], []
    if model.get("initializer") == "xavier_normal":
        found.append("initializer is 'xavier_normal', which sets alpha (DeepNet)")
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        if stack["type"] != "transformer":
            found.append(f"{side}.type is {stack['type']!r}")
        if stack["alpha"] != 1:
            found.append(f"{side}.alpha is {stack['alpha']}, and must be 1")
        if stack.get("layer_norm") not in ("pre", "post"):
            found.append(f"{side}.layer_norm is {stack.get('layer_norm', 'not set')!r}")
        if stack["activation"] not in ACTIVATIONS:
            found.append(f"{side}.activation is {stack['activation']!r}")
        width = stack["embeddings"].get("embedding_dim")
        if width != stack["hidden_size"]:
            found.append(f"{side}.embeddings.embedding_dim is {width}, not hidden_size")
    for name in (*SAME_SIDES, "layer_norm"):
        if encoder.get(name) != decoder.get(name):
            found.append(
                f"encoder.{name} is {encoder.get(name)!r} and decoder.{name} "
                f"{decoder.get(name)!r}"
            )
    # Of tied embeddings the encoder's are used for both.
    if not model.get("tied_embeddings") and _scaled(encoder) != _scaled(decoder):
        found.append("embeddings.scale is not the same in encoder and decoder")
    special = (settings.get("data") or {}).get("special_symbols") or {}
    if special.get("sep_token"):
        found.append("data.special_symbols.sep_token is set, for prompts")
    return found


def only_in_training(settings: Mapping[str, Any]) -> list[str]:
    """Dropout that JoeyNMT has, and fine-tuning here has not: we have one number."""
    encoder, decoder = _stacks(settings["model"])
    kept = encoder["dropout"]
    pairs = {"decoder.dropout": (decoder["dropout"], kept)}
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        dropout = stack["embeddings"].get("dropout", stack["dropout"])
        pairs[f"{side}.embeddings.dropout"] = (dropout, kept)
    return changed(pairs)


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """config.yaml for our settings; refuses what it cannot express."""
    unlike = differences(config, EXPRESSIBLE)
    unlike += final_norm_differences(config)
    refuse("joeynmt", unlike)
    acts = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    embeddings = {
        "embedding_dim": config.d_model,
        "scale": config.scale_embeddings,
        "dropout": config.dropout,
    }
    stack = {
        "type": "transformer",
        "num_heads": config.num_heads,
        "hidden_size": config.d_model,
        "ff_size": config.d_ff,
        "dropout": config.dropout,
        "layer_norm": config.norm_position,
        "activation": acts[config.activation],
        "alpha": 1.0,
    }
    layers = {
        "encoder": config.num_encoder_layers,
        "decoder": config.num_decoder_layers,
    }
    return {
        "model": {
            "initializer": "xavier_uniform",
            "tied_embeddings": config.source_is_target_table,
            "tied_softmax": config.output_is_target_table,
            **{
                side: {**stack, "num_layers": number, "embeddings": dict(embeddings)}
                for side, number in layers.items()
            },
        },
        "source_vocab_size": config.source_vocab_size,
        "target_vocab_size": config.target_vocab_size,
    }


def table(config: ModelConfig, settings: Mapping[str, Any]) -> Table:
    """Between our parameters and `model_state` of a checkpoint."""

    def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
        positions = shape[1] if shape[1:] else 0
        return sinusoidal_table(positions, config.d_model, "interleaved")[None]

    output = "decoder.output_layer"
    rows = token_tables(config, "src_embed.lut", "trg_embed.lut", output)
    shape = (1, POSITIONS, config.d_model)
    for side in ("encoder", "decoder"):
        rows.append(Derived(f"{side}.pe.pe", sinusoids, shape, tolerance=FLOAT32_ERROR))
        rows += _layer(side)
        if config.has_final_norm:
            rows += norm(f"{side}/final_norm", f"{side}.layer_norm")
    return Table(config, rows)


BLOCKS = {
    "encoder": {"self_attention": ("src_src_att", "layer_norm")},
    "decoder": {
        "self_attention": ("trg_trg_att", "x_layer_norm"),
        "cross_attention": ("src_trg_att", "dec_layer_norm"),
    },
}
"""Attention blocks of a layer: their name and the name of their norm."""


def _layer(side: str) -> list[Row]:
    ours, theirs = f"{side}/layer_{{i}}", f"{side}.layers.{{i}}"
    rows: list[Row] = []
    for block, (name, norm_name) in BLOCKS[side].items():
        parts = ("q_layer", "k_layer", "v_layer", "output_layer")
        places = (f"{theirs}.{name}.{part}" for part in parts)
        rows += attention(f"{ours}/{block}", *places, bias=True)
        rows += norm(f"{ours}/{block}_norm", f"{theirs}.{norm_name}")
    there = f"{theirs}.feed_forward"
    rows += norm(f"{ours}/feed_forward_norm", f"{there}.layer_norm")
    rows += dense(f"{ours}/feed_forward/up", f"{there}.pwff_layer.0")
    return rows + dense(f"{ours}/feed_forward/down", f"{there}.pwff_layer.3")


def read(path: Path, options: Options = NO_OPTIONS) -> Foreign:
    """A model folder, or a checkpoint in it."""
    return files.read_folder(path, options)


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """What joeynmt translates with: best.ckpt, config.yaml, vocabularies."""
    files.write_folder(path, foreign, config)
