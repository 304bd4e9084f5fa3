"""Tables of weights: complete, exact both ways, and plain about what is wrong."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.interop.library import export_state, import_state, library
from transformer_jax.interop.rules import (
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    ROW,
    SAME,
    TRANSPOSE,
    Alias,
    Derived,
    Kind,
    Rule,
    Table,
    TableError,
)
from transformer_jax.testing import tiny_model, tiny_model_config

TORCH = {"final_norm": True, "output_bias": True}
NO_BIAS = dict.fromkeys(("attention_bias", "feed_forward_bias", "norm_bias"), False)
ANNOTATED = {
    "norm_position": "pre",
    "norm": "std",
    "norm_eps": 1e-6,
    "output_bias": True,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch_post": ("torch", TORCH),
    "torch_pre": ("torch", {**TORCH, "norm_position": "pre", "activation": "gelu"}),
    "torch_uneven": ("torch", {**TORCH, "num_encoder_layers": 1, "num_heads": 4}),
    "torch_no_bias": ("torch", {**NO_BIAS, "tied_embeddings": "none"}),
    "torch_learned": (
        "torch",
        {"positions": "learned", "max_positions": 12, "tied_embeddings": "none"},
    ),
    "torch_vocabularies": (
        "torch",
        {**TORCH, "tied_embeddings": "target_output", "source_vocab_size": 31},
    ),
    "torch_source_target": ("torch", {**TORCH, "tied_embeddings": "source_target"}),
    "torch_halves": ("torch", {"sinusoid_layout": "halves", "position_offset": 2}),
    "annotated": ("annotated", {**ANNOTATED, "tied_embeddings": "none"}),
    "annotated_tied": ("annotated", ANNOTATED),
}


toy = functools.cache(lambda name: tiny_model(**MODELS[name][1]))
"""Each model is made once: its shapes have to be traced."""


def exported(name: str) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Kind, settings and state dict of a toy model with random numbers everywhere."""
    kind, (model, params) = MODELS[name][0], toy(name)
    return kind, *export_state(kind, model.config, params)


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_importing_what_was_exported_gives_every_bit_back(name):
    kind, (model, params) = MODELS[name][0], toy(name)
    settings, state = export_state(kind, model.config, params)
    config, again = import_state(kind, state, settings)
    assert_same_bits(again, params)
    assert library(kind).settings_of(config) == settings


@pytest.mark.parametrize("name", MODELS)
def test_exporting_what_was_imported_gives_every_bit_back(name):
    kind, settings, state = exported(name)
    config = library(kind).model_config(settings)
    draw = np.random.default_rng(5)
    table = library(kind).table(config, settings)
    for rule in table.rules():
        shape = state[rule.theirs].shape
        state[rule.theirs] = draw.normal(size=shape).astype(np.float32)
    for row in table.rows:
        if isinstance(row, Alias):
            state[row.theirs] = state[row.of]
    config, params = import_state(kind, state, settings)
    settings_again, again = export_state(kind, config, params)
    assert settings_again == settings
    assert_same_bits(again, state)


@pytest.mark.parametrize("name", MODELS)
def test_every_path_and_every_key_is_used_once(name):
    kind, settings, state = exported(name)
    table = library(kind).table(library(kind).model_config(settings), settings)
    paths = [path for rule in table.rules() for path in rule.parts]
    assert sorted(paths) == sorted(table.shapes())
    keys = [rule.theirs for rule in table.rules()]
    keys += [row.theirs for row in table.rows if not isinstance(row, Rule)]
    assert sorted(keys) == sorted(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], r"Not in exactly one rule: shared_embedding/embedding"),
        (
            lambda rows: [*rows, rows[-1]],
            r"Not in exactly one rule: decoder/final_norm",
        ),
        (
            lambda rows: [*rows, Rule("decoder/extra", "extra")],
            r"Not in exactly one rule: decoder/extra\.",
        ),
        (
            lambda rows: [*rows, Alias("generator.bias", "generator.bias")],
            r"Not in exactly one rule: generator\.bias\.",
        ),
        (
            lambda rows: [*rows, Alias("copy", "nothing")],
            r"Copies of no rule's key: copy\.",
        ),
    ],
)
def test_a_table_with_a_hole_or_a_double_is_refused(change, message):
    kind, settings, state = exported("torch_post")
    config = library(kind).model_config(settings)
    rows = library(kind).table(config, settings).rows
    with pytest.raises(TableError, match=message):
        Table(config, change(rows)).import_params(state)


def without(key: str) -> Callable[[dict], dict]:
    return lambda state: {k: x for k, x in state.items() if k != key}


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    return lambda state: {**state, key: change(state[key].copy())}


def with_one(number: float) -> Callable[[np.ndarray], np.ndarray]:
    """The same in float64, but for one number."""

    def change(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        x.flat[0] = number
        return x

    return change


def with_nan(x: np.ndarray) -> np.ndarray:
    x.flat[-1] = np.nan
    return x


IN_PROJ = "transformer.encoder.layers.1.self_attn.in_proj_weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(IN_PROJ), rf"missing: {IN_PROJ}\."),
        (without("generator.bias"), r"missing: generator\.bias\."),
        (
            lambda state: {**state, "critic.weight": np.zeros(3)},
            r"not known in such a model: critic\.weight\.",
        ),
        (
            changed(IN_PROJ, lambda x: x[:-1]),
            rf"{IN_PROJ} is \[47, 16\], not \[48, 16\]",
        ),
        (changed(IN_PROJ, with_nan), rf"{IN_PROJ} holds NaN or infinity\."),
        (
            changed(IN_PROJ, with_one(0.1)),
            rf"{IN_PROJ} is float64 with numbers that float32 cannot hold exactly",
        ),
        (
            changed(IN_PROJ, with_one(1e300)),
            rf"{IN_PROJ} is float64 with numbers that float32 cannot hold exactly",
        ),
        (
            changed(IN_PROJ, lambda x: x + 0j),
            rf"not of floating-point numbers: {IN_PROJ} \(complex64\)\.",
        ),
        (
            changed(IN_PROJ, lambda x: x.astype(np.int8)),
            rf"not of floating-point numbers: {IN_PROJ} \(int8\)\.",
        ),
        (
            changed(IN_PROJ, lambda x: x > 0),
            rf"not of floating-point numbers: {IN_PROJ} \(bool\)\.",
        ),
        (
            changed("positional_encoding.pos_embedding", lambda x: x.astype(str)),
            r"not of floating-point numbers: positional_encoding\.pos_embedding \(<U",
        ),
        (
            changed("generator.weight", lambda x: x.tolist()),
            r"not arrays: generator\.weight \(list\)\.",
        ),
        (
            changed("generator.weight", lambda x: x + 1),
            r"generator\.weight should be tgt_tok_emb\.\S+ again, but is not",
        ),
        (
            changed("positional_encoding.pos_embedding", lambda x: x[::-1]),
            r"positional_encoding\.pos_embedding is not what the settings make it",
        ),
        (
            changed("positional_encoding.pos_embedding", lambda x: x[:, :, :-1]),
            r"positional_encoding\.pos_embedding is not what the settings make it",
        ),
    ],
)
def test_a_state_that_does_not_fit_gives_one_clear_error(change, message):
    kind, settings, state = exported("torch_post")
    with pytest.raises(TableError, match=rf"The weights do not fit: .*{message}") as it:
        import_state(kind, change(state), settings)
    assert "\n" not in str(it.value)


def test_long_lists_of_wrong_keys_are_cut():
    kind, settings, state = exported("torch_post")
    with pytest.raises(TableError, match=r"and \d+ more\."):
        import_state(kind, {k: state[k] for k in list(state)[:2]}, settings)


def test_parameters_of_another_model_are_not_exported():
    model, params = toy("torch_post")
    others = {name: x for name, x in params.items() if name != "output"}
    with pytest.raises(TableError, match="of another model: output/bias"):
        export_state("torch", model.config, others)


def test_a_fused_array_is_query_key_and_value_one_below_the_other():
    kind, settings, state = exported("torch_post")
    _, params = import_state(kind, state, settings)
    block = params["encoder"]["layer_1"]["self_attention"]
    x = np.random.default_rng(1).normal(size=16).astype(np.float32)
    projected = state[IN_PROJ] @ x
    for place, name in enumerate(("query", "key", "value")):
        ours = np.einsum("DNH,D->NH", block[name]["kernel"], x).ravel()
        theirs = projected[16 * place : 16 * (place + 1)]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def optional_table(model: Any, tolerance: float = 1e-5) -> Table:
    settings = library("torch").settings_of(model.config)
    rows = library("torch").table(model.config, settings).rows
    extra = [
        Alias("again", "generator.bias", optional=True),
        Derived("version", np.ones, (1,), optional=True, tolerance=tolerance),
    ]
    return Table(model.config, [*rows, *extra])


def test_optional_keys_may_be_missing_are_checked_and_not_exported():
    model, params = toy("torch_post")
    table = optional_table(model, tolerance=0.1)
    state = table.export_params(params)
    assert not {"again", "version"} & state.keys()
    table.import_params(state)
    there = {"again": state["generator.bias"], "version": np.full(1, 1.05)}
    table.import_params({**state, **there})
    wrong = {"again": state["generator.bias"] + 1, "version": np.full(1, 1.2)}
    with pytest.raises(TableError, match=r"again should be .*; version is not what"):
        table.import_params({**state, **wrong})


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (SAME, (3, 5)),
        (TRANSPOSE, (3, 5)),
        (HEADS_IN, (6, 5)),
        (HEADS_BIAS, (6,)),
        (HEADS_OUT, (5, 6)),
        (ROW, (1, 5)),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else "",
)
def test_each_kind_of_change_is_undone(kind, shape):
    x = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(kind.to_theirs(kind.to_ours(x, 2), 2), x)


@pytest.mark.parametrize(
    ("kind", "overrides", "named"),
    [
        ("torch", {"gated": True}, "gated is True, and must be False"),
        ("torch", {"norm_bias": False}, "norm_bias is False, and must be True"),
        (
            "torch",
            {"positions": "learned", "position_offset": 2},
            "position_offset is 2, and must be 0",
        ),
        ("annotated", {}, "norm_position is 'post', and must be 'pre'"),
        (
            "annotated",
            {**ANNOTATED, "num_encoder_layers": 1},
            "num_decoder_layers is 2, and must be 1",
        ),
    ],
)
def test_what_a_library_cannot_express_is_refused(kind, overrides, named):
    with pytest.raises(ValueError, match=f"without changing what it computes.*{named}"):
        library(kind).settings_of(tiny_model_config(**overrides))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 2}, r"no setting n_head\. Did you mean nhead\?"),
        ({"activation": "tanh"}, r"activation is 'tanh': it must be"),
        ({"nhead": None}, r"nhead is None: it must be"),
        ({"position_offset": 2, "positions": "learned"}, "position_offset must be 0"),
    ],
)
def test_settings_are_checked(change, message):
    kind, settings, _ = exported("torch_post")
    with pytest.raises(ValueError, match=message):
        library(kind).model_config({**settings, **change})


def test_settings_that_are_missing_are_named():
    kind, settings, _ = exported("torch_post")
    del settings["nhead"]
    with pytest.raises(ValueError, match=r"^nhead is missing: it must be given\.$"):
        library(kind).model_config(settings)
