"""What `translate`, `evaluate` and `score` refuse, and how they warn."""

import logging
import subprocess
import sys

import pytest
from test_translate_verb import write

from transformer_jax.__main__ import main
from transformer_jax.config import SearchConfig
from transformer_jax.testing import NumberTokenizer, tiny_model
from transformer_jax.translation.translator import Translator


@pytest.mark.parametrize("verb", ["translate", "evaluate", "score"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "no/out"], "There is no folder no for --output"),
        (["--output", "."], "--output . is a folder"),
        (["--output", "./text"], "--output text is the file that is read"),
        (["--batch-tokens", "-5"], "--batch-tokens is -5: it must be at least 1"),
        (["--batch-tokens", "0"], "--batch-tokens is 0: it must be at least 1"),
    ],
)
def test_mistakes_are_named_before_a_run_is_loaded(
    verb, words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("precious\n")
    files = {
        "translate": ["--input", "text"],
        "evaluate": ["--source", "text", "--reference", "text"],
        "score": ["--source", "text", "--target", "text"],
    }
    assert main([verb, "--checkpoint", "run", *files[verb], *words]) == 1
    assert f"error: {message}" in capsys.readouterr().err
    assert (tmp_path / "text").read_text() == "precious\n"


def test_text_on_stdin_is_not_overwritten_either(tmp_path):
    text = tmp_path / "text"
    text.write_text("precious\n")
    words = ["translate", "--checkpoint", "run", "--output", str(text)]
    with text.open() as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "transformer_jax", *words],
            stdin=stdin,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "is the file that is read" in done.stderr
    assert text.read_text() == "precious\n"


def test_score_names_the_line_that_is_too_long(tmp_path, monkeypatch, capsys):
    tokenizer = NumberTokenizer()
    model, params = tiny_model(positions="learned", max_positions=8)
    translator = Translator(model, params, tokenizer, SearchConfig())
    monkeypatch.setattr(Translator, "load", lambda *_, **__: translator)
    source = write(tmp_path / "source", "5 6\n5\n")
    target = write(tmp_path / "target", "7\n5 5 5 5 5 5 5 5\n")
    words = ["--checkpoint", "run", "--source", source, "--target", target]
    assert main(["score", *words]) == 1
    lines = capsys.readouterr().err.split("\r")
    assert lines[-1].startswith("error: Line 2 has 9 pieces on a side, but the learned")
    assert not lines[-2].strip()  # the bar is wiped away


def test_every_warning_has_the_same_form(tmp_path, monkeypatch, capsys):
    tokenizer = NumberTokenizer()
    model, params = tiny_model(positions="learned", max_positions=8)
    search = SearchConfig(method="greedy", max_length_offset=1)
    translator = Translator(model, params, tokenizer, search)
    monkeypatch.setattr(Translator, "load", lambda *_, **__: translator)
    monkeypatch.setattr(
        NumberTokenizer, "encode_source", lambda _, text, seed=None: [5] * len(text)
    )
    source = tmp_path / "source"
    source.write_bytes(b"5\n555555555555\n\xff\n")
    words = ["--checkpoint", "run", "--input", str(source), "--no-progress"]
    assert main(["translate", *words]) == 0
    long, damaged = capsys.readouterr().err.splitlines()
    assert long.startswith("warning: 1 of 3 lines have more than 8 tokens")
    assert damaged.startswith("warning: 1 of 3 lines held bytes that are not UTF-8")
    assert logging.getLogger("transformer_jax").propagate  # as it was before
