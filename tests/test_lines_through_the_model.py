"""N lines in, N lines out, in order, whatever they hold and whoever goes along."""

import os
import select
import sys
import threading

import jax
import pytest

from transformer_jax.__main__ import main
from transformer_jax.config import SearchConfig
from transformer_jax.testing import SENTENCES, tiny_model, tiny_tokenizer
from transformer_jax.translation import translator as module
from transformer_jax.translation.hypotheses import Hypothesis, as_translation
from transformer_jax.translation.translator import Translator

ODD = (
    b"ein Mann\n"
    b"\n"
    b" \t \n"
    b"\x00\x01\x7f\x1b[0m Hund\r\n"
    b"ein\xe2\x80\xa8Mann\xc2\x85das Bier\n"  # U+2028, U+0085
    b"na\xffve \xc3\n"
    + b"Hund " * 10_000
    + b"\n"
    + "🍺 👩‍👩‍👧 ein Bier\n".encode()
    + b"a\rb\n\r\n"
    + "".join(f"{source}\n" for source, _ in SENTENCES).encode()
    + b"das Kind"
)
EMPTY = (1, 2, 9)
"""Lines without words."""
COUNT = 10 + len(SENTENCES) + 1


@pytest.fixture
def translated(monkeypatch, tmp_path, capsys):
    """The verb's output lines for `ODD`, by a toy model on some devices."""
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        num_encoder_layers=1,
        num_decoder_layers=1,
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
    )
    search = SearchConfig(
        beam_size=2, n_best=2, max_length_factor=1.0, max_length_offset=2
    )
    monkeypatch.setattr(module, "MAX_SOURCE_TOKENS", 32)

    def translate(devices: int, *words: str) -> list[list[str]]:
        ours = Translator(
            model, params, tokenizer, search, devices=jax.devices()[:devices]
        )
        monkeypatch.setattr(Translator, "load", lambda *_, **__: ours)
        (tmp_path / "in").write_bytes(ODD)
        places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        words = ("translate", "--checkpoint", "run", *places, "--no-progress", *words)
        assert main(words) == 0
        warned = capsys.readouterr().err
        assert "1 of 19 lines held bytes that are not UTF-8" in warned
        assert "first is line 6" in warned
        assert "more than 32 tokens" in warned
        *lines, rest = (tmp_path / "out").read_bytes().decode().split("\n")
        assert not rest
        return [line.split(" ||| ") for line in lines]

    return translate


def test_every_line_is_answered_in_its_place(translated):
    alone = translated(1, "--batch-size", "1")
    numbers = [
        number for number in range(COUNT) for _ in range(1 + (number not in EMPTY))
    ]
    assert [int(number) for number, _, _ in alone] == numbers
    assert all(not text for number, text, _ in alone if int(number) in EMPTY)
    together = translated(3, "--batch-size", "32")
    for one, other in zip(alone, together, strict=True):
        assert one[:2] == other[:2]
        assert float(one[2]) == pytest.approx(float(other[2]), abs=1e-4)


class Echo:
    """Says every line again."""

    search = SearchConfig()

    def translate(self, lines, **_):
        return [as_translation((self.said(line),), truncated=False) for line in lines]

    def said(self, line: str):
        return Hypothesis(line, 0.0, 0.0, (), ())


def test_early_lines_of_a_pipe_are_printed_before_it_ends(monkeypatch):
    monkeypatch.setattr(Translator, "load", lambda *_, **__: Echo())
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    with open(read_in) as stdin, open(write_out, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        verb = threading.Thread(target=main, args=(["translate", "--checkpoint", "x"],))
        verb.start()
        for line in (b"one\n", b"\n", b"two\n"):
            os.write(write_in, line)
            assert select.select([read_out], [], [], 60)[0]
            assert os.read(read_out, 100) == line
        os.write(write_in, b"three")
        os.close(write_in)
        verb.join()
        assert os.read(read_out, 100) == b"three\n"
    os.close(read_out)
