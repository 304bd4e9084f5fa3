"""A setting that changes what a model computes is carried over, or refused by name."""

import dataclasses
from typing import Any

import pytest

from transformer_jax.config import ModelConfig
from transformer_jax.interop.library import library

SIZES: dict[str, Any] = {
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "d_model": 16,
    "d_ff": 24,
    "num_heads": 2,
    "source_vocab_size": 40,
    "target_vocab_size": 40,
}
EXPORTABLE: dict[str, dict[str, Any]] = {
    "marian": {"sinusoid_layout": "halves_paper", "decoder_start": "pad"},
    "torch": {"final_norm": True, "source_bos": True, "output_bias": True},
    "annotated": {
        "norm": "std",
        "norm_eps": 1e-6,
        "norm_position": "pre",
        "source_bos": True,
        "output_bias": True,
        "tied_embeddings": "none",
    },
    "fairseq": {
        "sinusoid_layout": "halves",
        "position_offset": 2,
        "decoder_start": "eos",
    },
    "opennmt": {
        "norm_position": "pre",
        "norm_eps": 1e-6,
        "output_bias": True,
        "source_eos": False,
    },
    "sockeye": {
        "sinusoid_layout": "halves_paper",
        "norm_eps": 1e-6,
        "attention_bias": False,
        "output_bias": True,
    },
    "joeynmt": {"norm_eps": 1e-6, "final_norm": True, "norm_position": "pre"},
}
CHANGES: tuple[dict[str, Any], ...] = (
    {"num_decoder_layers": 3},
    {"d_ff": 32},
    {"num_heads": 4},
    {"norm_position": "pre"},
    {"norm_position": "post"},
    {"final_norm": True},
    {"final_norm": False},
    {"norm": "std"},
    {"norm": "layer_norm"},
    {"norm_eps": 1e-6},
    {"norm_eps": 1e-5},
    {"activation": "gelu"},
    {"activation": "silu"},
    {"gated": True},
    {"attention_bias": False},
    {"feed_forward_bias": False},
    {"norm_bias": False},
    {"positions": "learned"},
    {"positions": "learned", "position_offset": 2, "max_positions": 66},
    {"sinusoid_layout": "interleaved"},
    {"sinusoid_layout": "halves"},
    {"sinusoid_layout": "halves_paper"},
    {"position_offset": 0},
    {"position_offset": 1},
    {"scale_embeddings": False},
    {"tied_embeddings": "all"},
    {"tied_embeddings": "none"},
    {"tied_embeddings": "target_output"},
    {"tied_embeddings": "source_target"},
    {"output_bias": False},
    {"output_bias": True},
    {"decoder_start": "bos"},
    {"decoder_start": "eos"},
    {"decoder_start": "pad"},
    {"source_bos": True},
    {"source_bos": False},
    {"source_eos": False},
)
ALWAYS_BIASED = ("marian", "opennmt", "sockeye")
"""Their logits have a bias; zeros stand for none."""


def computes(config: ModelConfig) -> dict[str, Any]:
    """The settings that decide what a model computes without dropout."""
    fields = dataclasses.asdict(config)
    for name in ("dropout", "attention_dropout", "activation_dropout", "dtype"):
        del fields[name]
    for name in ("param_dtype", "remat"):
        del fields[name]
    fields["final_norm"] = config.has_final_norm
    if config.positions == "sinusoidal":
        del fields["max_positions"]
    else:
        del fields["sinusoid_layout"]
    return fields


@pytest.mark.parametrize("kind", EXPORTABLE)
def test_there_is_something_to_export(kind):
    config = ModelConfig(**{**SIZES, **EXPORTABLE[kind]})
    there = library(kind)
    again = computes(there.model_config(there.settings_of(config)))
    assert again | {"output_bias": config.output_bias} == computes(config)


def name_of(change: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in change.items())


@pytest.mark.parametrize("change", CHANGES, ids=name_of)
@pytest.mark.parametrize("kind", EXPORTABLE)
def test_a_setting_is_carried_or_refused(kind, change):
    config = ModelConfig(**{**SIZES, **EXPORTABLE[kind], **change})
    there, refusal = library(kind), ""
    try:
        settings = there.settings_of(config)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        # torch has one setting for all biases: it may name the others.
        named = [name for name in (*change, "max_positions", "bias") if name in refusal]
        assert named
        return
    again = computes(there.model_config(settings))
    wanted = computes(config)
    if kind in ALWAYS_BIASED:
        again["output_bias"] = wanted["output_bias"]
    assert again == wanted
