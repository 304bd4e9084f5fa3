"""Checkpoints of OpenNMT-py, Sockeye and JoeyNMT that are damaged or say too much."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from laid_out import GOLDEN, files_of, golden, import_to, torch, yaml

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.interop.files import read_yaml, write_tensors
from transformer_jax.interop.library import library
from transformer_jax.interop.sockeye_files import config_text

SPOILT = {
    "opennmt": "model.encoder.transformer.0.self_attn.linear_query.weight",
    "sockeye": "encoder.layers.0.self_attention.ff_out.weight",
    "joeynmt": "encoder.layers.0.src_src_att.q_layer.weight",
}
"""A kernel [8, 8] of each library."""


def with_nan(state, key):
    state[key] = state[key].clone()
    state[key][0, 0] = float("nan")


def without(state, key):
    del state[key]


def with_one_row_less(state, key):
    state[key] = state[key][1:].clone()


@pytest.mark.parametrize("kind", sorted(GOLDEN))
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_nan, "{key} holds NaN or infinity"),
        (without, "missing: {key}"),
        (with_one_row_less, "{key} is [7, 8], not [8, 8]"),
    ],
)
def test_a_spoilt_checkpoint_gives_one_clear_error(
    kind, spoil, message, tmp_path, capsys
):
    key = SPOILT[kind]
    path = files_of(kind, tmp_path / "theirs", lambda state: spoil(state, key))
    assert import_to(tmp_path / "run", kind, path) != 0
    said = capsys.readouterr().err
    assert message.format(key=key) in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", sorted(GOLDEN))
def test_a_checkpoint_with_a_program_is_refused(kind, tmp_path, capsys):
    def spoil(state):
        state["model.more"] = Path("anything")

    path = files_of(kind, tmp_path / "theirs", spoil)
    assert import_to(tmp_path / "run", kind, path) != 0
    assert "could run any program" in capsys.readouterr().err


def lay_out_safetensors(folder, stem, states):
    """OpenNMT-py's -save_format safetensors: arrays beside the checkpoint."""
    _, about = golden("opennmt")
    opt = {**about["opt"], "_all_transform": set(about["opt"]["_all_transform"])}
    checkpoint = {"vocab": about["vocab"], "opt": argparse.Namespace(**opt)}
    torch.save(checkpoint, folder / f"{stem}.pt")
    for name, state in states.items():
        arrays = {k.removeprefix("model."): x.numpy() for k, x in state.items()}
        write_tensors(folder / f"{stem}{name}.safetensors", arrays)
    return folder / f"{stem}.pt"


def halves(state):
    keys = sorted(state)
    middle = len(keys) // 2
    return [
        {key: state[key] for key in part} for part in (keys[:middle], keys[middle:])
    ]


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_of_another_step_are_not_read(parts, tmp_path):
    """model_step_4 is also how model_step_40 begins."""
    state, _ = golden("opennmt")
    other = {key: x + 1 for key, x in state.items()}
    numbered = halves(state) if parts == 2 else [state]
    names = [".00", ".01"] if parts == 2 else [""]
    states = dict(zip(names, numbered, strict=True))
    path = lay_out_safetensors(tmp_path, "model_step_4", states)
    lay_out_safetensors(tmp_path, "model_step_40", {"": other})
    lay_out_safetensors(tmp_path, "model_step_4.old", {"": other})
    found = library("opennmt").read(path).state
    assert found.keys() == state.keys()
    for key, x in state.items():
        np.testing.assert_array_equal(found[key], x.numpy(), err_msg=key)


def test_an_array_in_two_files_is_refused(tmp_path):
    state, _ = golden("opennmt")
    path = lay_out_safetensors(tmp_path, "model_step_4", {"": state, ".00": state})
    with pytest.raises(ValueError, match=r"twice, as .* and as .*: remove the other"):
        library("opennmt").read(path)


def test_old_and_new_names_of_one_array_are_refused(tmp_path):
    def spoil(state):
        state["model.encoder.layer_norm.a_2"] = torch.ones(8)

    path = files_of("opennmt", tmp_path / "theirs", spoil)
    with pytest.raises(ValueError, match=r"layer_norm\.weight twice.*layer_norm\.a_2"):
        library("opennmt").read(path)


def damaged(kind, path, change):
    """Changes the file with settings (or the whole checkpoint) of a library."""
    if kind == "opennmt":
        with torch.serialization.safe_globals([argparse.Namespace]):
            whole = torch.load(path, weights_only=True)
        torch.save(change(whole), path)
    elif kind == "joeynmt":
        config = yaml.safe_load((path / "config.yaml").read_text())
        (path / "config.yaml").write_text(yaml.safe_dump(change(config)))
    else:
        config = read_yaml(path / "config")
        (path / "config").write_text(config_text(change(config)))


def put(place, value):
    """A change of nested mappings: the entry at `place` is `value` now."""

    def change(whole):
        *before, last = place.split("/")
        inside = whole
        for name in before:
            inside = inside[name]
        inside[last] = value
        return whole

    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("opennmt", put("opt", "x"), "'opt' in .* must hold names with values"),
        ("opennmt", put("vocab", ["a"]), "'vocab' in .* must hold names with values"),
        ("opennmt", put("vocab/src", {"a": 1}), "'src' in .* one list of symbols"),
        ("opennmt", put("model", ["a"]), "'model' in .* holds no state dict"),
        ("opennmt", put("generator", 3), "'generator' in .* holds no state dict"),
        ("opennmt", lambda whole: [1], "is not a checkpoint of OpenNMT-py"),
        ("sockeye", put("config_encoder", None), "config_encoder is None, and must be"),
        (
            "sockeye",
            put("config_embed_source", 3),
            "config_embed_source is 3, and must",
        ),
        ("sockeye", put("vocab_source_size", "12"), "is '12', and must be a whole"),
        ("sockeye", put("config_data", [1]), "'config_data' .* names with values"),
        ("sockeye", put("config_encoder/num_layers", None), "num_layers is None, and"),
        (
            "sockeye",
            put("config_encoder/act_type", ["relu"]),
            "act_type is a list of 1",
        ),
        (
            "sockeye",
            put("config_embed_target/num_embed", None),
            "num_embed is None, and",
        ),
        (
            "sockeye",
            put("config_data/data_statistics", {"length_ratio_std": "x"}),
            "length_ratio_std is 'x', and must be a number",
        ),
        ("joeynmt", put("model", [1]), "model is a list of 1, and must be names"),
        ("joeynmt", put("model/encoder", None), "encoder is None, and must be names"),
        ("joeynmt", put("model/encoder/embeddings", None), "embeddings is None, and"),
        (
            "joeynmt",
            put("model/encoder/num_layers", "2"),
            "num_layers is '2', and must",
        ),
        ("joeynmt", put("model/decoder/activation", [1]), "activation is a list of 1"),
        ("joeynmt", put("data", None), "data is None, and must be names with values"),
        (
            "joeynmt",
            put("data/src", "de"),
            "src is 'de', and must be names with values",
        ),
        (
            "joeynmt",
            put("data/special_symbols", [1]),
            "'data.special_symbols' must hold",
        ),
        (
            "joeynmt",
            put("data/src/tokenizer_cfg", 3),
            "'tokenizer_cfg' in .* must hold",
        ),
        (
            "joeynmt",
            put("testing", {"beam_size": "5"}),
            "beam_size is '5', and must be",
        ),
    ],
)
def test_damaged_settings_give_one_clear_error(kind, change, message, tmp_path, capsys):
    path = files_of(kind, tmp_path / "theirs")
    damaged(kind, path, change)
    assert import_to(tmp_path / "run", kind, path) != 0
    said = capsys.readouterr().err
    assert re.search(message, said)
    # Errors that nobody foresaw are printed with the name of their class.
    assert not re.search(r"\w+Error", said)
    assert len(said.strip().splitlines()) == 1


def without_entry(name):
    def change(whole):
        del whole[name]
        return whole

    return change


def test_settings_that_are_missing_are_named(tmp_path, capsys):
    path = files_of("sockeye", tmp_path / "theirs")
    damaged("sockeye", path, without_entry("vocab_source_size"))
    assert import_to(tmp_path / "run", "sockeye", path) != 0
    assert "vocab_source_size is missing" in capsys.readouterr().err
    given = tmp_path / "settings.json"
    given.write_text('{"vocab_source_size": 12}')
    settings = ["--settings", str(given)]
    assert import_to(tmp_path / "run", "sockeye", path, *settings) == 0
    given.write_text("[]")
    assert import_to(tmp_path / "run2", "sockeye", path, *settings) != 0
    assert "settings.json must hold names with values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "file", "value"),
    [
        ("sockeye", "params.best", [1]),
        ("sockeye", "params.best", {"a": 3}),
        ("joeynmt", "best.ckpt", {"model_state": [1]}),
    ],
)
def test_weights_that_are_no_state_dict(kind, file, value, tmp_path, capsys):
    path = files_of(kind, tmp_path / "theirs")
    torch.save(value, path / file)
    assert import_to(tmp_path / "run", kind, path) != 0
    assert "holds no state dict (arrays by name)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["a"], "must hold names with values"),
        ({"<pad>": "0"}, "does not number its symbols from 0 without a gap"),
        ({"<pad>": 0, "a": 2}, "does not number its symbols from 0 without a gap"),
        ({"<pad>": 0, "a": 0}, "does not number its symbols from 0 without a gap"),
        ({"<pad>": [0]}, "does not number its symbols from 0 without a gap"),
    ],
)
def test_a_damaged_vocabulary_of_sockeye(content, message, tmp_path, capsys):
    path = files_of("sockeye", tmp_path / "theirs")
    (path / "vocab.src.0.json").write_text(json.dumps(content))
    assert import_to(tmp_path / "run", "sockeye", path) != 0
    said = capsys.readouterr().err
    assert message in said
    assert "vocab.src.0.json" in said


@pytest.mark.parametrize(
    ("kind", "change", "notes"),
    [
        ("sockeye", put("config_embed_source/dropout", 0.0), []),
        (
            "sockeye",
            put("config_embed_source/dropout", 0.1),
            ["config_embed_source.dropout is 0.1, and will be 0.0"],
        ),
        (
            "sockeye",
            put("config_decoder/dropout_act", 0.5),
            ["config_decoder.dropout_act is 0.5, and will be 0.0"],
        ),
        (
            "joeynmt",
            put("model/decoder/embeddings/dropout", 0.7),
            ["decoder.embeddings.dropout is 0.7, and will be 0.0"],
        ),
        (
            "opennmt",
            put("opt/dropout", [0.3, 0.1]),
            ["dropout is [0.3, 0.1], and will be [0.3]"],
        ),
    ],
)
def test_import_says_what_only_training_would_notice(
    kind, change, notes, tmp_path, capsys
):
    path = files_of(kind, tmp_path / "theirs")
    damaged(kind, path, in_namespace(change) if kind == "opennmt" else change)
    assert import_to(tmp_path / "run", kind, path) == 0
    said = capsys.readouterr().out.splitlines()
    start = "only in training: "
    assert [line.removeprefix(start) for line in said if start in line] == notes
    origin = CheckpointStore(tmp_path / "run").origin() or {}
    assert origin["only_in_training"] == notes


def in_namespace(change):
    """A change of the options, which are attributes."""

    def changed(whole):
        opt = vars(whole["opt"])
        return {**whole, "opt": argparse.Namespace(**change({"opt": opt})["opt"])}

    return changed


def test_a_vocabulary_that_would_not_be_read_is_refused(tmp_path, capsys):
    path = files_of("opennmt", tmp_path / "theirs")
    (tmp_path / "v.txt").write_text("a\nb\n")
    given = ["--source-vocab", str(tmp_path / "v.txt")]
    assert import_to(tmp_path / "run", "opennmt", path, *given) != 0
    assert "holds its own vocabulary: leave out" in capsys.readouterr().err


@pytest.mark.parametrize("kind", sorted(GOLDEN))
def test_import_says_which_tokenizer_it_made(kind, tmp_path, capsys):
    path = files_of(kind, tmp_path / "theirs")
    (tmp_path / "codes").write_text("#version: 0.2\na b\n")
    for more, words in (
        ([], "words between white space, 12 symbols, shared"),
        (["--source-codes", str(tmp_path / "codes")], "BPE codes, 12 symbols, shared"),
    ):
        run = tmp_path / f"run{len(more)}"
        assert import_to(run, kind, path, *more) == 0
        assert f"tokenizer: {words}\n" in capsys.readouterr().out
