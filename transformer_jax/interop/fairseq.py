"""fairseq's `transformer` (TransformerModel, up to version 0.12).

Its conventions: sinusoids in two halves with exponent i/(d/2 - 1), or learned
positions; both numbered from pad id + 1 = 2. Embeddings times √d. The source ends with
eos, and eos is the decoder's first input. Norms add 1e-5 to the variance; pre-norm
stacks end with a norm of their own. All four projections of attention have biases, and
the output projection has none. Special symbols: bos 0, pad 1, eos 2, unk 3.

Settings are fairseq's flat arguments (`encoder_embed_dim`), with four more that it
keeps elsewhere: the sizes of the two dictionaries, and the version numbers of the two
stacks, by which it knows checkpoints from before the final norms.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig, SearchConfig
from transformer_jax.interop import fairseq_files as files
from transformer_jax.interop.checks import changed, check_fields, kinds_of
from transformer_jax.interop.library import Foreign, Options, differences, refuse
from transformer_jax.interop.rules import (
    Derived,
    Row,
    Rule,
    StateDict,
    Table,
    attention,
    dense,
    norm,
    token_tables,
)
from transformer_jax.models.embeddings import sinusoidal_table

PAD_ID = 1
FLOAT32_ERROR = 2e-3
"""fairseq computes angles in float32, and so is off by up to 5e-4 at position 5000."""
DEFAULTS: dict[str, Any] = {
    "arch": "transformer",
    "task": "translation",
    "encoder_embed_dim": 512,
    "encoder_ffn_embed_dim": 2048,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "no_decoder_final_norm": False,
    "max_source_positions": 1024,
    "max_target_positions": 1024,
    "activation_fn": "relu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "relu_dropout": 0.0,
    "share_all_embeddings": False,
    "share_decoder_input_output_embed": False,
    "no_scale_embedding": False,
    "encoder_version": 3,
    "decoder_version": 3,
}
"""What fairseq takes for an argument that is not there (its base architecture)."""
MUST_BE_OFF = (
    "adaptive_input",
    "adaptive_softmax_cutoff",
    "add_adapters",
    "base_layers",
    "char_inputs",
    "cross_self_attention",
    "layernorm_embedding",
    "merge_src_tgt_embed",
    "no_cross_attention",
    "no_token_positional_embeddings",
    "quant_noise_pq",
    "quant_noise_scalar",
    "scale_attn",
    "scale_fc",
    "scale_heads",
    "scale_resids",
    "tie_adaptive_proj",
    "tie_adaptive_weights",
    "use_factorized_embedding",
)
"""Arguments that change what is computed into something that we do not have."""
SIDES = (
    "embed_dim",
    "ffn_embed_dim",
    "attention_heads",
    "normalize_before",
    "learned_pos",
)
"""Arguments that encoder and decoder must have in common."""
NO_MATTER = ("layers", "version", "embed_path", "layerdrop", "input_dim", "output_dim")
"""More arguments of the two stacks that are read, or do nothing once a model is
trained."""
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "norm": ("layer_norm",),
    "norm_eps": (1e-5,),
    "activation": ("relu", "gelu"),
    "gated": (False,),
    "attention_bias": (True,),
    "sinusoid_layout": ("halves",),
    "position_offset": (PAD_ID + 1,),
    "tied_embeddings": ("all", "target_output", "none"),
    "output_bias": (False,),
    "decoder_start": ("eos",),
    "source_eos": (True,),
    "source_bos": (False,),
    "norm_bias": (True,),
    "feed_forward_bias": (True,),
}


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """fairseq's arguments in our settings; refuses what has no place in them."""
    args = _completed(settings)
    check_fields(args, kinds_of(DEFAULTS), "The arguments of fairseq")
    refuse("fairseq", _unlike(args))
    learned, all_tied = args["encoder_learned_pos"], args["share_all_embeddings"]
    tied = "target_output" if args["share_decoder_input_output_embed"] else "none"
    pre_norm = bool(args["encoder_normalize_before"])
    offset = PAD_ID + 1
    return ModelConfig(
        num_encoder_layers=args["encoder_layers"],
        num_decoder_layers=args["decoder_layers"],
        d_model=args["encoder_embed_dim"],
        d_ff=args["encoder_ffn_embed_dim"],
        num_heads=args["encoder_attention_heads"],
        dropout=args["dropout"],
        attention_dropout=args["attention_dropout"],
        activation_dropout=args["activation_dropout"] or args["relu_dropout"],
        norm_position="pre" if pre_norm else "post",
        final_norm=_has_final_norms(args)[0],
        norm_eps=1e-5,
        activation=args["activation_fn"],
        positions="learned" if learned else "sinusoidal",
        sinusoid_layout="halves",
        max_positions=args["max_source_positions"] + offset,
        position_offset=offset,
        scale_embeddings=not args["no_scale_embedding"],
        tied_embeddings="all" if all_tied else tied,
        decoder_start="eos",
        source_eos=True,
        source_vocab_size=args.get("source_vocab_size", 0),
        target_vocab_size=args.get("target_vocab_size", 0),
    )


def only_in_training(settings: Mapping[str, Any]) -> list[str]:
    """Layers that fairseq leaves out at random, and fine-tuning here does not."""
    names = [f"{side}_layerdrop" for side in ("encoder", "decoder")]
    return changed({name: (settings.get(name) or 0.0, 0.0) for name in names})


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Our settings as fairseq's arguments; refuses what fairseq cannot express."""
    unlike = differences(config, EXPRESSIBLE)
    if config.norm_position == "post" and config.has_final_norm:
        unlike.append("final_norm is True, and must be False with post-norm")
    refuse("fairseq", unlike)
    positions = config.max_positions - config.position_offset
    all_tied = config.source_is_target_table
    both = {
        "embed_dim": config.d_model,
        "ffn_embed_dim": config.d_ff,
        "attention_heads": config.num_heads,
        "normalize_before": config.norm_position == "pre",
        "learned_pos": config.positions == "learned",
        # Version 1 is from before the final norms.
        "version": 1 if _lacks_final_norm(config) else 3,
    }
    return {
        **DEFAULTS,
        **{
            f"{side}_{k}": x for side in ("encoder", "decoder") for k, x in both.items()
        },
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "decoder_input_dim": config.d_model,
        "decoder_output_dim": config.d_model,
        "no_decoder_final_norm": _lacks_final_norm(config),
        "max_source_positions": positions,
        "max_target_positions": positions,
        "activation_fn": config.activation,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "share_all_embeddings": all_tied,
        "share_decoder_input_output_embed": config.output_is_target_table,
        "no_scale_embedding": not config.scale_embeddings,
        "source_vocab_size": config.source_vocab_size,
        "target_vocab_size": config.target_vocab_size,
    }


def table(config: ModelConfig, settings: Mapping[str, Any]) -> Table:
    """Rules between our parameters and a state dict as version 0.12 writes it.

    `fairseq_files.upgraded` brings older and newer ones into that shape.
    """
    args = _completed(settings)
    rows = token_tables(
        config,
        "encoder.embed_tokens",
        "decoder.embed_tokens",
        "decoder.output_projection",
    )
    for side in ("encoder", "decoder"):
        rows += _layer(side) + _positions(config, side)
        rows.append(_version(side, args[f"{side}_version"]))
        if config.has_final_norm:
            rows += norm(f"{side}/final_norm", f"{side}.layer_norm")
    return Table(config, rows)


def completed(
    state: StateDict, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A state dict of any age as version 0.12 has it, and what it tells."""
    if missing := [name for name in files.EMBEDDED if name not in state]:
        raise ValueError(
            f"The weights have no {' and no '.join(missing)}: they are of no "
            "transformer of fairseq. Give the checkpoint's whole 'model'."
        )
    theirs = dict(settings)
    for side, name in zip(("source", "target"), files.EMBEDDED, strict=True):
        if state[name].ndim == 2:
            theirs.setdefault(f"{side}_vocab_size", state[name].shape[0])
    return files.upgraded(state, theirs), theirs


def read(path: Path, options: Options) -> Foreign:
    """A checkpoint, or a folder with one; dictionaries and codes beside it."""
    file = files.checkpoint_file(path)
    state, settings = files.read_checkpoint(file, options)
    tokenizer = files.read_tokenizer(file.parent, settings, options)
    # What fairseq-generate does when it is told nothing.
    search = SearchConfig(max_length_factor=0.0, max_length_offset=200)
    return Foreign(settings, state, tokenizer, search)


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """model.pt with arguments, dict.source.txt, dict.target.txt, and codes."""
    files.write_folder(path, foreign, config)


def _completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With fairseq's defaults, of which some of the decoder's are the encoder's."""
    args = {**DEFAULTS, **{k: x for k, x in settings.items() if x is not None}}
    for name in ("embed_dim", "ffn_embed_dim"):
        args.setdefault(f"decoder_{name}", args[f"encoder_{name}"])
    for name in ("decoder_input_dim", "decoder_output_dim"):
        args.setdefault(name, args["decoder_embed_dim"])
    if args["share_all_embeddings"]:
        args["share_decoder_input_output_embed"] = True
    return args


def _unlike(args: Mapping[str, Any]) -> list[str]:
    """What these arguments ask for that we have not, as a list of words."""
    found = [
        f"{name} is {args[name]!r}, and must be off"
        for name in MUST_BE_OFF
        if args.get(name)
    ]
    for name in SIDES:
        one, other = args[f"encoder_{name}"], args[f"decoder_{name}"]
        if one != other:
            found.append(f"encoder_{name} is {one!r}, but decoder_{name} is {other!r}")
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if args[name] != args["decoder_embed_dim"]:
            found.append(f"{name} is not decoder_embed_dim")
    lengths = {args["max_source_positions"], args["max_target_positions"]}
    if args["encoder_learned_pos"] and len(lengths) > 1:
        found.append("max_source_positions is not max_target_positions")
    if len(set(_has_final_norms(args))) > 1:
        found.append("of encoder and decoder only one has a final norm")
    if args["activation_fn"] not in EXPRESSIBLE["activation"]:
        found.append(f"activation_fn is {args['activation_fn']!r}")
    if args["task"] != "translation":
        found.append(f"task is {args['task']!r}, and must be 'translation'")
    arch = str(args["arch"])
    if not arch.startswith("transformer") or arch.startswith(
        ("transformer_lm", "transformer_from_pretrained")
    ):
        found.append(f"arch is {arch!r}, and must be one of transformer's")
    known = {
        f"{side}_{n}" for side in ("encoder", "decoder") for n in SIDES + NO_MATTER
    }
    for name, value in args.items():
        # Whatever else there is about the stacks could change what they compute.
        if name.startswith(("encoder_", "decoder_")) and value and name not in known:
            found.append(f"{name} is {value!r}, which is not known here")
    return found


def _has_final_norms(args: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether encoder and decoder end with a norm."""
    encoder = args["encoder_normalize_before"] and args["encoder_version"] >= 2
    decoder = (
        args["decoder_normalize_before"]
        and args["decoder_version"] >= 3
        and not args["no_decoder_final_norm"]
    )
    return bool(encoder), bool(decoder)


def _lacks_final_norm(config: ModelConfig) -> bool:
    return config.norm_position == "pre" and not config.has_final_norm


def _layer(side: str) -> list[Row]:
    ours, theirs = f"{side}/layer_{{i}}", f"{side}.layers.{{i}}"
    rows: list[Row] = []
    blocks = {"self_attention": "self_attn", "cross_attention": "encoder_attn"}
    for our_name, name in blocks.items():
        if side == "encoder" and our_name == "cross_attention":
            continue
        projections = (f"{theirs}.{name}.{p}_proj" for p in ("q", "k", "v", "out"))
        rows += attention(f"{ours}/{our_name}", *projections, bias=True)
        rows += norm(f"{ours}/{our_name}_norm", f"{theirs}.{name}_layer_norm")
    rows += dense(f"{ours}/feed_forward/up", f"{theirs}.fc1")
    rows += dense(f"{ours}/feed_forward/down", f"{theirs}.fc2")
    return rows + norm(f"{ours}/feed_forward_norm", f"{theirs}.final_layer_norm")


def _positions(config: ModelConfig, side: str) -> list[Row]:
    """A learned table; or a buffer without meaning, and in old files the sinusoids."""
    theirs = f"{side}.embed_positions"
    if config.positions == "learned":
        ours = {"encoder": "source_positions", "decoder": "target_positions"}[side]
        return [Rule(f"{ours}/embedding", f"{theirs}.weight")]

    def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
        made = sinusoidal_table(shape[0] if shape else 0, config.d_model, "halves")
        made[PAD_ID : PAD_ID + 1] = 0.0
        return made

    return [
        Derived(f"{theirs}._float_tensor", np.zeros, (1,), tolerance=None),
        Derived(f"{theirs}.weights", sinusoids, optional=True, tolerance=FLOAT32_ERROR),
    ]


def _version(side: str, number: float) -> Derived:
    def make(shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, number, np.float32)

    return Derived(f"{side}.version", make, (1,))
