"""Marian folders that are damaged, or ask for what we lack: one clear message each."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from test_interop_marian import change, write_folder

from transformer_jax.__main__ import main
from transformer_jax.interop import marian
from transformer_jax.interop.library import export_state, import_state
from transformer_jax.testing import tiny_model

DAMAGES: dict[str, tuple[str, Any, str]] = {
    "config_is_a_list": ("config.json", [], "config.json holds a JSON list"),
    "generation_is_a_list": ("generation_config.json", [1], "holds a JSON list"),
    "vocab_is_a_list": ("vocab.json", ["</s>"], "vocab.json holds a JSON list"),
    "number_is_text": ("vocab.json", {"<unk>": "1"}, "as '1', which is no whole"),
    "number_is_too_large": ("vocab.json", {"<unk>": 10**9}, "do not belong together"),
    "two_with_one_number": ("vocab.json", {"<unk>": 0}, "the number 0 to both"),
    "end_is_another": (
        "generation_config.json",
        {"eos_token_id": 5},
        "eos_token_id is 0 there and 5 here",
    ),
    "pad_is_null": ("config.json", {"pad_token_id": None}, "pad_token_id is None"),
    "start_is_null": (
        "config.json",
        {"decoder_start_token_id": None},
        "decoder_start_token_id is None, and must be a whole number",
    ),
    "width_is_text": ("config.json", {"d_model": "16"}, "d_model is '16', and must"),
    "switch_is_text": ("config.json", {"scale_embedding": "no"}, "must be true or fal"),
    "starts_differ": (
        "generation_config.json",
        {"decoder_start_token_id": 0},
        "decoder_start_token_id is .* there and 0 here",
    ),
    "bans_words": (
        "generation_config.json",
        {"bad_words_ids": [[7], [8, 9]]},
        r"bans \[\[7\], \[8, 9\]\]",
    ),
    "bans_nonsense": (
        "generation_config.json",
        {"bad_words_ids": "pad"},
        "must be a list of lists of ids",
    ),
    "rewards_are_negative": (
        "generation_config.json",
        {"length_penalty": -1.0},
        "length_penalty is -1.0, and must be",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_settings_are_one_clear_error(tmp_path, name, capsys):
    file, value, message = DAMAGES[name]
    write_folder(tmp_path / "hf")
    if isinstance(value, dict):
        change(tmp_path / "hf" / file, **value)
    else:
        (tmp_path / "hf" / file).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        marian.read(tmp_path / "hf")


@pytest.mark.parametrize("symbol", ["<unk>", "</s>", "<pad>"])
def test_vocabularies_without_a_special_symbol_are_refused(tmp_path, symbol):
    write_folder(tmp_path / "hf")
    vocab = tmp_path / "hf" / "vocab.json"
    numbers = json.loads(vocab.read_text("utf-8"))
    del numbers[symbol]
    vocab.write_text(json.dumps(numbers))
    with pytest.raises(ValueError, match=f"{symbol} the number null"):
        marian.read(tmp_path / "hf")


def test_a_vocabulary_must_number_the_end_as_the_settings_do(tmp_path):
    write_folder(tmp_path / "hf")
    vocab = tmp_path / "hf" / "vocab.json"
    numbers = json.loads(vocab.read_text("utf-8"))
    numbers |= {"</s>": numbers["<unk>"], "<unk>": numbers["</s>"]}
    vocab.write_text(json.dumps(numbers))
    with pytest.raises(ValueError, match=r"</s> the number 1, and config.json says 0"):
        marian.read(tmp_path / "hf")


@pytest.mark.parametrize("side", ["source", "target"])
def test_damaged_sentencepiece_models_are_named(tmp_path, side):
    write_folder(tmp_path / "hf")
    file = tmp_path / "hf" / f"{side}.spm"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{side}\.spm is no SentencePiece model"):
        marian.read(tmp_path / "hf")


@pytest.mark.parametrize("shape", [(16,), (8, 12), (2, 8, 16)])
def test_positions_of_another_shape_are_named(shape):
    model, params = tiny_model(
        norm_position="post", sinusoid_layout="halves_paper", output_bias=True
    )
    settings, state = export_state("marian", model.config, params)
    state["model.encoder.embed_positions.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=r"embed_positions.* is not what the setti"):
        import_state("marian", state, settings)


def test_what_generate_would_do_besides_is_said(tmp_path, caplog):
    write_folder(tmp_path / "hf")
    asked = {"no_repeat_ngram_size": 3, "do_sample": True, "early_stopping": True}
    change(tmp_path / "hf" / "generation_config.json", **asked)
    with caplog.at_level(logging.WARNING):
        marian.read(tmp_path / "hf")
    assert "no_repeat_ngram_size = 3" in caplog.text
    assert "do_sample = True" in caplog.text
    assert "early_stopping" not in caplog.text


def test_ids_that_only_generate_is_told_are_taken_from_there(tmp_path):
    write_folder(tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    there = json.loads(file.read_text())
    del there["decoder_start_token_id"]
    file.write_text(json.dumps(there))
    found = marian.read(tmp_path / "hf")
    assert marian.model_config(found.settings).decoder_start == "pad"


def test_damaged_folders_are_named(tmp_path, capsys):
    write_folder(tmp_path / "hf")
    words = ["import", "--from", "marian", str(tmp_path / "hf")]
    words += ["--output", str(tmp_path / "run")]
    vocab = tmp_path / "hf" / "vocab.json"
    text = vocab.read_text()
    vocab.write_text(text[:-9])
    assert main(words) == 1
    assert "vocab.json is not valid JSON" in capsys.readouterr().err
    vocab.unlink()
    assert main(words) == 1
    assert "has none of vocab.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
