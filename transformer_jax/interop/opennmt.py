"""OpenNMT-py 3 (and 2): `encoder_type` and `decoder_type` transformer.

Its conventions: pre-norm with a norm of its own at the end of each stack, eps 1e-6.
Embeddings times √d and sinusoids are one switch, `position_encoding`. A bias on the
logits. The source has neither bos nor eos. A feed-forward layer with silu is always
gated. Special symbols are found by name: `<unk>`, `<blank>` (pad), `<s>`, `</s>`.

A checkpoint holds `model`, `generator`, `vocab` and `opt`. Settings are its options,
with three more that stand in its vocabulary: `source_vocab_size`, `target_vocab_size`
and `decoder_start_token`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.interop import opennmt_files as files
from transformer_jax.interop.checks import changed, check_fields, kinds_of
from transformer_jax.interop.library import (
    NO_OPTIONS,
    Foreign,
    Options,
    differences,
    refuse,
)
from transformer_jax.interop.rules import (
    Derived,
    Row,
    StateDict,
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
FEED_FORWARD: Mapping[str, tuple[str, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "silu": ("silu", True),
    "gated-gelu": ("gelu", True),
}
"""pos_ffn_activation_fn → activation, gated."""
LAYOUTS = {"SinusoidalInterleaved": "interleaved", "SinusoidalConcat": "halves"}
STARTS = {"<s>": "bos", "</s>": "eos"}
MUST_BE_OFF = (
    "copy_attn",
    "coverage_attn",
    "lora_embedding",
    "lora_layers",
    "max_relative_positions",
    "multiquery",
    "n_src_feats",
    "num_experts",
    "num_kv",
    "parallel_residual",
    "quant_layers",
    "relative_positions_buckets",
    "shared_layer_norm",
    "sliding_window",
    "src_feats",
)
"""Options that change what is computed into something that we do not have."""
DEFAULTS: Mapping[str, Any] = {
    "model_task": "seq2seq",
    "model_type": "text",
    "encoder_type": "transformer",
    "decoder_type": "transformer",
    "enc_layers": 2,
    "dec_layers": 2,
    "enc_hid_size": 500,
    "dec_hid_size": 500,
    "src_word_vec_size": 500,
    "tgt_word_vec_size": 500,
    "transformer_ff": 2048,
    "heads": 8,
    "dropout": [0.3],
    "attention_dropout": [0.1],
    "pos_ffn_activation_fn": "relu",
    "self_attn_type": "scaled-dot",
    "position_encoding": False,
    "position_encoding_type": "SinusoidalInterleaved",
    "layer_norm": "standard",
    "norm_eps": 1e-6,
    "add_qkvbias": False,
    "add_ffnbias": False,
    "share_embeddings": False,
    "share_decoder_embeddings": False,
    "generator_function": "softmax",
    "decoder_start_token": "<s>",
}
"""What its loader supposes for an option that a checkpoint lacks."""
WANTED: Mapping[str, tuple[Any, ...]] = {
    "model_task": ("seq2seq",),
    "model_type": ("text",),
    "encoder_type": ("transformer",),
    "decoder_type": ("transformer",),
    "position_encoding": (True,),
    "position_encoding_type": tuple(LAYOUTS),
    "pos_ffn_activation_fn": tuple(FEED_FORWARD),
    "self_attn_type": ("scaled-dot", "scaled-dot-flash"),
    "layer_norm": ("standard",),
    "generator_function": ("softmax",),
    "decoder_start_token": tuple(STARTS),
}
"""Options that choose what is computed, with the values that we can express. Those
that are nowhere here size the model, are switches that we have, or matter only in
training or to other types of model."""
EXPRESSIBLE: Mapping[str, tuple[Any, ...]] = {
    "norm": ("layer_norm",),
    "norm_bias": (True,),
    "source_bos": (False,),
    "norm_position": ("pre",),
    "has_final_norm": (True,),
    "positions": ("sinusoidal",),
    "sinusoid_layout": tuple(LAYOUTS.values()),
    "position_offset": (0,),
    "scale_embeddings": (True,),
    "decoder_start": tuple(STARTS.values()),
    "source_eos": (False,),
}
EXPORTED: Mapping[str, Any] = {
    "src_subword_type": "none",
    "tgt_subword_type": "none",
    "freeze_word_vecs_enc": False,
    "freeze_word_vecs_dec": False,
    "optim": "adam",
    "data_task": "seq2seq",
    "use_ckpting": [],
    "feat_merge": "concat",
}
"""Options that its loader asks for beside those of the model."""


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Our settings from its options; refuses what has no place in them."""
    opt = {**DEFAULTS, **settings}
    steps = dict.fromkeys(("dropout", "attention_dropout"), (float, list))
    check_fields(opt, {**kinds_of(DEFAULTS), **steps}, "The options of OpenNMT-py")
    wrong = [
        f"{name} is {opt[name]!r}, and must be {' or '.join(map(repr, allowed))}"
        for name, allowed in WANTED.items()
        if opt[name] not in allowed
    ]
    wrong += [
        f"{name} is {opt[name]!r}, and must be off"
        for name in MUST_BE_OFF
        if opt.get(name)
    ]
    width = opt["enc_hid_size"]
    for name in ("dec_hid_size", "src_word_vec_size", "tgt_word_vec_size"):
        if opt[name] != width:
            wrong.append(f"{name} is {opt[name]} and enc_hid_size {width}")
    refuse("opennmt", wrong)
    activation, gated = FEED_FORWARD[opt["pos_ffn_activation_fn"]]
    source, target = opt["share_embeddings"], opt["share_decoder_embeddings"]
    tied = {(True, True): "all", (True, False): "source_target"}
    tied |= {(False, True): "target_output", (False, False): "none"}
    dropout, attention_dropout = (
        _first(opt[name]) for name in ("dropout", "attention_dropout")
    )
    return ModelConfig(
        num_encoder_layers=opt["enc_layers"],
        num_decoder_layers=opt["dec_layers"],
        d_model=width,
        d_ff=opt["transformer_ff"],
        num_heads=opt["heads"],
        dropout=dropout,
        attention_dropout=attention_dropout,
        activation_dropout=dropout,
        norm_position="pre",
        norm_eps=opt["norm_eps"],
        activation=activation,  # pyright: ignore[reportArgumentType]
        gated=gated,
        attention_bias=opt["add_qkvbias"],
        feed_forward_bias=opt["add_ffnbias"],
        sinusoid_layout=LAYOUTS[opt["position_encoding_type"]],  # pyright: ignore[reportArgumentType]
        tied_embeddings=tied[source, target],  # pyright: ignore[reportArgumentType]
        output_bias=True,
        decoder_start=STARTS[opt["decoder_start_token"]],  # pyright: ignore[reportArgumentType]
        source_eos=False,
        source_vocab_size=opt.get("source_vocab_size", 0),
        target_vocab_size=opt.get("target_vocab_size", 0),
    )


def only_in_training(settings: Mapping[str, Any]) -> list[str]:
    """Dropout that OpenNMT-py changes with the steps, and fine-tuning here does not."""
    values = {name: settings.get(name) for name in ("dropout", "attention_dropout")}
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    return changed(
        {name: (value, value[:1]) for name, value in lists.items() if value[1:]}
    )


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Its options for our settings; refuses what it cannot express."""
    unlike = differences(config, EXPRESSIBLE)
    names = {ours: theirs for theirs, ours in FEED_FORWARD.items()}
    feed_forward = (config.activation, config.gated)
    if feed_forward not in names:
        gated = "gated" if config.gated else "not gated"
        unlike.append(f"activation is {config.activation!r}, {gated}")
    refuse("opennmt", unlike)
    layouts = {ours: theirs for theirs, ours in LAYOUTS.items()}
    starts = {ours: theirs for theirs, ours in STARTS.items()}
    widths = ("enc_hid_size", "dec_hid_size", "src_word_vec_size", "tgt_word_vec_size")
    return {
        **DEFAULTS,
        **EXPORTED,
        **dict.fromkeys((*widths, "hidden_size", "word_vec_size"), config.d_model),
        "enc_layers": config.num_encoder_layers,
        "dec_layers": config.num_decoder_layers,
        "transformer_ff": config.d_ff,
        "heads": config.num_heads,
        "dropout": [config.dropout],
        "attention_dropout": [config.attention_dropout],
        "norm_eps": config.norm_eps,
        "pos_ffn_activation_fn": names[feed_forward],
        "position_encoding": True,
        "position_encoding_type": layouts[config.sinusoid_layout],
        "add_qkvbias": config.attention_bias,
        "add_ffnbias": config.feed_forward_bias,
        "share_vocab": config.source_is_target_table,
        "share_embeddings": config.source_is_target_table,
        "share_decoder_embeddings": config.output_is_target_table,
        "decoder_start_token": starts[config.decoder_start],
        "source_vocab_size": config.source_vocab_size,
        "target_vocab_size": config.target_vocab_size,
    }


def table(config: ModelConfig, settings: Mapping[str, Any]) -> Table:
    """Between our parameters and `model.…` and `generator.…` of a checkpoint."""
    places = {
        side: f"model.{side}.embeddings.make_embedding"
        for side in ("encoder", "decoder")
    }
    source, target = (f"{place}.emb_luts.0" for place in places.values())
    rows = token_tables(config, source, target, "generator")
    if not config.output_bias:
        shape = (config.target_vocab_size,)
        rows.append(Derived("generator.bias", _zeros, shape))

    def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
        positions = shape[0] if shape else 0
        made = sinusoidal_table(positions, config.d_model, config.sinusoid_layout)
        return made[:, None]

    for side, place in places.items():
        shape = (POSITIONS, 1, config.d_model)
        rows.append(
            Derived(f"{place}.pe.pe", sinusoids, shape, tolerance=FLOAT32_ERROR)
        )
        rows += norm(f"{side}/final_norm", f"model.{side}.layer_norm")
    return Table(config, [*rows, *_encoder(config), *_decoder(config)])


def completed(
    state: StateDict, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays as a checkpoint names them: those of its module lack `model.`."""
    named: dict[str, np.ndarray] = {}
    for key, array in state.items():
        name = key if key.startswith(("model.", "generator.")) else f"model.{key}"
        if name in named:
            raise ValueError(
                f"The weights have {name} both with and without 'model.' before it, "
                "which are one array in OpenNMT-py: leave one of the two out."
            )
        named[name] = array
    theirs = dict(settings)
    for side, ours in (("encoder", "source"), ("decoder", "target")):
        embedded = named.get(
            f"model.{side}.embeddings.make_embedding.emb_luts.0.weight"
        )
        if embedded is not None and embedded.ndim == 2:
            theirs.setdefault(f"{ours}_vocab_size", embedded.shape[0])
    return named, theirs


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _encoder(config: ModelConfig) -> list[Row]:
    ours, theirs = "encoder/layer_{i}", "model.encoder.transformer.{i}"
    return [
        *_attention(f"{ours}/self_attention", f"{theirs}.self_attn", config),
        *norm(f"{ours}/self_attention_norm", f"{theirs}.layer_norm"),
        *_feed_forward(ours, theirs, config),
    ]


def _decoder(config: ModelConfig) -> list[Row]:
    ours, theirs = "decoder/layer_{i}", "model.decoder.transformer_layers.{i}"
    return [
        *_attention(f"{ours}/self_attention", f"{theirs}.self_attn", config),
        *norm(f"{ours}/self_attention_norm", f"{theirs}.layer_norm_1"),
        *_attention(f"{ours}/cross_attention", f"{theirs}.context_attn", config),
        *norm(f"{ours}/cross_attention_norm", f"{theirs}.layer_norm_2"),
        *_feed_forward(ours, theirs, config),
    ]


def _attention(ours: str, theirs: str, config: ModelConfig) -> list[Row]:
    names = ("linear_query", "linear_keys", "linear_values", "final_linear")
    places = (f"{theirs}.{name}" for name in names)
    return attention(ours, *places, bias=config.attention_bias)


def _feed_forward(ours: str, theirs: str, config: ModelConfig) -> list[Row]:
    ours, theirs = f"{ours}/feed_forward", f"{theirs}.feed_forward"
    rows = norm(f"{ours}_norm", f"{theirs}.layer_norm")
    names = {"up": "w_1", "down": "w_2"} | ({"gate": "w_3"} if config.gated else {})
    for name, there in names.items():
        rows += dense(
            f"{ours}/{name}", f"{theirs}.{there}", bias=config.feed_forward_bias
        )
    return rows


def _first(value: Any) -> float:
    """Of a list that changes by steps, the first."""
    return (value or [0.0])[0] if isinstance(value, list) else value


def read(path: Path, options: Options = NO_OPTIONS) -> Foreign:
    """A checkpoint (.pt), or a folder with model.pt."""
    return files.read_checkpoint(path, options)


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """model.pt, and codes beside it."""
    files.write_checkpoint(path, foreign, config)
