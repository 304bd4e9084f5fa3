"""Alignments: links from attention, words from pieces, and what the verb prints."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.config import SearchConfig
from transformer_jax.data.vocabulary_tokenizer import Side, VocabularyTokenizer
from transformer_jax.models.cache import init_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.testing import (
    NumberTokenizer,
    tiny_batch,
    tiny_model,
    tiny_tokenizer,
)
from transformer_jax.translation.alignment import (
    align,
    mean_attention,
    most_attended,
)
from transformer_jax.translation.hypotheses import Hypothesis, as_translation
from transformer_jax.translation.translator import Translator
from transformer_jax.translation.words import source_words, target_words

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
ORDER = [3, 0, 1, 2, 5, 4]
"""Which source place the looking model attends to when it writes place 0, 1, …"""


def test_links_go_to_the_most_attended_word():
    weights = np.array(
        [
            # word 0  word 1     word 2
            [0.40, 0.35, 0.15, 0.10],  # word 0: 0.40, 0.50, 0.10
            [0.10, 0.00, 0.00, 0.90],  # word 1, first piece
            [0.60, 0.20, 0.20, 0.00],  # word 1: 0.70, 0.40, 0.90
            [0.00, 0.00, 0.00, 1.00],  # the end: left out
            [0.30, 0.15, 0.15, 0.30],  # word 2: equals, the first of them
        ]
    )
    found = most_attended(weights, [0, 1, 1, -1, 2], [0, 1, 1, 2])
    assert found == ((1, 0), (2, 1), (0, 2))
    assert most_attended(weights[:, :0], [0, 1, 1, -1, 2], []) == ()
    assert most_attended(weights[:0], [], [0, 1, 1, 2]) == ()


def test_links_equal_a_plain_loop():
    draw = np.random.default_rng(0)
    for _ in range(50):
        sizes = draw.integers(1, 9, size=2)
        weights = draw.random(sizes)
        targets, sources = (
            np.cumsum(draw.integers(0, 2, size)).tolist() for size in sizes
        )
        mass: dict[int, dict[int, float]] = {}
        for t, target in enumerate(targets):
            for s, source in enumerate(sources):
                row = mass.setdefault(target, {})
                row[source] = row.get(source, 0) + weights[t, s]
        best = tuple((max(row, key=row.__getitem__), t) for t, row in mass.items())
        assert most_attended(weights, targets, sources) == best


def numbers_of(tokenizer, text: str) -> list[tuple[str, int]]:
    ids = tokenizer.encode_source(text)
    numbers = source_words(tokenizer, text, len(ids))
    return list(zip(tokenizer.source_pieces(ids), numbers, strict=True))


def assert_numbered_by_marks(pairs, begins) -> None:
    """Each piece that begins a word opens the next number."""
    number = -1
    for place, (piece, found) in enumerate(pairs):
        number += begins(place, piece)
        assert found == number


def test_pieces_belong_to_the_words_of_the_line_as_given():
    sentencepiece = tiny_tokenizer()
    for text in ("der Hund schläft unter Kaffeehunden", "  ein\tHund  läuft "):
        pairs = numbers_of(sentencepiece, text)
        assert len(pairs) > len(text.split())
        assert_numbered_by_marks(pairs, lambda _, piece: piece.startswith("▁"))
        assert pairs[-1][1] == len(text.split()) - 1
    side = Side((*SPECIAL, "low", "lo@@", "w@@", "er"), "bpe", b"#version: 0.2\nl o\n")
    bpe = VocabularyTokenizer(side, side, **IDS)
    pairs = numbers_of(bpe, "low lower")
    assert [number for _, number in pairs] == [0] * 2 + [1] * (len(pairs) - 2)
    # Soft and hard blanks: only those of ASCII separate words.
    words = [number for _, number in numbers_of(sentencepiece, "ein\u00a0Hund läuft")]
    assert words[0] == 0
    assert max(words) == 1
    assert source_words(sentencepiece, "ein Hund läuft", 1) == [0]
    assert source_words(sentencepiece, " ", 1) == [-1]


def test_pieces_belong_to_the_words_of_the_translation_as_printed():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode_target("the children play")
    pieces = tokenizer.target_pieces(ids)
    mark = tokenizer.target_pieces(range(100)).index("▁")
    end = tokenizer.eos_id
    numbers = target_words(tokenizer, [*ids, end])
    assert numbers[-1] == -1
    assert_numbered_by_marks(
        list(zip(pieces, numbers, strict=False)),
        lambda _, piece: piece.startswith("▁"),
    )
    # A bare mark belongs to the word that it opens; at the end, to the last one.
    first = ids[: numbers.index(1)]
    inside = tokenizer.encode_target("s")[-1]
    assert target_words(tokenizer, [*first, mark, inside, mark, end]) == [
        *[0] * len(first),
        *(1, 1, 1, -1),
    ]
    assert target_words(tokenizer, [mark, end]) == [-1, -1]


def looking_model(tokenizer):
    """Writing place t, it looks at source place ORDER[t], whatever the words are.

    Each position is a direction of its own, and what else there is adds nothing.
    """
    model, params = tiny_model(
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_heads=1,
        norm_position="pre",
        final_norm=False,
        positions="learned",
        max_positions=16,
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
    )
    params = jax.tree.map(jnp.zeros_like, params)
    places = 9 * jnp.eye(16)
    order = [*ORDER, *range(len(ORDER), 16)]
    params["target_positions"]["embedding"] = places[jnp.array(order)]
    params["source_positions"]["embedding"] = places
    layer = params["decoder"]["layer_1"]
    layer["cross_attention_norm"]["scale"] = jnp.ones(16)
    for name in ("query", "key"):
        layer["cross_attention"][name]["kernel"] = jnp.eye(16)[:, None, :]
    return model, params


def given(tokenizer, text: str, **options) -> Hypothesis:
    ids = (*tokenizer.encode_target(text), tokenizer.eos_id)
    tokens = tuple(tokenizer.target_pieces(ids))
    return Hypothesis(text, -1.0, -1.0, tokens, (0.0,) * len(ids), ids=ids, **options)


def test_a_model_that_looks_at_known_places_is_read_right():
    tokenizer = NumberTokenizer()
    ours = Translator(*looking_model(tokenizer), tokenizer, SearchConfig())
    lines = ["4 5 6 7 8 9", "", "9 8 7 6", "5 5 5 5 5 5"]
    texts = [["9 9 9 9 9 9", "4 5"], [], ["8 8 8 8"], ["4 4 4"]]
    translations = [
        as_translation(tuple(given(tokenizer, each) for each in some), truncated=False)
        for some in texts
    ]
    for options in ({}, {"layer": -1}, {"layer": 1, "batch_tokens": 16}):
        for pieces in (False, True):
            found = align(ours, lines, translations, pieces=pieces, **options)
            assert found[0].alignment == tuple(zip(ORDER, range(6), strict=True))
            assert found[0].hypotheses[1].alignment == ((3, 0), (0, 1))
            assert found[1].alignment == ()
            assert found[2].alignment == tuple(zip(ORDER[:4], range(4), strict=True))
            assert found[3].alignment == ((3, 0), (0, 1), (1, 2))
    # Layer 0 has zeros for queries and keys: it looks everywhere alike.
    for one in align(ours, lines, translations, layer=0):
        assert {source for source, _ in one.alignment or ()} <= {0}
    stripped = [
        dataclasses.replace(each, alignment=None, hypotheses=other.hypotheses)
        for each, other in zip(found, translations, strict=True)
    ]
    assert stripped == translations
    with pytest.raises(ValueError, match="align by is 2, but the decoder has 2"):
        align(ours, lines, translations, layer=2)


@pytest.mark.parametrize("source_bos", [False, True])
def test_special_tokens_of_the_source_are_not_counted(source_bos):
    tokenizer = NumberTokenizer()
    model, params = looking_model(tokenizer)
    config = dataclasses.replace(model.config, source_bos=source_bos)
    ours = Translator(type(model)(config), params, tokenizer, SearchConfig())
    one = as_translation((given(tokenizer, "4 4 4 4"),), truncated=False)
    (found,) = align(ours, ["5 6 7 8 9"], [one], layer=1)
    links = {target: source for source, target in found.alignment or ()}
    for target in (0, 2, 3):
        assert links[target] == ORDER[target] - source_bos


def test_attention_of_the_whole_target_is_that_of_the_steps():
    model, params = tiny_model()
    batch = tiny_batch()
    sentences, length = batch.targets.shape

    @jax.jit
    def of_steps(params):
        memory = encode_memory(model, params, batch.inputs, batch.input_segment_ids)
        step_fn = make_step_fn(model, params, return_attention=True)
        cache = init_cache(model.config, sentences, length)
        positions = jnp.zeros(sentences, jnp.int32)
        return step_fn(batch.decoder_inputs, positions, cache, memory)[0].attention

    at_once = mean_attention(params, batch, model=model, layer=None)
    real = batch.target_segment_ids > 0
    chex.assert_trees_all_close(
        np.asarray(of_steps(params))[real], np.asarray(at_once)[real], atol=1e-5
    )
    layers = [mean_attention(params, batch, model=model, layer=i) for i in (0, 1)]
    chex.assert_trees_all_close((layers[0] + layers[1]) / 2, at_once, atol=1e-6)


@pytest.fixture
def run(monkeypatch, tmp_path):
    tokenizer = NumberTokenizer()
    search = SearchConfig(beam_size=2, max_length_factor=1.0, max_length_offset=1)
    ours = Translator(*looking_model(tokenizer), tokenizer, search)
    monkeypatch.setattr(Translator, "load", lambda *_, **__: ours)
    (tmp_path / "in").write_text("4 5 6\n\n7\n")

    def translate(*words: str) -> list[str]:
        places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        words = ("translate", "--checkpoint", "run", *places, "--no-progress", *words)
        assert main(words) == 0
        return (tmp_path / "out").read_text().split("\n")[:-1]

    return translate


def test_the_verb_prints_links(run):
    plain = run()
    aligned = run("--align")
    assert aligned[1] == " ||| "
    for line, both in zip(plain, aligned, strict=True):
        text, links = both.split(" ||| ")
        assert text == line
        pairs = [tuple(map(int, link.split("-"))) for link in links.split()]
        assert [target for _, target in pairs] == list(range(len(text.split())))
    objects = [json.loads(line) for line in run("--align", "--json")]
    for each, both in zip(objects, aligned, strict=True):
        links = " ".join(f"{s}-{t}" for s, t in each["alignment"])
        assert f"{each['translation']} ||| {links}" == both
    several = run("--align", "--n-best", "2", "--align-layer", "-1")
    assert [line.split(" ||| ")[0] for line in several] == ["0", "0", "1", "2", "2"]
    assert all(line.count(" ||| ") == 3 for line in several)
    assert all("alignment" not in line for line in run("--json"))


def test_the_verb_names_mistakes(run, capsys):
    with pytest.raises(AssertionError):
        run("--align-pieces")
    assert "give --align too" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        run("--align", "--align-layer", "7")
    assert "give a number from 0 to 1" in capsys.readouterr().err
