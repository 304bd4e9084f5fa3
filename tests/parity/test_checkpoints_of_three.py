"""Checkpoints of OpenNMT-py, Sockeye and JoeyNMT, as files, through the command line.

The files are laid out as the libraries do; their weights are those of golden files.
"""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.interop.files import read_tensors
from transformer_jax.interop.library import Foreign, export_run, export_state, library
from transformer_jax.models.embeddings import sinusoidal_table
from transformer_jax.testing import tiny_model, tiny_tokenizer

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = {
    "opennmt": "opennmt_shared",
    "sockeye": "sockeye_pre_shared",
    "joeynmt": "joeynmt_pre_tied",
}
SPOILT = {
    "opennmt": "model.encoder.transformer.0.self_attn.linear_query.weight",
    "sockeye": "encoder.layers.0.self_attention.ff_out.weight",
    "joeynmt": "encoder.layers.0.src_src_att.q_layer.weight",
}
"""A kernel [8, 8] of each library."""


def golden(kind):
    """Tensors with whole sinusoid tables, and what else the golden file says."""
    name = GOLDEN[kind]
    arrays = read_tensors(GOLDENS / f"{name}.safetensors")
    about = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    state = OrderedDict(
        (key.removeprefix("state/"), torch.from_numpy(array))
        for key, array in arrays.items()
        if key.startswith("state/")
    )
    for key, shape in about.get("cut_tables", {}).items():
        whole = sinusoidal_table(5000, shape[-1]).reshape(shape)
        state[key] = torch.from_numpy(whole)
    return state, about


def lay_out_opennmt(folder, state, about):
    def part(start):
        return OrderedDict(
            (key.removeprefix(start), x)
            for key, x in state.items()
            if key.startswith(start)
        )

    opt = {**about["opt"], "_all_transform": set(about["opt"]["_all_transform"])}
    checkpoint = {
        "model": part("model."),
        "generator": part("generator."),
        "vocab": about["vocab"],
        "opt": argparse.Namespace(**opt),
        "optim": {"training_step": 4, "decay_step": 5, "optimizer": {"state": {}}},
    }
    torch.save(checkpoint, folder / "model_step_4.pt")
    return folder / "model_step_4.pt"


def lay_out_sockeye(folder, state, about):
    torch.save(state, folder / "params.00001")
    (folder / "params.best").symlink_to("params.00001")
    for name in ("config", "vocab.src.0.json", "vocab.trg.0.json", "version"):
        (folder / name).write_text(about[name], encoding="utf-8")
    return folder


def lay_out_joeynmt(folder, state, about):
    checkpoint = {
        "model_state": state,
        "optimizer_state": {"state": {}, "param_groups": []},
        "train_iter_state": torch.zeros(4, dtype=torch.uint8),
    }
    torch.save(checkpoint, folder / "5.ckpt")
    (folder / "best.ckpt").symlink_to("5.ckpt")
    text = yaml.safe_dump(about["config"])
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    for name in ("src_vocab.txt", "trg_vocab.txt"):
        text = "".join(f"{line}\n" for line in about[name])
        (folder / name).write_text(text, encoding="utf-8")
    return folder


LAY_OUT = {
    "opennmt": lay_out_opennmt,
    "sockeye": lay_out_sockeye,
    "joeynmt": lay_out_joeynmt,
}


def files_of(kind, folder, spoil=lambda state: None):
    """Where `import` finds a model that was written as the library does."""
    folder.mkdir()
    state, about = golden(kind)
    spoil(state)
    return LAY_OUT[kind](folder, state, {"version": "3.1.34", **about})


def import_to(output, kind, path, *more):
    return main(["import", str(path), "--from", kind, "--output", str(output), *more])


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def imported(request, tmp_path_factory):
    """A library, the files of a model of its, and the run made from them."""
    folder = tmp_path_factory.mktemp(request.param)
    path = files_of(request.param, folder / "theirs")
    assert import_to(folder / "run", request.param, path) == 0
    return request.param, path, folder / "run"


def log_probabilities(kind):
    """Of the golden file's targets, from the logits that the library computed."""
    arrays = read_tensors(GOLDENS / f"{GOLDEN[kind]}.safetensors")
    _, about = golden(kind)
    eos, pad = about["ids"]["eos"], about["ids"]["pad"]
    wide = torch.from_numpy(arrays["logits"]).double().log_softmax(dim=-1)
    for row, fed in zip(wide, arrays["decoder_inputs"], strict=True):
        words = [i for i in fed[1:] if i not in (eos, pad)]
        yield sum(float(row[place, i]) for place, i in enumerate([*words, eos]))


def test_a_checkpoint_is_imported_translated_and_scored(imported, tmp_path):
    kind, _, run = imported
    # The sentences of the golden files; z is in no vocabulary.
    (tmp_path / "source").write_text("a b c d e\nf\ng a z\n", encoding="utf-8")
    (tmp_path / "target").write_text("b c\nd e f g a\nc z b\n", encoding="utf-8")
    found, scores = tmp_path / "found", tmp_path / "scores"
    checkpoint = ["--checkpoint", str(run)]
    files = ["--input", str(tmp_path / "source"), "--output", str(found)]
    assert main(["translate", *checkpoint, *files]) == 0
    words = found.read_text(encoding="utf-8").split()
    assert set(words) <= {*"abcdefgh", "<unk>"}
    assert words
    pair = ["--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")]
    assert main(["score", *checkpoint, *pair, "--output", str(scores)]) == 0
    lines = scores.read_text(encoding="utf-8").splitlines()
    np.testing.assert_allclose(
        [json.loads(line)["log_probability"] for line in lines],
        list(log_probabilities(kind)),
        atol=1e-4,
    )


def test_every_bit_comes_back_through_files(imported, tmp_path):
    kind, path, run = imported
    first = library(kind).read(path)
    export_run(kind, run, tmp_path / "out")
    again = library(kind).read(tmp_path / "out")
    assert again.tokenizer.files() == first.tokenizer.files()
    assert again.state.keys() == first.state.keys()
    for key, array in first.state.items():
        if "pe.pe" in key or "pos_embedding" in key:
            same = tuple(map(slice, array.shape))
            np.testing.assert_allclose(again.state[key][same], array, rtol=0, atol=1e-5)
        else:
            assert again.state[key].tobytes() == array.tobytes(), key
    config = library(kind).model_config(first.settings)
    assert library(kind).model_config(again.settings) == config


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


OURS = {
    "opennmt": {"norm_position": "pre", "source_eos": False},
    "sockeye": {
        "norm_eps": 1e-6,
        "attention_bias": False,
        "sinusoid_layout": "halves_paper",
        "output_bias": True,
    },
    "joeynmt": {"norm_eps": 1e-6, "tied_embeddings": "none"},
}
"""Settings of models of ours that a library can express."""
TABLES = {
    "opennmt": ("model.{side}.embeddings.make_embedding.emb_luts.0.weight", 0),
    "sockeye": ("embedding_{direction}.embedding.weight", 0),
    "joeynmt": ("{short}_embed.lut.weight", 1),
}
"""Names of the embedding tables, and the number of padding in each library's files."""


@pytest.mark.parametrize("kind", sorted(OURS))
def test_our_own_run_is_numbered_as_the_library_numbers(kind, tmp_path):
    """Rows of tables and symbols move together."""
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
        **OURS[kind],
    )
    settings, state = export_state(kind, model.config, params)
    library(kind).write(tmp_path, Foreign(settings, state, tokenizer), model.config)
    back = library(kind).read(tmp_path)
    name, pad_id = TABLES[kind]
    sides = (
        ("encoder", "source", "src", "encode_source", "der Mann liest ein Buch"),
        ("decoder", "target", "trg", "encode_target", "the man reads a book"),
    )
    for side, direction, short, encode, text in sides:
        table = name.format(side=side, direction=direction, short=short)
        ours, theirs = (
            getattr(each, encode)(text) for each in (tokenizer, back.tokenizer)
        )
        assert len(ours) == len(theirs) > 1
        np.testing.assert_array_equal(state[table][ours], back.state[table][theirs])
    assert back.tokenizer.decode_target(theirs) == text
    assert back.tokenizer.pad_id == pad_id  # OpenNMT finds it by name, and keeps ours
    config = library(kind).model_config(back.settings)
    assert config.d_model == model.config.d_model
    assert config.tied_embeddings == model.config.tied_embeddings
    library(kind).table(config, back.settings).import_params(back.state)
