"""`transformer-jax attention`: three pictures, of the whole model or a part of it."""

import re
from typing import Any

import pytest

from transformer_jax.__main__ import main
from transformer_jax.analysis import plots
from transformer_jax.config import SearchConfig
from transformer_jax.testing import tiny_model, tiny_tokenizer
from transformer_jax.translation.translator import Translator

PICTURES = ["cross.png", "decoder_self.png", "encoder_self.png"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the verb on a model without training, with 3+2 layers of 4 heads."""
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        num_encoder_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
    )
    translator = Translator(model, params, tokenizer, SearchConfig(method="greedy"))
    monkeypatch.setattr(Translator, "load", lambda *_, **__: translator)

    def run_verb(*words: str) -> int:
        places = ["--checkpoint", "run", "--output", str(tmp_path / "pictures")]
        return main(["attention", *places, *words])

    return run_verb


def drawn(monkeypatch) -> list[dict[str, Any]]:
    """What is handed to `plot_attention` from now on."""
    calls = []

    def note(weights, rows, columns, output, **rest):
        calls.append({"shape": weights.shape, "rows": rows, "columns": columns, **rest})

    monkeypatch.setattr(plots, "plot_attention", note)
    return calls


def test_three_pictures_of_the_models_own_translation(run, tmp_path, capsys):
    assert run("--sentence", "ein Bier") == 0
    folder = tmp_path / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == PICTURES
    printed = capsys.readouterr().out
    assert "translation" in printed
    assert all(str(folder / name) in printed for name in PICTURES)


def test_a_given_translation_labels_the_axes(run, monkeypatch):
    calls = drawn(monkeypatch)
    assert run("--sentence", "ein Bier", "--translation", "a beer") == 0
    encoder, decoder, cross = calls
    assert encoder["rows"] == encoder["columns"] == cross["columns"]
    assert decoder["rows"] == decoder["columns"] == ["<s>", *cross["rows"][:-1]]
    assert "".join(cross["rows"]).replace("·", "") == "abeer</s>"
    assert encoder["shape"][:2] == (3, 4)
    assert cross["shape"][:2] == (2, 4)


def test_one_layer_and_one_head(run, monkeypatch):
    calls = drawn(monkeypatch)
    words = ["--sentence", "ein Bier", "--translation", "a beer"]
    assert run(*words, "--layer", "1", "--head", "3") == 0
    assert {call["shape"][:2] for call in calls} == {(1, 1)}
    assert {(*call["layers"], *call["heads"]) for call in calls} == {(1, 3)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "2"], "--layer is 2, but the decoder self-attention .* 2 layers"),
        (["--head", "4"], "--head is 4, .* from 0 to 3"),
        (["--head", "-1"], "--head is -1"),
    ],
)
def test_a_layer_or_head_that_is_not_there(run, tmp_path, capsys, words, message):
    rest = ["--sentence", "ein Bier", "--translation", "a beer"]
    assert run(*rest, *words) == 1
    assert "error:" in (error := capsys.readouterr().err)
    assert re.search(message, error)
    assert not (tmp_path / "pictures").exists()


def test_an_empty_sentence(run, capsys):
    assert run("--sentence", " ") == 1
    assert "--sentence is empty" in capsys.readouterr().err
