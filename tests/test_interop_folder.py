"""Imported runs translate, and exported ones are the files that were imported."""

import json

import numpy as np
import pytest

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.interop import torch as theirs
from transformer_jax.interop.files import FileError, read_tensors, write_tensors
from transformer_jax.interop.folder import write_folder
from transformer_jax.interop.library import (
    NO_OPTIONS,
    Foreign,
    Options,
    export_run,
    export_state,
    import_run,
)
from transformer_jax.testing import tiny_model, tiny_tokenizer
from transformer_jax.translation.translator import Translator

SPECIAL = {"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3}
SYMBOLS = ["<unk>", "<pad>", "<bos>", "<eos>", "ein", "Bier", "a", "beer"]


def without_tokenizer(folder):
    for side in ("source", "target"):
        (folder / f"{side}_vocab.json").unlink()
        (folder / f"{side}.codes").unlink()


@pytest.fixture
def folder(tmp_path):
    """A toy model as such a library's user would keep it: weights and settings."""
    model, params = tiny_model(
        final_norm=True, output_bias=True, tied_embeddings="none", source_bos=True
    )
    settings, state = export_state("torch", model.config, params)
    made = tmp_path / "theirs"
    made.mkdir()
    write_folder(made, Foreign(settings, state, tiny_tokenizer()))
    without_tokenizer(made)
    (made / "config.json").write_text(json.dumps({"nhead": 2, **SPECIAL}))
    return made


def test_an_imported_run_translates_and_is_exported_as_it_was(folder, tmp_path):
    import_run("torch", folder, tmp_path / "run")
    assert CheckpointStore(tmp_path / "run").latest_step() == 0
    translator = Translator.load(tmp_path / "run")
    assert translator.model.config.source_bos
    (translation,) = translator.translate(["4 5 6"])
    assert all(word.isdigit() for word in translation.text.split())

    export_run("torch", tmp_path / "run", tmp_path / "back")
    before = read_tensors(folder / "model.safetensors")
    after = read_tensors(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes()
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    assert settings.items() >= {"nhead": 2, "d_model": 16, **SPECIAL}.items()


def test_symbols_are_read_from_text_and_from_json(folder, tmp_path):
    (folder / "source_vocab.json").write_text(json.dumps(SYMBOLS))
    (folder / "target_vocab.json").write_text(json.dumps(SYMBOLS))
    beside = theirs.read(folder, NO_OPTIONS).tokenizer
    (tmp_path / "v.txt").write_text("\n".join(SYMBOLS) + "\n")
    vocabs = Options(source_vocab=tmp_path / "v.txt", target_vocab=tmp_path / "v.txt")
    given = theirs.read(folder, vocabs).tokenizer
    for tokenizer in (beside, given):
        assert tokenizer.encode_source("ein kühles Bier") == [4, 0, 5]
        assert tokenizer.decode_target([2, 6, 7, 3]) == "a beer"


def test_a_sentencepiece_tokenizer_survives(folder, tmp_path):
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        final_norm=True,
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
    )
    settings, state = export_state("torch", model.config, params)
    (tmp_path / "out").mkdir()
    theirs.write(tmp_path / "out", Foreign(settings, state, tokenizer), model.config)
    found = theirs.read(tmp_path / "out", NO_OPTIONS)
    text = "die Frau liest ein Buch"
    ids = tokenizer.encode_source(text)
    assert found.tokenizer.encode_source(text) == ids
    assert found.tokenizer.decode_target(ids) == tokenizer.decode_target(ids)
    assert found.settings["eos_id"] == tokenizer.eos_id == found.tokenizer.eos_id


def test_tied_arrays_that_are_kept_once_are_found(tmp_path):
    model, params = tiny_model(final_norm=True)
    settings, state = export_state("torch", model.config, params)
    for name in ("src_tok_emb.embedding.weight", "generator.weight"):
        del state[name]
    write_folder(tmp_path, Foreign(settings, state, tiny_tokenizer()))
    without_tokenizer(tmp_path)
    found = theirs.read(tmp_path, NO_OPTIONS)
    np.testing.assert_array_equal(
        found.state["generator.weight"], state["tgt_tok_emb.embedding.weight"]
    )


def test_one_learned_table_serves_both_sides(folder):
    state = read_tensors(folder / "model.safetensors")
    state[theirs.SINUSOIDS] = np.random.default_rng(0).normal(size=(9, 1, 16))
    write_tensors(folder / "model.safetensors", state)
    settings = {"nhead": 2, "positions": "learned", **SPECIAL}
    (folder / "config.json").write_text(json.dumps(settings))
    found = theirs.read(folder, NO_OPTIONS)
    assert found.settings["maxlen"] == 9
    for name in theirs.LEARNED.values():
        assert found.state[name].tolist() == state[theirs.SINUSOIDS][:, 0].tolist()


def test_what_is_missing_is_named(folder, tmp_path):
    (folder / "config.json").unlink()
    with pytest.raises(
        FileError, match=r"no config\.json beside the weights.*--settings"
    ):
        theirs.read(folder, NO_OPTIONS)
    (folder / "config.json").write_text("[]")
    with pytest.raises(FileError, match="must hold one JSON object"):
        theirs.read(folder, NO_OPTIONS)
    (folder / "config.json").write_text(json.dumps(SPECIAL))
    with pytest.raises(ValueError, match="nhead is missing"):
        theirs.read(folder, NO_OPTIONS)
    (folder / "config.json").write_text(json.dumps({"nhead": 2}))
    codes = tmp_path / "codes"
    codes.write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match="no list of symbols"):
        theirs.read(folder, Options(source_codes=codes))
    vocab = tmp_path / "v.txt"
    vocab.write_text("\n".join(SYMBOLS * 9))
    (tmp_path / "short.txt").write_text("\n".join(SYMBOLS))
    with pytest.raises(ValueError, match="target vocabulary is missing"):
        theirs.read(folder, Options(source_vocab=tmp_path / "short.txt"))
    with pytest.raises(ValueError, match=r"72 symbols, but the source table .* 24"):
        theirs.read(folder, Options(source_vocab=vocab, target_vocab=vocab))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"has none of model\.safetensors"):
        theirs.read(folder, NO_OPTIONS)
