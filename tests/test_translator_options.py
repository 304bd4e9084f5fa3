"""What a user asks of translations: how they begin, what they hold and may not hold."""

from typing import Any

import numpy as np
import pytest

from transformer_jax.config import SearchConfig
from transformer_jax.testing import NumberTokenizer, tiny_model
from transformer_jax.translation.alignment import align
from transformer_jax.translation.ensembles import Ensemble
from transformer_jax.translation.phrases import (
    asked_of_lines,
    banned_ids,
    prefix_ids,
    required_ids,
)
from transformer_jax.translation.shortlist import Shortlist
from transformer_jax.translation.translator import Translator

SEARCH: dict[str, Any] = {"beam_size": 2, "max_length_factor": 1.0}
LINES = ["7 8 9", "5 5 12 13", "", "20", "11 4 4 9 6"]
PREFIXES = ["9 9 10", None, "4", "", "17"]


def make_translator(**overrides: Any) -> Translator:
    """Text is numbers, so that a test sees the pieces."""
    overrides = {"num_encoder_layers": 1, "num_decoder_layers": 1, **overrides}
    model, params = tiny_model(3, norm_position="pre", **overrides)
    return Translator(model, params, NumberTokenizer(), SearchConfig(**SEARCH))


def test_prefixes_begin_translations_and_come_on_top_of_their_length():
    ours = make_translator()
    # So short that only two pieces beside the prefix fit, and the end.
    search = SearchConfig(beam_size=2, max_length_factor=0.0, max_length_offset=3)
    found = ours.translate(LINES, search=search, prefixes=PREFIXES)
    free = ours.translate(LINES, search=search)
    for line, prefix, one, other in zip(LINES, PREFIXES, found, free, strict=True):
        words = prefix.split() if prefix else []
        if not line:
            assert one.text == ""
        elif not words:
            assert one.tokens == other.tokens
        else:
            assert list(one.tokens[: len(words)]) == words
            assert one.text.startswith(prefix or "")
            assert len(one.tokens) <= len(words) + 3
    alone = ours.translate(LINES[:1], search=search, prefixes=PREFIXES[:1])
    assert alone[0].tokens == found[0].tokens
    assert alone[0].score == pytest.approx(found[0].score, abs=1e-4)


def test_every_line_has_its_prefix():
    with pytest.raises(ValueError, match="There are 5 lines and 1 prefixes"):
        make_translator().translate(LINES, prefixes=["4"])
    ours = make_translator(positions="learned", max_positions=10)
    for prefix in ("4 " * 10, "4 " * 11):
        with pytest.raises(ValueError, match="The prefix of line 7 has 1"):
            ours.translate(["20"], prefixes=[prefix], first_line=7)
    found = ours.translate(["20"], prefixes=["4 " * 9])
    assert found[0].tokens == ("4",) * 9 + ("2",)
    with pytest.raises(ValueError, match="Prefix 1 is '5 2', which holds the end"):
        prefix_ids("5 2", NumberTokenizer(), name="Prefix 1")


def test_a_translation_holds_no_banned_word_and_no_banned_phrase():
    ours = make_translator()
    before = ours.translate(["7 8 9"])[0].tokens
    assert len(before) > 4
    ban = (before[0], " ".join(before[1:3]))
    search = SearchConfig(**SEARCH, ban=ban, min_length=4)
    plan = ours._plan(32, search, 1)
    assert int(before[0]) in plan.banned
    assert plan.banned_sequences == (tuple(map(int, before[1:3])),)
    for found in ours.translate(["7 8 9", "5 5 12 13"], search=search):
        assert len(found.tokens) > 4
        assert ban[0] not in found.tokens
        assert f" {ban[1]} " not in f" {found.text} "


@pytest.mark.parametrize("text", ["", "  ", "5 2"])
def test_a_ban_that_bans_nothing_is_a_mistake(text):
    with pytest.raises(ValueError, match=f"ban holds '{text}'"):
        banned_ids([text], NumberTokenizer())


PHRASES = [["9 10", "20"], [], ["5"], ["", "11 11 11", " "], ["4 17", "17 4", "6"]]


def holds(found, phrases) -> bool:
    return all(
        f" {phrase.strip()} " in f" {each.text} "
        for each in found.hypotheses
        for phrase in filter(str.strip, phrases)
    )


def test_translations_hold_their_phrases_and_have_room_for_them():
    ours = make_translator()
    # So short that only two pieces beside what is asked fit, and the end.
    search = SearchConfig(
        beam_size=4, n_best=3, max_length_factor=0.0, max_length_offset=3
    )
    rest: dict[str, Any] = {"search": search, "prefixes": PREFIXES}
    found = ours.translate(LINES, phrases=PHRASES, **rest)
    plain = ours.translate(LINES, **rest)
    for line, phrases, one, other in zip(LINES, PHRASES, found, plain, strict=True):
        assert one.missing == (() if line else tuple(filter(str.strip, phrases)))
        if not line:
            assert one.text == ""
        elif not phrases:
            assert one.tokens == other.tokens
        else:
            assert holds(one, phrases)
            assert not holds(other, phrases)
    assert found[0].text.startswith("9 9 10")


def test_what_cannot_be_held_is_told(caplog):
    ours = make_translator()
    search = SearchConfig(**SEARCH, ban=("9", "6 7"))
    phrases = [["8 9", "5"], ["5 6 7 8"], ["4", "", "5"], ["4"], ["3", "10"]]
    found = ours.translate(LINES, search=search, phrases=phrases, first_line=11)
    missing = [("8 9",), ("5 6 7 8",), ("4", "5"), (), ("3",)]
    assert [each.missing for each in found] == missing
    assert "5" in found[0].tokens
    assert "4 of 5 translations lack a phrase" in caplog.text
    assert "line 11, which lacks '8 9'" in caplog.text
    aligned = align(ours, LINES, found)
    assert [each.missing for each in aligned] == missing


def test_a_line_without_words_lacks_all_its_phrases(caplog):
    (found,) = make_translator().translate([" "], phrases=[["4", " ", "5 6"]])
    assert found.text == ""
    assert found.missing == ("4", "5 6")
    assert "1 of 1 translations lack a phrase" in caplog.text
    assert "line 1, which lacks '4'" in caplog.text


def test_bans_are_cut_once_for_all_lines(monkeypatch):
    ours, cut = make_translator(), []
    encode = ours.tokenizer.encode_target

    def encode_target(text: str) -> list[int]:
        cut.append(text)
        return encode(text)

    monkeypatch.setattr(ours.tokenizer, "encode_target", encode_target)
    rest: dict[str, Any] = {"prefixes": None, "phrases": [["4"], ["5"], ["6"]]}
    asked_of_lines([1, 2, 3], ours.tokenizer, ("9", "6 7"), 100, **rest)
    assert sorted(cut) == ["4", "5", "6", "6 7", "9"]


def test_phrases_are_no_worse_for_a_shortlist_or_an_ensemble():
    ours = make_translator()
    shortlist = Shortlist(
        np.full((24, 1), 12, np.int32), np.array([2, 13, 14], np.int32), 24
    )
    found = ours.translate(LINES, phrases=PHRASES, shortlist=shortlist)
    for line, phrases, one in zip(LINES, PHRASES, found, strict=True):
        assert not (line and one.missing)
        allowed = {12, 13, 14, *map(int, " ".join(phrases).split())}
        assert {*map(int, one.text.split())} <= allowed
    params = ours.params, make_translator().params
    both = Translator(
        Ensemble((ours.model, ours.model)), params, ours.tokenizer, ours.search
    )
    twins = both.translate(LINES, phrases=PHRASES)
    alone = ours.translate(LINES, phrases=PHRASES)
    assert [each.text for each in twins] == [each.text for each in alone]


def test_phrases_that_are_a_mistake():
    ours = make_translator(positions="learned", max_positions=10)
    with pytest.raises(ValueError, match="There are 2 lines and 1 lists of phrases"):
        ours.translate(["20", "4"], phrases=[["4"]])
    with pytest.raises(ValueError, match="line 7 is to hold 10 pieces, but the model"):
        ours.translate(
            ["20"], phrases=[["4 5", "6 7 8 9"]], prefixes=["4 4 4 4"], first_line=7
        )
    for given in (["red car"], "r", [""]):
        with pytest.raises(ValueError, match="one text where a list of phrases"):
            ours.translate(["20"], phrases=given)
    with pytest.raises(ValueError, match=r"to hold '5 2', in which there is"):
        required_ids(["5 2"], NumberTokenizer(), name="The translation of line 1")
    for method in ("greedy", "sampling"):
        search = SearchConfig(method=method)
        with pytest.raises(ValueError, match=f"method is {method}: only beam search"):
            ours.translate(["20"], phrases=[["4"]], search=search)
        assert ours.translate(["20"], phrases=[[]], search=search)
