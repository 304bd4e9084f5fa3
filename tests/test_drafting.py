"""Greedy search in blocks through the engine, the translator and the verb."""

from collections import deque

import chex
import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.cli.searching import SearchOptions, chosen_search
from transformer_jax.config import SearchConfig
from transformer_jax.search.parallel_greedy import Drafted
from transformer_jax.testing import (
    SENTENCES,
    TINY_VOCAB_SIZE,
    tiny_model,
    tiny_tokenizer,
)
from transformer_jax.translation import engine, slots
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.sentences import Found, Sentence
from transformer_jax.translation.side_by_side import side_by_side
from transformer_jax.translation.translator import Translator

SMALL = {"num_encoder_layers": 1, "num_decoder_layers": 1, "norm_position": "pre"}
GREEDY, BLOCK = SearchConfig(method="greedy"), 4
IN_BLOCKS = SearchConfig(method="greedy", block=BLOCK)
MAX_LENGTH, EOS, START = 24, 2, 1


def make_sentences() -> list[Sentence]:
    """More than the slots hold, of many lengths, some with a forced beginning."""
    draw = np.random.default_rng(5)
    return [
        Sentence(
            i,
            draw.integers(4, TINY_VOCAB_SIZE, 1 + i % 8).astype(np.int32),
            int(draw.integers(5, MAX_LENGTH + 1)),
            (7, 5, 9)[: i % 4] if i % 3 == 0 else (),
        )
        for i in range(18)
    ]


def found_by(search, sentences, *, drafted=False, many=False, slots=4) -> list[Found]:
    model, params = tiny_model(**SMALL, output_bias=True)
    params["output"]["bias"] = params["output"]["bias"].at[EOS].add(-1.0)
    plan = SearchPlan(search, MAX_LENGTH, START, EOS, banned=(), prefix_width=4)
    if drafted:
        plan, params = plan._replace(draft=model), Drafted(params, params)
    decoder = Decoder(model, params, plan, slots=slots, length=8)
    found = side_by_side([decoder.run(deque(sentences), many=many)])
    return sorted(found, key=lambda each: each.index)


def assert_same(found: list[Found], expected: list[Found]) -> None:
    assert [each.index for each in found] == [each.index for each in expected]
    for one, other in zip(found, expected, strict=True):
        chex.assert_trees_all_equal(one.result.tokens, other.result.tokens)
        chex.assert_trees_all_close(one.result, other.result, atol=1e-4)


@pytest.fixture(scope="module")
def greedy() -> list[Found]:
    found = found_by(GREEDY, make_sentences())
    assert [each.effort for each in found] == [None] * len(found)
    assert max(int(each.result.lengths[0]) for each in found) > 16
    return found


@pytest.mark.parametrize("drafted", [False, True])
def test_slots_that_are_filled_again_and_caches_that_grow(greedy, drafted, monkeypatch):
    lengths = [16]

    def resize(cache, *, length):
        lengths.append(length)
        return slots.resize(cache, length=length)

    monkeypatch.setattr(engine, "resize", resize)
    monkeypatch.setattr(engine, "FIRST_CACHE", 16)
    sentences = make_sentences()
    found = found_by(IN_BLOCKS, sentences, drafted=drafted)
    assert max(lengths) == MAX_LENGTH
    assert_same(found, greedy)
    for each in found:
        length, effort = int(each.result.lengths[0]), each.effort
        assert effort is not None
        assert effort.smallest_gap > 1e-4  # no near ties
        fewest = -(-length // BLOCK)
        assert fewest <= effort.passes <= (fewest if drafted else length)
    # One that is searched alone.
    last = found_by(IN_BLOCKS, sentences[-1:], drafted=drafted, slots=1)
    assert_same(last, greedy[-1:])
    one, other = last[0].effort, found[-1].effort
    assert one is not None
    assert other is not None
    assert one.passes == other.passes
    # Other neighbours, other caches; and a siding for the last.
    monkeypatch.setattr(engine, "FEWEST_WITH_SIDING", 4)
    order = np.random.default_rng(0).permutation(len(sentences))
    others = [sentences[i] for i in order]
    shuffled = found_by(IN_BLOCKS, others, drafted=drafted, many=True)
    assert_same(shuffled, greedy)
    for one, other in zip(shuffled, found, strict=True):
        assert one.effort is not None
        assert other.effort is not None
        assert one.effort.passes == other.effort.passes


def make_translator(seed=0, vocab_size=100, draft=None, **overrides) -> Translator:
    tokenizer = tiny_tokenizer(vocab_size=vocab_size)
    sizes = {
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
    }
    model, params = tiny_model(seed, **SMALL, **sizes, **overrides)
    search = SearchConfig(method="greedy", max_length_factor=1.0, max_length_offset=5)
    return Translator(model, params, tokenizer, search, draft=draft)


def test_a_draft_of_another_size_changes_no_translation():
    lines = [source for source, _ in SENTENCES]
    expected = make_translator().translate(lines)
    draft = make_translator(1, d_model=8, d_ff=8)
    search = SearchConfig(
        method="greedy", block=3, max_length_factor=1.0, max_length_offset=5
    )
    found = make_translator(draft=draft).translate(lines, search=search)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    np.testing.assert_allclose(
        [each.score for each in found], [each.score for each in expected], atol=1e-4
    )


def test_a_draft_must_fit_and_have_something_to_do():
    with pytest.raises(ValueError, match="source_vocab_size is 100 and 90"):
        make_translator(draft=make_translator(vocab_size=90))
    with pytest.raises(ValueError, match="its draft differ in source_eos"):
        make_translator(draft=make_translator(source_eos=False))
    short = make_translator(positions="learned", max_positions=9)
    with pytest.raises(ValueError, match="The draft knows 9 positions"):
        make_translator(draft=short)
    idle = make_translator(draft=make_translator())
    with pytest.raises(ValueError, match="There is a draft, but block is 1"):
        idle.translate(["ein Mann"])
    with pytest.raises(ValueError, match="block is 4, but method is beam"):
        SearchConfig(block=4)


def test_options_of_blocks():
    found = chosen_search(SearchConfig(n_best=3), SearchOptions(block=4))
    assert (found.method, found.block, found.n_best) == ("greedy", 4, 1)
    assert chosen_search(IN_BLOCKS, SearchOptions()) == IN_BLOCKS
    assert chosen_search(IN_BLOCKS, SearchOptions(beam_size=2)).block == 1
    for options, message in (
        (SearchOptions(block=4, beam_size=2), "--beam-size is 2, .* --block"),
        (SearchOptions(block=4, method="beam"), "--block is 4, .* for --method greedy"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen_search(SearchConfig(), options)


def test_the_verb_loads_model_and_draft(monkeypatch, tmp_path, capsys):
    loaded = []

    def load(run, **options):
        loaded.append((run.name, options.get("draft")))
        if "draft" in options:
            raise ValueError("both are loaded")
        return run.name

    monkeypatch.setattr(Translator, "load", load)
    source = tmp_path / "in.txt"
    source.write_text("a\n")
    words = ["--checkpoint", "large", "--draft", "small", "--input", str(source)]
    assert main(["translate", *words]) == 1
    assert "both are loaded" in capsys.readouterr().err
    assert loaded == [("small", None), ("large", "small")]
