"""Files that go beside the input of `translate`, and flags that become settings."""

import io
import json
import sys

import pytest

from transformer_jax.__main__ import main
from transformer_jax.cli import lines
from transformer_jax.cli.translate import output_lines
from transformer_jax.config import SearchConfig
from transformer_jax.translation.hypotheses import Translation
from transformer_jax.translation.translator import Translator


class Echo:
    """Gives prefixes back as translations, and notes how it was asked."""

    search = SearchConfig(beam_size=5)

    def __init__(self):
        self.calls = []

    def translate(self, lines, *, prefixes, phrases=None, **options):
        options |= {"phrases": phrases}
        self.calls.append((lines, prefixes, options))
        texts = prefixes or lines
        return [Translation(text, 0.0, 0.0, (), (), hypotheses=()) for text in texts]


@pytest.fixture
def echo(monkeypatch, tmp_path):
    echo = Echo()
    monkeypatch.setattr(Translator, "load", lambda *_, **__: echo)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    return echo


def translate(*words: str) -> int:
    return main(["translate", "--checkpoint", "run", "--no-progress", *words])


@pytest.mark.parametrize("stdin", [False, True])
def test_line_n_of_the_prefixes_goes_with_line_n(
    echo, stdin, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(lines, "CHUNK_LINES", 2)
    (tmp_path / "prefixes").write_text("x\r\n\nz")
    words = [] if stdin else ["--input", "in.txt"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\nc\n")))
    assert translate(*words, "--target-prefix", "prefixes") == 0
    assert capsys.readouterr().out == "x\n\nz\n"
    asked = [(lines, prefixes) for lines, prefixes, _ in echo.calls]
    assert asked == [(["a", "b"], ["x", ""]), (["c"], ["z"])]


def test_without_a_file_there_are_no_prefixes(echo):
    assert translate("--input", "in.txt") == 0
    assert echo.calls[0][1] is None
    assert echo.calls[0][2]["phrases"] is None


@pytest.mark.parametrize("stdin", [False, True])
def test_line_n_of_the_phrases_goes_with_line_n(
    echo, stdin, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(lines, "CHUNK_LINES", 2)
    (tmp_path / "phrases").write_text("red car\twine\r\n\n x ")
    (tmp_path / "prefixes").write_text("k\nl\nm")
    words = [] if stdin else ["--input", "in.txt"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\nc\n")))
    words += ["--require", "phrases", "--target-prefix", "prefixes"]
    assert translate(*words) == 0
    assert capsys.readouterr().out == "k\nl\nm\n"
    asked = [options["phrases"] for _, _, options in echo.calls]
    assert asked == [[["red car", "wine"], [""]], [[" x "]]]


def test_other_line_counts_than_the_phrases_are_a_mistake(echo, tmp_path, capsys):
    (tmp_path / "phrases").write_text("x\ny\nz\nx\n")
    assert translate("--input", "in.txt", "--require", "phrases") == 1
    assert "phrases has 4 lines and the input has 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trained", "words"),
    [("greedy", []), ("beam", ["--method", "greedy"]), ("beam", ["--top-k", "5"])],
)
def test_phrases_without_beam_search_are_refused_at_once(
    echo, tmp_path, capsys, trained, words
):
    echo.search = SearchConfig(method=trained)
    (tmp_path / "phrases").write_text("\n\nx\n")
    words = [*words, "--require", "phrases", "--output", "out.txt"]
    assert translate("--input", "in.txt", *words) == 1
    written = capsys.readouterr()
    assert "only beam search" in written.err
    assert not written.out
    assert not echo.calls
    assert not (tmp_path / "out.txt").exists()


def test_json_tells_of_missing_phrases():
    lacking = Translation("a", 0.0, 0.0, (), (), hypotheses=(), missing=("b c",))
    (line,) = output_lines(lacking, 0, as_json=True, several=False)
    assert json.loads(line)["missing_phrases"] == ["b c"]


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ("x\ny\n", "prefixes has 2 lines and the input has more"),
        ("x\ny\nz\n\n\n", "prefixes has 5 lines and the input has 3"),
        ("", "prefixes is empty"),
        (None, "There is no file prefixes"),
    ],
)
def test_other_line_counts_are_a_mistake(echo, tmp_path, capsys, prefixes, message):
    if prefixes is not None:
        (tmp_path / "prefixes").write_text(prefixes)
    words = ["--target-prefix", "prefixes", "--output", "out.txt"]
    assert translate("--input", "in.txt", *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.txt").exists()


def test_the_prefixes_are_not_overwritten(echo, tmp_path, capsys):
    (tmp_path / "prefixes").write_text("x\ny\nz\n")
    words = ["--target-prefix", "prefixes", "--output", "prefixes"]
    assert translate("--input", "in.txt", *words) == 1
    assert "is the file that is read" in capsys.readouterr().err


def test_flags_become_settings(echo):
    words = ["--min-length", "3", "--no-repeat-ngram", "2", "--coverage-penalty", "0.2"]
    assert translate("--input", "in.txt", *words, "--ban", "beer", "the dog") == 0
    assert echo.calls[0][2]["search"] == SearchConfig(
        beam_size=5,
        min_length=3,
        no_repeat_ngram=2,
        coverage_penalty=0.2,
        ban=("beer", "the dog"),
    )


@pytest.mark.parametrize(
    "wrong", [{"min_length": -1}, {"no_repeat_ngram": -2}, {"coverage_penalty": -0.1}]
)
def test_settings_below_nothing_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"search.{name} is {value}"):
        SearchConfig(**wrong)
