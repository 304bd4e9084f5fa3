"""Checkpoints of OpenNMT-py, Sockeye and JoeyNMT, as files, through the command line.

The files are laid out as the libraries do; their weights are those of golden files.
"""

import json

import numpy as np
import pytest
from laid_out import GOLDEN, GOLDENS, files_of, golden, import_to, torch

from transformer_jax.__main__ import main
from transformer_jax.interop.files import read_tensors
from transformer_jax.interop.library import Foreign, export_run, export_state, library
from transformer_jax.testing import tiny_model, tiny_tokenizer


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
