"""`translate`, `score` and `evaluate`: lines in, lines out, and mistakes."""

import gzip
import io
import json
import os
import sys
import threading

import pytest
import sacrebleu

from transformer_jax.__main__ import main
from transformer_jax.cli.lines import stdin_chunks
from transformer_jax.cli.searching import SearchOptions, chosen_search
from transformer_jax.config import SearchConfig
from transformer_jax.testing import tiny_model, tiny_tokenizer
from transformer_jax.translation.hypotheses import Hypothesis, Translation
from transformer_jax.translation.translator import Translator


class Shouter:
    """Translates into capitals, and notes how it was asked."""

    search = SearchConfig(beam_size=5)

    def __init__(self):
        self.calls = []

    def translate(self, lines, **options):
        self.calls.append(options)
        options["progress"](len(lines))
        return [self.shout(line) for line in lines]

    def shout(self, line):
        tokens = (*line.upper().split(), "</s>")
        fields = (line.upper(), -0.5, -0.5 * len(tokens), tokens, (-0.5,) * len(tokens))
        second = Hypothesis(line.lower(), float("-inf"), -9.0, tokens, ())
        both = (Hypothesis(*fields), second)
        return Translation(*fields, hypotheses=both, truncated=len(line) > 100)


@pytest.fixture
def shouter(monkeypatch):
    shouter = Shouter()
    monkeypatch.setattr(Translator, "load", lambda *_, **__: shouter)
    return shouter


def translate(tmp_path, data: bytes, *words: str) -> list[str]:
    """The lines that the verb writes for a file; every line must end."""
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes(data)
    places = ["--input", str(source), "--output", str(output), "--no-progress"]
    assert main(["translate", "--checkpoint", "run", *places, *words]) == 0
    *lines, rest = output.read_bytes().decode("utf-8").split("\n")
    assert not rest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "out.txt"]
    return lines


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb\n", ["A", "B"]),
        (b"a\nb", ["A", "B"]),
        (b"a\r\n\r\nb\r\n", ["A", "", "B"]),
        (b"\n\n", ["", ""]),
        ("a\u2028b\u0085c\fd\n".encode(), ["A\u2028B\u0085C\fD"]),
        (b"a\rb\n", ["A B"]),
        ("ä🍺\n".encode(), ["Ä🍺"]),
        (b"a\xffb\nc\n", ["A\ufffdB", "C"]),
        (gzip.compress(b"a\nb\n", mtime=0), ["A", "B"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["A", "\ufeffB"]),
        (b"a" * 200_000 + b"\nb\n", ["A" * 200_000, "B"]),
    ],
)
def test_as_many_lines_out_as_in(shouter, tmp_path, data, expected):
    assert translate(tmp_path, data) == expected


def test_damaged_bytes_are_counted(shouter, tmp_path, capsys):
    translate(tmp_path, b"a\nb\xff\nc\xc3\n")
    warning = capsys.readouterr().err
    assert "2 of 3 lines held bytes that are not UTF-8" in warning
    assert "first is line 2" in warning


def test_json_lines_hold_what_others_rely_on(shouter, tmp_path):
    first, second = map(
        json.loads, translate(tmp_path, "a\u2028b\n\n".encode(), "--json")
    )
    assert first == {
        "translation": "A\u2028B",
        "score": -0.5,
        "log_probability": -1.5,
        "tokens": ["A", "B", "</s>"],
        "token_log_probabilities": [-0.5, -0.5, -0.5],
    }
    assert second["translation"] == ""
    (line,) = translate(tmp_path, "a\u2028b\n".encode(), "--json", "--n-best", "2")
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert [each["translation"] for each in found["hypotheses"]] == [
        "A\u2028B",
        "a\u2028b",
    ]
    assert found["hypotheses"][1]["score"] is None
    (line,) = translate(tmp_path, b"a" * 101, "--json")
    assert json.loads(line)["truncated"] is True


def test_n_best_lines_are_numbered(shouter, tmp_path):
    lines = translate(tmp_path, b"x\ny\n", "--n-best", "2")
    assert lines == [
        "0 ||| X ||| -0.500000",
        "0 ||| x ||| -inf",
        "1 ||| Y ||| -0.500000",
        "1 ||| y ||| -inf",
    ]


def test_options_change_the_runs_search(shouter, tmp_path):
    words = ["--beam-size", "7", "--length-penalty", "gnmt", "--alpha", "0.6"]
    translate(tmp_path, b"x\n", *words, "--batch-tokens", "64")
    assert shouter.calls[0]["batch_tokens"] == 64
    assert shouter.calls[0]["search"] == SearchConfig(
        beam_size=7, length_penalty="gnmt", alpha=0.6
    )
    greedy = chosen_search(SearchConfig(n_best=3), SearchOptions(method="greedy"))
    assert (greedy.method, greedy.n_best) == ("greedy", 1)
    with pytest.raises(ValueError, match="raise beam_size or lower n_best"):
        chosen_search(SearchConfig(), SearchOptions(), n_best=9)


def test_options_of_one_method_choose_it():
    default = SearchConfig(method="sampling", mbr="bleu", mbr_samples=7)
    for options, n_best, expected in (
        (SearchOptions(), 3, ("sampling", "bleu")),
        (SearchOptions(beam_size=4), None, ("beam", "none")),
        (SearchOptions(diversity_rate=0.5), None, ("beam", "none")),
        (SearchOptions(method="greedy", beam_size=1), None, ("greedy", "none")),
    ):
        found = chosen_search(default, options, n_best=n_best)
        assert (found.method, found.mbr) == expected
    for options in (
        SearchOptions(temperature=2.0),
        SearchOptions(top_p=0.5),
        SearchOptions(seed=1),
        SearchOptions(mbr="chrf", mbr_samples=9),
    ):
        assert chosen_search(SearchConfig(), options).method == "sampling"
    assert chosen_search(SearchConfig(), SearchOptions(top_k=4), n_best=9).n_best == 9
    for options, message in (
        (SearchOptions(method="beam", top_k=5), "--top-k is 5, .* but --method beam"),
        (SearchOptions(beam_size=3, seed=1), "--seed is 1, .* but --beam-size is"),
        (SearchOptions(method="greedy", mbr="chrf"), "--mbr is chrf, which is for"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen_search(SearchConfig(), options)


def test_stdin_and_stdout_are_the_default(shouter, monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO("ü\n\nb".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["translate", "--checkpoint", "run"]) == 0
    assert capsys.readouterr().out == "Ü\n\nB\n"


def test_lines_of_a_pipe_are_answered_before_it_ends(monkeypatch):
    read, write = os.pipe()
    with open(read) as stdin, open(write, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        chunks = stdin_chunks()
        pipe.write(b"a\nb\n")
        assert next(chunks).lines == ["a", "b"]
        pipe.write(b"\xff")
        pipe.close()
        last = next(chunks)
        assert (last.lines, last.damaged) == (["\ufffd"], [0])
        assert next(chunks, None) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "absent.txt"], "There is no file absent.txt"),
        (["--input", "empty.txt"], "empty.txt is empty"),
        (["--input", "."], "is a folder"),
        (["--n-best", "0"], "--n-best is 0"),
        (["--input", "in.txt", "--n-best", "6"], "n_best is 6"),
        (["--input", "in.txt", "--output", "no/out.txt"], "There is no folder no"),
    ],
)
def test_mistakes_are_named(shouter, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "in.txt").write_text("a\n")
    assert main(["translate", "--checkpoint", "run", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_failed_run_leaves_the_old_output(shouter, tmp_path, monkeypatch, capsys):
    def fail(lines, **options):
        raise ValueError("the model is gone")

    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a\n")
    output.write_text("precious\n")
    monkeypatch.setattr(shouter, "translate", fail)
    words = ["--checkpoint", "run", "--input", str(source), "--output", str(output)]
    assert main(["translate", *words]) == 1
    assert "the model is gone" in capsys.readouterr().err
    assert output.read_text() == "precious\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_no_run_is_an_error_that_says_what_to_give(tmp_path, capsys):
    words = ["--checkpoint", str(tmp_path / "nothing")]
    (tmp_path / "in.txt").write_text("a\n")
    assert main(["translate", *words, "--input", str(tmp_path / "in.txt")]) == 1
    assert "There is no folder" in capsys.readouterr().err


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_evaluate_translates_and_scores(shouter, tmp_path, capsys):
    source = write(tmp_path / "source", "a b c d\ne f g h\n")
    reference = write(tmp_path / "reference", "A B C D\nE F G X\n")
    output = tmp_path / "out"
    places = ["--source", source, "--reference", reference, "--output", str(output)]
    assert main(["evaluate", "--checkpoint", "run", *places]) == 0
    found = json.loads(capsys.readouterr().out)
    hypotheses, references = ["A B C D", "E F G H"], ["A B C D", "E F G X"]
    assert found["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references]).score
    )
    assert found["sentences"] == 2
    assert {"chrf_signature", "ter", "ter_signature"} <= set(found)
    assert output.read_text() == "A B C D\nE F G H\n"
    words = ["evaluate", "--hypothesis", str(output), "--reference", reference]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_evaluate_names_what_is_missing_or_uneven(shouter, tmp_path, capsys):
    short, long = write(tmp_path / "short", "a\n"), write(tmp_path / "long", "a\nb\n")
    assert main(["evaluate", "--reference", short]) == 1
    assert "Give either --checkpoint" in capsys.readouterr().err
    assert main(["evaluate", "--checkpoint", "run", "--reference", short]) == 1
    assert "--source is missing" in capsys.readouterr().err
    assert main(["evaluate", "--hypothesis", long, "--reference", short]) == 1
    assert "First line without a partner: 2" in capsys.readouterr().err


def test_score_writes_one_object_a_line(monkeypatch, tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        num_encoder_layers=1,
        num_decoder_layers=1,
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
    )
    translator = Translator(model, params, tokenizer, SearchConfig())
    monkeypatch.setattr(Translator, "load", lambda *_, **__: translator)
    source = write(tmp_path / "source", "ein Hund\nder Mann\n\n")
    target = write(tmp_path / "target", "a dog\n\nthe man\n")
    words = ["score", "--checkpoint", "run", "--source", source, "--target", target]
    assert main([*words, "--no-progress"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines.pop() == ""
    found = [json.loads(line) for line in lines]
    assert len(found) == 3
    for score in found:
        assert list(score) == ["log_probability", "tokens", "token_log_probabilities"]
        assert score["tokens"][-1] == "</s>"
        assert len(score["tokens"]) == len(score["token_log_probabilities"])
        assert sum(score["token_log_probabilities"]) == pytest.approx(
            score["log_probability"]
        )


def test_a_pipe_can_be_the_input(shouter, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    write = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(b"a\nb\n"),))
    write.start()
    assert main(["translate", "--checkpoint", "run", "--input", str(pipe)]) == 0
    write.join()
    assert capsys.readouterr().out == "A\nB\n"


def test_a_truncated_gzip_file_is_named_and_the_output_stays(shouter, tmp_path, capsys):
    source, output = tmp_path / "in.gz", tmp_path / "out.txt"
    source.write_bytes(gzip.compress(os.urandom(9999).hex().encode())[:-1000])
    output.write_text("before")
    words = ["--input", str(source), "--output", str(output), "--no-progress"]
    assert main(["translate", "--checkpoint", "run", *words]) == 1
    assert f"{source} cannot be read" in capsys.readouterr().err
    assert output.read_text() == "before"


def test_output_can_be_a_pipe_or_a_link(shouter, tmp_path):
    source, pipe, link = (tmp_path / name for name in ("in.txt", "pipe", "link"))
    source.write_text("a\n")
    os.mkfifo(pipe)
    target = tmp_path / "target.txt"
    link.symlink_to(target)
    got = []
    read = threading.Thread(target=lambda: got.append(pipe.read_text()))
    read.start()
    for output in (pipe, link):
        words = ["--input", str(source), "--output", str(output), "--no-progress"]
        assert main(["translate", "--checkpoint", "run", *words]) == 0
    read.join()
    assert got == ["A\n"]
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.read_text() == "A\n"


def test_the_runs_own_n_best_counts(shouter, tmp_path, monkeypatch):
    monkeypatch.setattr(shouter, "search", SearchConfig(beam_size=5, n_best=2))
    lines = translate(tmp_path, b"a\n")
    assert [line.split(" ||| ")[1] for line in lines] == ["A", "a"]


def test_evaluate_refuses_options_that_would_do_nothing(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("a\n")
    files = ["--reference", str(text), "--hypothesis", str(text)]
    for words in (["--source", str(text)], ["--step", "3"], ["--beam-size", "3"]):
        assert main(["evaluate", *files, *words]) == 1
        assert "goes with --checkpoint" in capsys.readouterr().err


def test_greedy_search_refuses_a_beam(shouter, tmp_path, capsys):
    source = write(tmp_path / "in.txt", "a\n")
    words = ["--checkpoint", "run", "--input", source, "--method", "greedy"]
    assert main(["translate", *words, "--beam-size", "4"]) == 1
    assert "--beam-size is 4, which is for --method beam" in capsys.readouterr().err
    assert main(["translate", *words, "--beam-size", "1"]) == 0
