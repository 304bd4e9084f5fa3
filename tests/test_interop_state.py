"""State dicts in memory: of any library's arrays, of any age, with or without sizes."""

from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.interop.library import (
    LIBRARIES,
    export_state,
    import_state,
)
from transformer_jax.testing import tiny_model

TORCH = {"final_norm": True, "output_bias": True}
NO_BIAS = dict.fromkeys(("attention_bias", "feed_forward_bias", "norm_bias"), False)
ANNOTATED = {
    "norm_position": "pre",
    "norm": "std",
    "norm_eps": 1e-6,
    "output_bias": True,
}


def exported(kind: str, **ours: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Parameters of a toy model, and its settings and state dict in a library."""
    model, params = tiny_model(**ours)
    return params, *export_state(kind, model.config, params)


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types_whose_numbers_are_all_kept_are_taken(dtype):
    _, settings, state = exported("torch", **TORCH)
    halves = {name: jax.numpy.float16(x) for name, x in state.items()}  # jax's arrays
    if dtype == "bfloat16":
        halves = {name: jax.numpy.bfloat16(x) for name, x in state.items()}
    if dtype == "float64":
        halves = {name: x.astype(np.float64) for name, x in state.items()}
    _, params = import_state("torch", halves, settings)
    block = params["encoder"]["layer_1"]["feed_forward"]["up"]["kernel"]
    assert block.dtype == np.float32
    there = np.asarray(halves["transformer.encoder.layers.1.linear1.weight"])
    np.testing.assert_array_equal(block.T, there.astype(np.float32))


@pytest.mark.parametrize(
    ("state", "settings", "message"),
    [
        ([np.zeros(3)], {}, "The weights are a list, but .* arrays by name"),
        ({3: np.zeros(3)}, {}, "The weights have 3 among their names"),
        ({}, ["nhead"], "The settings are a list, but .* one JSON object"),
    ],
)
@pytest.mark.parametrize("kind", LIBRARIES)
def test_what_is_no_state_dict_is_refused(kind, state, settings, message):
    with pytest.raises(ValueError, match=message):
        import_state(kind, state, settings)


@pytest.mark.parametrize(
    ("kind", "ours", "given"),
    [
        ("torch", {**TORCH, "num_encoder_layers": 1}, {"nhead": 2}),
        ("torch", {**NO_BIAS, "final_norm": False}, {"nhead": 2}),
        ("annotated", ANNOTATED, {"h": 2}),
    ],
)
def test_sizes_are_read_from_the_weights(kind, ours, given):
    params, _, state = exported(kind, tied_embeddings="none", **ours)
    _, again = import_state(kind, state, given)
    assert_same_bits(again, params)


@pytest.mark.parametrize(
    ("kind", "ours", "given", "copies"),
    [
        ("torch", TORCH, {"nhead": 2}, ("src_tok_emb.embedding", "generator")),
        ("annotated", ANNOTATED, {"h": 2}, ("tgt_embed.0.lut", "generator.proj")),
    ],
)
def test_tied_tables_may_be_there_once(kind, ours, given, copies):
    params, _, state = exported(kind, **ours)
    config, again = import_state(kind, state, given)
    assert config.tied_embeddings == "all"
    assert_same_bits(again, params)
    for copy in copies:
        del state[f"{copy}.weight"]
    _, again = import_state(kind, state, {**given, "tied_embeddings": "all"})
    assert_same_bits(again, params)


def test_arrays_of_opennmts_module_lack_the_start_of_their_names():
    ours = {"norm_position": "pre", "norm_eps": 1e-6, "source_eos": False}
    params, settings, state = exported("opennmt", **ours)
    bare = {name.removeprefix("model."): x for name, x in state.items()}
    for size in ("source_vocab_size", "target_vocab_size"):
        del settings[size]
    _, again = import_state("opennmt", bare, settings)
    assert again.pop("output")["bias"].tolist() == [0.0] * 24  # which it always has
    assert_same_bits(again, params)
    with pytest.raises(ValueError, match="both with and without 'model"):
        import_state("opennmt", {**bare, **state}, settings)


def test_arrays_of_an_older_fairseq_are_known_by_their_names_of_now():
    ours = {"sinusoid_layout": "halves", "position_offset": 2, "decoder_start": "eos"}
    params, settings, state = exported("fairseq", **ours)
    block = "encoder.layers.0.self_attn"
    for kind in ("weight", "bias"):
        parts = [state.pop(f"{block}.{name}_proj.{kind}") for name in "qkv"]
        state[f"{block}.in_proj_{kind}"] = np.concatenate(parts)
    del state["decoder.output_projection.weight"]  # which is tied
    _, again = import_state("fairseq", state, settings)
    assert_same_bits(again, params)
    with pytest.raises(ValueError, match=r"have no encoder\.embed_tokens\.weight"):
        import_state("fairseq", {}, settings)
