"""Imported runs translate, and exported ones are the files that were imported."""

import json
from typing import Any

import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.data.vocabulary_tokenizer import numbers_tokenizer
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
    library,
)
from transformer_jax.interop.vocabularies import described
from transformer_jax.testing import TINY_VOCAB_SIZE, tiny_model, tiny_tokenizer
from transformer_jax.translation.translator import Translator

SPECIAL = {"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3}
SYMBOLS = ["<unk>", "<pad>", "<bos>", "<eos>", "ein", "Bier", "a", "beer"]


def bare_folder(folder, model, settings, state):
    """Weights and settings only."""
    write_folder(folder, Foreign(settings, state, tiny_numbers()), model.config)
    for side in ("source", "target"):
        (folder / f"{side}_vocab.json").unlink()


def tiny_numbers():
    """Text as ids, for a model as large as toy models are."""
    return numbers_tokenizer(TINY_VOCAB_SIZE, TINY_VOCAB_SIZE, **SPECIAL)


def write_tiny(kind, folder, tokenizer):
    """A toy model of a library that keeps its settings in config.json."""
    settings: dict[str, Any] = {
        "final_norm": True,
        "output_bias": True,
        "source_bos": True,
    }
    if kind == "annotated":
        settings |= {"norm": "std", "norm_eps": 1e-6, "norm_position": "pre"}
    model, params = tiny_model(**settings)
    there, state = export_state(kind, model.config, params)
    library(kind).write(folder, Foreign(there, state, tokenizer), model.config)


@pytest.fixture
def folder(tmp_path):
    """A toy model as such a library's user would keep it: weights and settings."""
    model, params = tiny_model(
        final_norm=True, output_bias=True, tied_embeddings="none", source_bos=True
    )
    settings, state = export_state("torch", model.config, params)
    made = tmp_path / "theirs"
    made.mkdir()
    bare_folder(made, model, settings, state)
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


@pytest.mark.parametrize("tuned", [False, True])
def test_what_our_settings_do_not_say_comes_back(folder, tmp_path, tuned):
    """A table of positions of its own length and axes; settings that change nothing."""
    state = read_tensors(folder / "model.safetensors")
    table = state[theirs.SINUSOIDS][:128].transpose(1, 0, 2)
    state[theirs.SINUSOIDS] = np.ascontiguousarray(table)
    write_tensors(folder / "model.safetensors", state)
    given = {"nhead": 2, "batch_first": True, **SPECIAL}
    (folder / "config.json").write_text(json.dumps(given))
    run = tmp_path / "run"
    import_run("torch", folder, run)
    if tuned:
        imported, run = CheckpointStore(run), tmp_path / "tuned"
        store = CheckpointStore(run)
        config = json.loads(imported.config_json())
        config["model"]["dropout"] = 0.3
        origin = {"run": "run", "step": 0, "origin": imported.origin()}
        store.write_run(json.dumps(config), imported.tokenizer_files(), origin=origin)
        store.save(7, {"params": imported.restore_params()})
    export_run("torch", run, tmp_path / "back")
    back = read_tensors(tmp_path / "back" / "model.safetensors")
    assert back[theirs.SINUSOIDS].shape == (1, 128, 16)
    for name, array in state.items():
        assert array.tobytes() == back[name].tobytes()
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    assert settings.items() >= {"batch_first": True, "maxlen": 128}.items()
    assert settings["dropout"] == (0.3 if tuned else 0.1)


def test_a_refused_export_leaves_nothing_behind(folder, tmp_path):
    import_run("torch", folder, tmp_path / "run")
    before = sorted(tmp_path.iterdir())
    for kind in ("marian", "joeynmt"):
        with pytest.raises(ValueError, match="without changing what it computes"):
            export_run(kind, tmp_path / "run", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_that_fails_while_it_writes_leaves_nothing_behind(
    folder, tmp_path, monkeypatch
):
    import_run("torch", folder, tmp_path / "run")
    before = sorted(tmp_path.iterdir())

    def fail(path, *_):
        (path / "half").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(theirs, "write", fail)
    with pytest.raises(OSError, match="No space"):
        export_run("torch", tmp_path / "run", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    export_run("torch", tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_imported_run_is_described(folder, tmp_path, capsys):
    import_run("torch", folder, tmp_path / "run")
    assert main(["inspect", "--checkpoint", str(tmp_path / "run")]) == 0
    assert f"torch: {folder}" in capsys.readouterr().out


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


@pytest.mark.parametrize("kind", ["torch", "annotated"])
def test_what_is_given_for_the_source_serves_the_target_too(kind, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_tiny(kind, folder, tiny_numbers())
    for side in ("source", "target"):
        (folder / f"{side}_vocab.json").unlink()
    # The merges of subword-nmt: a b, then ab c at the end of a word.
    (tmp_path / "codes").write_text("#version: 0.2\na b\nab c</w>\n")
    (tmp_path / "v.txt").write_text("\n".join([*SYMBOLS[:4], "abc", "ab@@", "d"]))
    given = Options(source_vocab=tmp_path / "v.txt", source_codes=tmp_path / "codes")
    tokenizer = library(kind).read(folder, given).tokenizer
    assert tokenizer.encode_source("abc abd") == [4, 5, 6]
    assert tokenizer.encode_target("abc abd") == [4, 5, 6]
    (folder / "target_vocab.json").write_text(json.dumps([*SYMBOLS[:4], "d", "abc"]))
    (folder / "target.codes").write_text("#version: 0.2\nx y\n")
    (folder / "source_vocab.json").write_text(json.dumps(SYMBOLS))
    only_target = Options(target_codes=tmp_path / "codes")
    tokenizer = library(kind).read(folder, only_target).tokenizer
    assert tokenizer.encode_source("Bier abc") == [5, 0]
    assert tokenizer.encode_target("abc d") == [5, 4]


@pytest.mark.parametrize("kind", ["torch", "annotated"])
def test_symbols_without_a_row_are_not_exported(kind, tmp_path):
    with pytest.raises(ValueError, match=r"source .* 100 symbols, but the model 24"):
        write_tiny(kind, tmp_path, tiny_tokenizer())
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\x0b\xff\xff", "codes is no SentencePiece model, or a damaged one"),
        (b"#version: 0.2\na b\na b c\n", "codes, line 3 is 'a b c', but two symbols"),
        (b"a b 3\na b\n", "codes, line 2 is 'a b', but two symbols"),
        (b"<html>\n", "codes, line 1 is '<html>', but two symbols"),
        (b"a \xff\n", "codes is not UTF-8 text"),
        (b"", "codes is empty"),
    ],
)
def test_what_does_not_split_words_is_refused(folder, tmp_path, content, message):
    (folder / "source_vocab.json").write_text(json.dumps(SYMBOLS))
    (tmp_path / "codes").write_bytes(content)
    vocab, codes = folder / "source_vocab.json", tmp_path / "codes"
    with pytest.raises(FileError, match=message):
        theirs.read(folder, Options(source_vocab=vocab, source_codes=codes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "must hold one list of symbols, but holds a dict of 1"),
        ("[1, 2]", "must hold one list of symbols"),
    ],
)
def test_symbols_that_are_no_list_are_refused(folder, content, message):
    (folder / "source_vocab.json").write_text(content)
    with pytest.raises(FileError, match=message):
        theirs.read(folder, Options(target_vocab=folder / "source_vocab.json"))


def test_a_tokenizer_is_described():
    joint, both = tiny_tokenizer(), tiny_tokenizer(joint=False, vocab_size=60)
    assert described(joint) == "SentencePiece, 100 pieces, shared"
    assert described(both) == (
        "source: SentencePiece, 60 pieces; target: SentencePiece, 60 pieces"
    )
    assert described(tiny_numbers()).startswith("none, so that text is token ids")


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
    bare_folder(tmp_path, model, settings, state)
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
    with pytest.raises(FileError, match=r"must hold names with values .* a list of 0"):
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
    with pytest.raises(ValueError, match="source vocabulary is missing"):
        theirs.read(folder, Options(target_vocab=vocab))
    with pytest.raises(ValueError, match=r"source .* 72 symbols, but the model 24"):
        theirs.read(folder, Options(source_vocab=vocab))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"has none of model\.safetensors"):
        theirs.read(folder, NO_OPTIONS)
