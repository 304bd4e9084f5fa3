"""`torch.nn.Transformer` between token embeddings, positions and a generator.

The names are those of PyTorch's translation tutorial (`Seq2SeqTransformer`), with
`transformer`, `src_tok_emb`, `tgt_tok_emb`, `positional_encoding` and `generator`. Its
attention keeps query, key and value in one array, and both stacks end with a norm,
post-norm ones too. `TorchSettings` says what the names leave open.
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
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    Derived,
    Row,
    Rule,
    StateDict,
    Table,
    dense,
    norm,
    token_tables,
)
from transformer_jax.models.embeddings import sinusoidal_table
from transformer_jax.validation import settings as checked

SOURCE, TARGET, OUTPUT = (
    "src_tok_emb.embedding",
    "tgt_tok_emb.embedding",
    "generator",
)
TABLES = tuple(f"{name}.weight" for name in (SOURCE, TARGET, OUTPUT))
SINUSOIDS = "positional_encoding.pos_embedding"
LEARNED = {"source": "src_pos_emb.weight", "target": "tgt_pos_emb.weight"}
"""The tutorial has no learned positions; these are tables [maxlen, D] of our naming."""
FLOAT32_ERROR = 2e-3
"""The tutorial computes angles in float32: those of position 5000 are off by about
5000 · 2^-23, and so are their sines."""


@checked
class TorchSettings:
    """Arguments of `torch.nn.Transformer` by their own names, and what is around it.

    Sizes, biases and tied tables are read from the weights where they are left out.
    """

    nhead: Positive
    d_model: Positive
    num_encoder_layers: Positive
    num_decoder_layers: Positive
    dim_feedforward: Positive
    src_vocab_size: Positive
    tgt_vocab_size: Positive
    dropout: Fraction = 0.1
    """On attention weights and inside the feed-forward layers too, as PyTorch's is."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """silu can be handed to PyTorch only as a function."""
    layer_norm_eps: float = 1e-5
    norm_first: bool = False
    bias: bool = True
    batch_first: bool = False
    """Changes no weights."""
    final_norm: bool = True
    """Whether the stacks end with norms. PyTorch's do, unless `encoder.norm` and
    `decoder.norm` are set to None."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    sinusoid_layout: Literal["interleaved", "halves", "halves_paper"] = "interleaved"
    """The tutorial's is interleaved; as the table is stored, another one works too."""
    position_offset: Count = 0
    """Position of the stored table's first row."""
    maxlen: Positive = 5000
    """Rows of the position table."""
    scale_embeddings: bool = True
    """Whether tokens are multiplied by sqrt(d_model), as the tutorial's are."""
    tied_embeddings: Literal["all", "target_output", "source_target", "none"] = "none"
    generator_bias: bool = True
    source_bos: bool = True
    """Whether sources begin with bos; the tutorial's do."""
    source_eos: bool = True
    decoder_start: Literal["bos", "eos", "pad"] = "bos"
    unk_id: Count = 0
    pad_id: Count = 1
    bos_id: Count = 2
    eos_id: Count = 3


SAME_NAME = (
    "num_encoder_layers",
    "num_decoder_layers",
    "d_model",
    "dropout",
    "activation",
    "final_norm",
    "positions",
    "sinusoid_layout",
    "position_offset",
    "scale_embeddings",
    "tied_embeddings",
    "source_bos",
    "source_eos",
    "decoder_start",
)
"""Settings that `ModelConfig` has too, with the same values."""
FOUND = (
    "d_model",
    "src_vocab_size",
    "tgt_vocab_size",
    "dim_feedforward",
    "num_encoder_layers",
    "num_decoder_layers",
    "bias",
    "final_norm",
    "generator_bias",
    "maxlen",
)
"""Settings that the names and shapes tell."""


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Their settings in ours."""
    theirs = TorchSettings(**settings)
    learned = theirs.positions == "learned"
    if learned and theirs.position_offset:
        raise ValueError("position_offset must be 0 where positions are learned.")
    same: dict[str, Any] = {name: getattr(theirs, name) for name in SAME_NAME}
    if learned:
        same["max_positions"] = theirs.maxlen
    return ModelConfig(
        **same,
        num_heads=theirs.nhead,
        d_ff=theirs.dim_feedforward,
        attention_dropout=theirs.dropout,
        activation_dropout=theirs.dropout,
        norm_position="pre" if theirs.norm_first else "post",
        norm_eps=theirs.layer_norm_eps,
        attention_bias=theirs.bias,
        feed_forward_bias=theirs.bias,
        norm_bias=theirs.bias,
        output_bias=theirs.generator_bias,
        source_vocab_size=theirs.src_vocab_size,
        target_vocab_size=theirs.tgt_vocab_size,
    )


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Our settings in theirs; the special ids are the tutorial's."""
    learned = config.positions == "learned"
    refuse(
        "torch",
        differences(
            config,
            {
                "norm": ("layer_norm",),
                "gated": (False,),
                "feed_forward_bias": (config.attention_bias,),
                "norm_bias": (config.attention_bias,),
                **({"position_offset": (0,)} if learned else {}),
            },
        ),
    )
    same: dict[str, Any] = {name: getattr(config, name) for name in SAME_NAME}
    same["final_norm"] = config.has_final_norm
    if learned:
        same["maxlen"] = config.max_positions
    return dataclasses.asdict(
        TorchSettings(  # pyright: ignore[reportCallIssue]
            **same,
            nhead=config.num_heads,
            dim_feedforward=config.d_ff,
            norm_first=config.norm_position == "pre",
            layer_norm_eps=config.norm_eps,
            bias=config.attention_bias,
            generator_bias=config.output_bias,
            src_vocab_size=config.source_vocab_size,
            tgt_vocab_size=config.target_vocab_size,
        )
    )


def table(config: ModelConfig, settings: Mapping[str, Any]) -> Table:
    """Their names of our parameters."""
    bias = config.attention_bias
    rows = token_tables(config, SOURCE, TARGET, OUTPUT)
    rows += _positions(config, TorchSettings(**settings).maxlen)
    for side, sublayers in (
        ("encoder", {"self_attention": "self_attn"}),
        (
            "decoder",
            {"self_attention": "self_attn", "cross_attention": "multihead_attn"},
        ),
    ):
        ours, theirs = f"{side}/layer_{{i}}", f"transformer.{side}.layers.{{i}}"
        for name, block in sublayers.items():
            rows += _attention(f"{ours}/{name}", f"{theirs}.{block}", bias=bias)
        rows += dense(f"{ours}/feed_forward/up", f"{theirs}.linear1", bias=bias)
        rows += dense(f"{ours}/feed_forward/down", f"{theirs}.linear2", bias=bias)
        for number, name in enumerate([*sublayers, "feed_forward"], start=1):
            rows += norm(f"{ours}/{name}_norm", f"{theirs}.norm{number}", bias=bias)
        if config.has_final_norm:
            rows += norm(f"{side}/final_norm", f"transformer.{side}.norm", bias=bias)
    return Table(config, rows)


def completed(
    state: StateDict, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tied arrays under all their names, and the settings that the weights tell."""
    state, given = dict(state), dict(settings)
    learned = given.get("positions") == "learned"
    if learned and SINUSOIDS in state:
        # One learned table for both sides, in the place of the tutorial's sinusoids.
        shared = state.pop(SINUSOIDS)
        state |= dict.fromkeys(LEARNED.values(), shared.reshape(-1, shared.shape[-1]))
    tying = given.get("tied_embeddings") or found_tying(state, *TABLES)
    state = with_tied(state, tying, *TABLES)
    given["tied_embeddings"] = tying
    if set(FOUND) <= given.keys():
        return state, given
    return state, {**_found(state, learned=learned), **given}


def read(path: Path, options: Options) -> Foreign:
    """A folder with weights and config.json, or a file of weights and --settings."""
    state, given = completed(read_state(path), read_settings(path, options))
    theirs = TorchSettings(**given)
    tokenizer = tokenizer_from(
        path,
        options,
        (theirs.src_vocab_size, theirs.tgt_vocab_size),
        {name: getattr(theirs, name) for name in SPECIAL_IDS},
    )
    return Foreign(dataclasses.asdict(theirs), state, tokenizer)


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """model.safetensors, config.json, and the tokenizer's files."""
    write_folder(path, foreign, config)


def _found(state: StateDict, *, learned: bool) -> dict[str, Any]:
    """These settings; a table of positions may have its axes in another order."""
    stack = "transformer.encoder"
    source_size, width = rows_and_width(state, TABLES[0])
    positions = state.get(LEARNED["source"] if learned else SINUSOIDS)
    return {
        "d_model": width,
        "src_vocab_size": source_size,
        "tgt_vocab_size": rows_and_width(state, TABLES[1])[0],
        "dim_feedforward": rows_and_width(state, f"{stack}.layers.0.linear1.weight")[0],
        "num_encoder_layers": count_layers(state, f"{stack}.layers."),
        "num_decoder_layers": count_layers(state, "transformer.decoder.layers."),
        "bias": f"{stack}.layers.0.linear1.bias" in state,
        "final_norm": f"{stack}.norm.weight" in state,
        "generator_bias": f"{OUTPUT}.bias" in state,
        **({} if positions is None else {"maxlen": positions.size // width or 1}),
    }


def _attention(ours: str, theirs: str, *, bias: bool) -> list[Row]:
    """`torch.nn.MultiheadAttention`: query, key and value one below the other."""
    names = [f"{ours}/{name}" for name in ("query", "key", "value")]
    kernels = tuple(f"{name}/kernel" for name in names)
    rows: list[Row] = [
        Rule(kernels, f"{theirs}.in_proj_weight", HEADS_IN),
        Rule(f"{ours}/out/kernel", f"{theirs}.out_proj.weight", HEADS_OUT),
    ]
    if bias:
        biases = tuple(f"{name}/bias" for name in names)
        rows.append(Rule(biases, f"{theirs}.in_proj_bias", HEADS_BIAS))
        rows.append(Rule(f"{ours}/out/bias", f"{theirs}.out_proj.bias"))
    return rows


def _positions(config: ModelConfig, maxlen: int) -> list[Row]:
    if config.positions == "learned":
        return [
            Rule(f"{side}_positions/embedding", key) for side, key in LEARNED.items()
        ]

    def make(shape: tuple[int, ...]) -> np.ndarray:
        """The tutorial's [maxlen, 1, D], or the same with its axes in another order."""
        first, width = config.position_offset, config.d_model
        rows = int(np.prod(shape)) // width
        made = sinusoidal_table(first + rows, width, config.sinusoid_layout)[first:]
        return made.reshape(shape) if made.size == np.prod(shape) else made

    shape = (maxlen, 1, config.d_model)
    return [Derived(SINUSOIDS, make, shape, tolerance=FLOAT32_ERROR)]
