"""Sockeye 3: transformers of `sockeye-train`.

Its conventions: pre-norm with final norms (sequences `n` and `dr`, its default) or
post-norm (`` and `drn`); eps 1e-6. Embeddings times √d, sinusoids in two halves with
exponent 2i/d, or learned positions; both are stored. No biases in attention, one on
the logits. Queries, keys and values are one array, with keys and values of each head
next to each other. Special symbols: `<pad>` 0, `<unk>` 1, `<s>` 2, `</s>` 3.

Settings are the file `config`, whose objects are read as mappings.
"""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.interop import sockeye_files as files
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
    HEADS_IN,
    HEADS_OUT,
    Derived,
    Row,
    Rule,
    Table,
    dense,
    keys_values_by_head,
    norm,
    token_tables,
)
from transformer_jax.models.embeddings import sinusoidal_table

FLOAT32_ERROR = 1e-3
"""It computes angles in float32, and so is off by up to 4e-4 at position 5000."""
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish1": "silu"}
POSITIONS = {"fixed": "sinusoidal", "learned": "learned"}
TYING = {
    "none": "none",
    "src_trg": "source_target",
    "trg_softmax": "target_output",
    "src_trg_softmax": "all",
}
SEQUENCES = {("n", "r"): "pre", ("", "rn"): "post"}
"""preprocess_sequence and postprocess_sequence, without dropout → norm_position."""
MUST_BE_OFF = (
    "config_length_task",
    "lhuc",
    "neural_vocab_selection",
    "neural_vocab_selection_block_loss",
)
STACK_DEFAULTS: Mapping[str, Any] = {
    "decoder_type": "transformer",
    "block_prepended_cross_attention": False,
    "use_lhuc": False,
    "use_glu": False,
}
"""What it supposes for a field that a file from before it lacks."""
SIZES = (
    *("model_size", "num_layers", "attention_heads", "feed_forward_num_hidden"),
    *("max_seq_len_source", "max_seq_len_target"),
)
DROPOUTS = ("dropout_prepost", "dropout_attention", "dropout_act")
STACK_KINDS: Kinds = {
    **dict.fromkeys(SIZES, int),
    **dict.fromkeys(DROPOUTS, float),
    **dict.fromkeys(("act_type", "positional_embedding_type"), str),
    **dict.fromkeys(("preprocess_sequence", "postprocess_sequence"), (str, NoneType)),
    **kinds_of(STACK_DEFAULTS),
}
EMBED_KINDS: Kinds = {"vocab_size": int, "num_embed": int}
SAME_SIDES = (
    "model_size",
    "attention_heads",
    "feed_forward_num_hidden",
    "act_type",
    "use_glu",
    "positional_embedding_type",
    "preprocess_sequence",
    "postprocess_sequence",
)
"""Fields that encoder and decoder must have in common."""
NO_MATTER = (
    *("num_layers", "depth_key_value", "max_seq_len_source", "max_seq_len_target"),
    *DROPOUTS,
)
"""More fields of the stacks, which are read, or do nothing in translation."""
MODEL_FIELDS = (
    *("config_data", "config_embed_source", "config_embed_target"),
    *("config_encoder", "config_decoder", "dtype", "weight_tying_type"),
    *("vocab_source_size", "vocab_target_size"),
)
EXPRESSIBLE: Mapping[str, tuple[Any, ...]] = {
    "norm": ("layer_norm",),
    "norm_bias": (True,),
    "source_bos": (False,),
    "norm_eps": (1e-6,),
    "attention_bias": (False,),
    "feed_forward_bias": (True,),
    "sinusoid_layout": ("halves_paper",),
    "position_offset": (0,),
    "scale_embeddings": (True,),
    "decoder_start": ("bos",),
    "source_eos": (True,),
}


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Our settings from `config`; refuses what has no place in them."""
    check_fields(settings, files.KINDS, "'config' of Sockeye")
    encoder, decoder = _stacks(settings)
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        check_fields(stack, STACK_KINDS, f"config_{side} in 'config' of Sockeye")
    refuse("sockeye", _unlike(settings))
    learned = encoder["positional_embedding_type"] == "learned"
    position = SEQUENCES[_sequences(encoder)]
    return ModelConfig(
        num_encoder_layers=encoder["num_layers"],
        num_decoder_layers=decoder["num_layers"],
        d_model=encoder["model_size"],
        d_ff=encoder["feed_forward_num_hidden"],
        num_heads=encoder["attention_heads"],
        dropout=encoder["dropout_prepost"],
        attention_dropout=encoder["dropout_attention"],
        activation_dropout=encoder["dropout_act"],
        norm_position=position,  # pyright: ignore[reportArgumentType]
        norm_eps=1e-6,
        activation=ACTIVATIONS[encoder["act_type"]],  # pyright: ignore[reportArgumentType]
        gated=encoder["use_glu"],
        attention_bias=False,
        positions="learned" if learned else "sinusoidal",
        sinusoid_layout="halves_paper",
        max_positions=encoder["max_seq_len_source"],
        scale_embeddings=True,
        tied_embeddings=TYING[settings["weight_tying_type"]],  # pyright: ignore[reportArgumentType]
        output_bias=True,
        source_vocab_size=settings["vocab_source_size"],
        target_vocab_size=settings["vocab_target_size"],
    )


def _stacks(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of encoder and decoder."""
    encoder, decoder = (
        {**STACK_DEFAULTS, **settings[f"config_{side}"]}
        for side in ("encoder", "decoder")
    )
    return encoder, decoder


def _sequences(stack: Mapping[str, Any]) -> tuple[str, str]:
    """What is done before and after a sublayer, but for dropout."""
    names = ("preprocess_sequence", "postprocess_sequence")
    before, after = ((stack[name] or "").replace("d", "") for name in names)
    return before, after


def _unlike(settings: Mapping[str, Any]) -> list[str]:
    """What this file asks for that we have not, as a list of words."""
    found = [
        f"{name} is {settings[name]!r}, and must be off"
        for name in MUST_BE_OFF
        if settings.get(name)
    ]
    known = {*MUST_BE_OFF, *MODEL_FIELDS}
    found += _unknown(settings, known, "")
    encoder, decoder = _stacks(settings)
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        known = {*STACK_DEFAULTS, *SAME_SIDES, *NO_MATTER}
        found += _unknown(stack, known, f"config_{side}.")
        for name in ("block_prepended_cross_attention", "use_lhuc"):
            if stack[name]:
                found.append(f"config_{side}.{name} is on, and must be off")
        if stack["decoder_type"] != "transformer":
            found.append(f"config_{side}.decoder_type is {stack['decoder_type']!r}")
    for name in SAME_SIDES:
        if encoder[name] != decoder[name]:
            found.append(
                f"{name} is {encoder[name]!r} in the encoder and {decoder[name]!r} in "
                "the decoder"
            )
    if _sequences(encoder) not in SEQUENCES:
        names = ("preprocess_sequence", "postprocess_sequence")
        found += [f"{name} is {encoder[name]!r}" for name in names]
    choices = {"act_type": ACTIVATIONS, "positional_embedding_type": POSITIONS}
    for name, allowed in choices.items():
        if encoder[name] not in allowed:
            found.append(f"{name} is {encoder[name]!r}")
    lengths = {encoder["max_seq_len_source"], decoder["max_seq_len_target"]}
    if encoder["positional_embedding_type"] == "learned" and len(lengths) > 1:
        found.append(
            "max_seq_len_source is not max_seq_len_target, with learned positions"
        )
    return found + _unlike_data(settings, encoder["model_size"])


def _unlike_data(settings: Mapping[str, Any], width: int) -> list[str]:
    """The same of embeddings, vocabularies and types."""
    found = []
    for side in ("source", "target"):
        embed = settings[f"config_embed_{side}"]
        check_fields(embed, EMBED_KINDS, f"config_embed_{side} in 'config' of Sockeye")
        if embed.get("factor_configs") or embed.get("num_factors", 1) != 1:
            found.append(
                f"config_embed_{side}.factor_configs are there ({side}_factors)"
            )
        if embed["num_embed"] != width:
            found.append(f"config_embed_{side}.num_embed is not model_size")
        if embed["vocab_size"] != settings[f"vocab_{side}_size"]:
            found.append(f"config_embed_{side}.vocab_size is not vocab_{side}_size")
        factors = files.data_in(settings).get(f"num_{side}_factors", 1)
        if factors != 1:
            found.append(f"config_data.num_{side}_factors is {factors}")
    if files.data_in(settings).get("eop_id", -1) != -1:
        found.append("config_data.eop_id is set")
    if settings.get("dtype", "float32") not in ("float32", "float16", "bfloat16"):
        found.append(f"dtype is {settings['dtype']!r}")
    if settings["weight_tying_type"] not in TYING:
        found.append(f"weight_tying_type is {settings['weight_tying_type']!r}")
    return found


def _unknown(fields: Mapping[str, Any], known: set[str], prefix: str) -> list[str]:
    return [
        f"{prefix}{name} is {value!r}, which is not known here"
        for name, value in fields.items()
        if value and name not in known
    ]


def only_in_training(settings: Mapping[str, Any]) -> list[str]:
    """Dropout that Sockeye has, and fine-tuning here has not."""
    encoder, decoder = _stacks(settings)
    pairs = {f"config_decoder.{n}": (decoder[n], encoder[n]) for n in DROPOUTS}
    for name in ("config_embed_source", "config_embed_target"):
        pairs[f"{name}.dropout"] = (settings[name].get("dropout") or 0.0, 0.0)
    return changed(pairs)


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """`config` for our settings; refuses what it cannot express."""
    unlike = differences(config, EXPRESSIBLE)
    unlike += final_norm_differences(config)
    refuse("sockeye", unlike)
    source, target = config.source_vocab_size, config.target_vocab_size
    acts = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    kinds = {ours: theirs for theirs, ours in POSITIONS.items()}
    tying = {ours: theirs for theirs, ours in TYING.items()}
    pre_norm = config.norm_position == "pre"
    longest = config.max_positions
    lengths = {"max_seq_len_source": longest, "max_seq_len_target": longest}
    stack = {
        **STACK_DEFAULTS,
        **lengths,
        "model_size": config.d_model,
        "attention_heads": config.num_heads,
        "feed_forward_num_hidden": config.d_ff,
        "act_type": acts[config.activation],
        "use_glu": config.gated,
        "depth_key_value": config.d_model,
        "dropout_prepost": config.dropout,
        "dropout_attention": config.attention_dropout,
        "dropout_act": config.activation_dropout,
        "positional_embedding_type": kinds[config.positions],
        "preprocess_sequence": "n" if pre_norm else "",
        "postprocess_sequence": "dr" if pre_norm else "drn",
    }
    return {
        "config_data": files.data_config(source, target, lengths),
        "config_embed_source": files.embedding_config(source, config.d_model),
        "config_embed_target": files.embedding_config(target, config.d_model),
        "config_encoder": {**stack, "num_layers": config.num_encoder_layers},
        "config_decoder": {**stack, "num_layers": config.num_decoder_layers},
        "config_length_task": None,
        "dtype": "float32",
        "lhuc": False,
        "neural_vocab_selection": None,
        "neural_vocab_selection_block_loss": False,
        "vocab_source_size": source,
        "vocab_target_size": target,
        "weight_tying_type": tying[config.tied_embeddings],
    }


def table(config: ModelConfig, settings: Mapping[str, Any]) -> Table:
    """Between our parameters and params.best."""
    rows = token_tables(
        config,
        "embedding_source.embedding",
        "embedding_target.embedding",
        "output_layer",
    )
    if not config.output_bias:
        shape = (config.target_vocab_size,)
        rows.append(Derived("output_layer.bias", _zeros, shape))
    rows += [*_positions(config, settings), *_encoder(config), *_decoder(config)]
    if config.has_final_norm:
        for side in ("encoder", "decoder"):
            rows += norm(f"{side}/final_norm", f"{side}.final_process.layer_norm")
    return Table(config, rows)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _positions(config: ModelConfig, settings: Mapping[str, Any]) -> list[Row]:
    def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
        positions = shape[0] if shape else 0
        return sinusoidal_table(positions, config.d_model, "halves_paper")

    rows: list[Row] = []
    for ours, theirs in (("source", "encoder"), ("target", "decoder")):
        key = f"{theirs}.pos_embedding.weight"
        shape = (
            settings[f"config_{theirs}"][f"max_seq_len_{ours}"],
            config.d_model,
        )
        if config.positions == "learned":
            rows.append(Rule(f"{ours}_positions/embedding", key))
        else:
            rows.append(Derived(key, sinusoids, shape, tolerance=FLOAT32_ERROR))
    return rows


def _encoder(config: ModelConfig) -> list[Row]:
    ours, theirs = "encoder/layer_{i}", "encoder.layers.{i}"
    where = config.norm_position
    return [
        *_self_attention(f"{ours}/self_attention", f"{theirs}.self_attention"),
        *norm(
            f"{ours}/self_attention_norm", f"{theirs}.{where}_self_attention.layer_norm"
        ),
        *_feed_forward(ours, theirs, config),
    ]


def _decoder(config: ModelConfig) -> list[Row]:
    ours, theirs = "decoder/layer_{i}", "decoder.layers.{i}"
    where = config.norm_position
    cross, there = f"{ours}/cross_attention", f"{theirs}.enc_attention"
    keys_values = (f"{cross}/key/kernel", f"{cross}/value/kernel")
    return [
        *_self_attention(f"{ours}/self_attention", f"{theirs}.autoregr_layer"),
        *norm(
            f"{ours}/self_attention_norm", f"{theirs}.{where}_autoregr_layer.layer_norm"
        ),
        Rule(f"{cross}/query/kernel", f"{there}.ff_q.weight", HEADS_IN),
        Rule(keys_values, f"{there}.ff_kv.weight", HEADS_IN, keys_values_by_head),
        Rule(f"{cross}/out/kernel", f"{there}.ff_out.weight", HEADS_OUT),
        *norm(f"{cross}_norm", f"{theirs}.{where}_enc_attention.layer_norm"),
        *_feed_forward(ours, theirs, config),
    ]


def _self_attention(ours: str, theirs: str) -> list[Row]:
    kernels = tuple(f"{ours}/{name}/kernel" for name in ("query", "key", "value"))
    return [
        Rule(kernels, f"{theirs}.ff_in.weight", HEADS_IN, keys_values_by_head),
        Rule(f"{ours}/out/kernel", f"{theirs}.ff_out.weight", HEADS_OUT),
    ]


def _feed_forward(ours: str, theirs: str, config: ModelConfig) -> list[Row]:
    where = config.norm_position
    rows = norm(f"{ours}/feed_forward_norm", f"{theirs}.{where}_ff.layer_norm")
    names = {"up": "ff1", "down": "ff2"} | ({"gate": "linear"} if config.gated else {})
    for name, there in names.items():
        rows += dense(f"{ours}/feed_forward/{name}", f"{theirs}.ff.{there}")
    return rows


def read(path: Path, options: Options = NO_OPTIONS) -> Foreign:
    """A model folder, or its parameter file."""
    return files.read_folder(path, options)


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """What sockeye-translate loads: params.best, config, version, vocabularies."""
    files.write_folder(path, foreign, config)
