"""Hugging Face Marian: OPUS-MT models and their like, in both directions.

A folder with config.json, model.safetensors (or pytorch_model.bin), vocab.json,
source.spm and target.spm. Post-norm, sinusoids in two halves with exponent 2i/d,
decoder fed with the pad token first, a bias on the logits.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig, SearchConfig
from transformer_jax.data.tokenizer import SentencePieceTokenizer, Tokenizer
from transformer_jax.data.vocabulary_tokenizer import Side, VocabularyTokenizer
from transformer_jax.interop.files import (
    find_file,
    read_json,
    read_pickle,
    read_tensors,
    write_tensors,
)
from transformer_jax.interop.library import (
    NO_OPTIONS,
    Foreign,
    Options,
    differences,
    refuse,
)
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

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu"}
MAX_POSITIONS = 1024
"""Rows of the sinusoid table that Marian's class makes, unless config.json says."""
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
    there = {**DEFAULTS, **settings}
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
        there.get("bos_token_id"): "bos",
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
        decoder_start=starts[start],  # pyright: ignore[reportArgumentType]
        source_vocab_size=source,
        target_vocab_size=source
        if shared
        else there.get("decoder_vocab_size") or source,
    )


DEFAULTS: Mapping[str, Any] = {
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "d_model": 1024,
    "vocab_size": 58101,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "scale_embedding": False,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "decoder_start_token_id": 58100,
    "pad_token_id": 58100,
    "eos_token_id": 0,
}
"""What MarianConfig of Transformers 5 supposes when config.json does not say."""


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
        "max_position_embeddings": MAX_POSITIONS,
        **special_ids(config, pad=pad, bos=bos, eos=eos),
    }


def special_ids(
    config: ModelConfig, *, pad: int, bos: int | None, eos: int
) -> dict[str, Any]:
    """The entries of config.json that number special tokens."""
    start = {"pad": pad, "bos": bos, "eos": eos}[config.decoder_start]
    return {
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "forced_eos_token_id": eos,
        "decoder_start_token_id": start,
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
                lambda shape: sinusoidal_table(*shape, layout="halves_paper"),
                (settings.get("max_position_embeddings", MAX_POSITIONS), D),
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
    settings = read_json(find_file(path, ["config.json"]))
    weights = find_file(path, ["model.safetensors", "pytorch_model.bin"])
    reader = read_tensors if weights.suffix == ".safetensors" else read_pickle
    state = dict(reader(weights))
    if "final_logits_bias" not in state:  # zeros, which HF need not write
        size = model_config(settings).target_vocab_size
        state["final_logits_bias"] = np.zeros((1, size), np.float32)
    generation = {}
    if (path / "generation_config.json").is_file():
        generation = read_json(path / "generation_config.json")
    beams = generation.get("num_beams") or settings.get("num_beams") or 1
    alpha = generation.get("length_penalty", settings.get("length_penalty", 1.0))
    search = SearchConfig(
        method="beam" if beams > 1 else "greedy", beam_size=beams, alpha=alpha
    )
    return Foreign(settings, state, read_tokenizer(path, settings), search)


def read_tokenizer(path: Path, settings: Mapping[str, Any]) -> VocabularyTokenizer:
    """vocab.json numbers the pieces of source.spm and target.spm."""
    vocab = find_file(path, ["vocab.json"])
    target_vocab = path / "target_vocab.json"
    there = {**DEFAULTS, **settings}
    source_size = there["vocab_size"]
    target_size = there.get("decoder_vocab_size") or source_size
    sides = []
    for side, file, size in (
        ("source", vocab, source_size),
        ("target", target_vocab if target_vocab.is_file() else vocab, target_size),
    ):
        numbers: dict[str, int] = read_json(file)
        symbols = [f"<unused_{i}>" for i in range(size)]
        for symbol, number in numbers.items():
            if not 0 <= number < size:
                raise ValueError(
                    f"{file} numbers {symbol!r} as {number}, but config.json says that "
                    f"there are {size} symbols: the two do not belong together."
                )
            symbols[number] = symbol
        codes = find_file(path, [f"{side}.spm"]).read_bytes()
        sides.append(Side(tuple(symbols), "sentencepiece", codes))
    unknown = sides[1].symbols.index("<unk>")
    pad = there["pad_token_id"]
    bos = there.get("bos_token_id")
    return VocabularyTokenizer(
        *sides,
        pad_id=pad,
        bos_id=pad if bos is None else bos,
        eos_id=there["eos_token_id"],
        unk_id=unknown,
    )


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """What `MarianMTModel.from_pretrained` and `MarianTokenizer` read."""
    tokenizer = foreign.tokenizer
    source, target = spm_sides(tokenizer)
    bos = None if tokenizer.bos_id == tokenizer.pad_id else tokenizer.bos_id
    ids = special_ids(config, pad=tokenizer.pad_id, bos=bos, eos=tokenizer.eos_id)
    separate = source.symbols != target.symbols
    beams = foreign.search.beam_size if foreign.search.method == "beam" else 1
    # As our own search does it.
    never = {tokenizer.pad_id, tokenizer.bos_id} - {tokenizer.eos_id}
    generation = {
        **ids,
        "num_beams": beams,
        "length_penalty": foreign.search.alpha,
        "max_length": 512,
        "bad_words_ids": [[i] for i in sorted(never)],
    }
    about = {"separate_vocabs": separate, "tokenizer_class": "MarianTokenizer"}
    texts: dict[str, Any] = {
        "config.json": {**foreign.settings, **ids},
        "generation_config.json": generation,
        "tokenizer_config.json": about,
        "vocab.json": {symbol: i for i, symbol in enumerate(source.symbols)},
    }
    if separate:
        texts["target_vocab.json"] = {s: i for i, s in enumerate(target.symbols)}
    for name, value in texts.items():
        text = json.dumps(value, ensure_ascii=False, indent=2)
        (path / name).write_text(text + "\n", encoding="utf-8")
    (path / "source.spm").write_bytes(source.codes)
    (path / "target.spm").write_bytes(target.codes)
    write_tensors(path / "model.safetensors", foreign.state)


def spm_sides(tokenizer: Tokenizer) -> tuple[Side, Side]:
    """Symbols and SentencePiece models of both languages."""
    if isinstance(tokenizer, VocabularyTokenizer):
        sides = (tokenizer.source, tokenizer.target)
        if all(side.splitter == "sentencepiece" for side in sides):
            return sides
    if isinstance(tokenizer, SentencePieceTokenizer):
        source = tokenizer.source_pieces(range(tokenizer.source_vocab_size))
        target = tokenizer.target_pieces(range(tokenizer.target_vocab_size))
        models = tokenizer.models
        return (
            Side(tuple(source), "sentencepiece", models[0]),
            Side(tuple(target), "sentencepiece", models[1]),
        )
    raise ValueError(
        "Marian splits text with SentencePiece, and this run's tokenizer does not: it "
        "cannot be exported as a Marian model."
    )
