"""Text to text: order, counts, shapes, long lines, and what a run on disk gives."""

import logging
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import SearchConfig
from transformer_jax.recipes import config_to_json
from transformer_jax.testing import (
    SENTENCES,
    tiny_config,
    tiny_model,
    tiny_model_config,
    tiny_tokenizer,
)
from transformer_jax.translation import offers, translator
from transformer_jax.translation.translator import Translator

LINES = [SENTENCES[0][0], "ein Mann", "ein Hund", SENTENCES[3][0], "das Bier"]
GREEDY = SearchConfig(method="greedy", max_length_factor=1.0, max_length_offset=5)
BEAM = SearchConfig(beam_size=3, n_best=3, max_length_factor=1.0, max_length_offset=5)
ODD_LINES = [
    "",
    "ein Mann",
    "   ",
    "\t\u3000",
    "ein\u2028Mann",
    "\u0085",
    "\x00\x01",
    "🍺🍺 ẞ",
    "\ufeffein Hund",
    "Hund " * 8,
    "",
]


MODEL: dict[str, Any] = {
    "norm_position": "pre",
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}


def sizes(tokenizer) -> dict[str, int]:
    return {
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
    }


def make_translator(search=GREEDY, seed=0, **overrides) -> Translator:
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(seed, **MODEL, **sizes(tokenizer), **overrides)
    return Translator(model, params, tokenizer, search)


def assert_same(found, expected) -> None:
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert [each.text for each in found] == [each.text for each in expected]
    np.testing.assert_allclose(
        [each.score for each in found], [each.score for each in expected], atol=1e-4
    )


@pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_order_is_kept_and_batches_do_not_matter(search):
    ours = make_translator(search)
    together = ours.translate(LINES)
    assert_same(ours.translate(LINES[::-1])[::-1], together)
    assert_same(ours.translate(LINES, batch_tokens=1), together)


@pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_only_greedy_search_can_do_without_scores(search):
    ours = make_translator(search)
    found, expected = ours.translate(LINES, scores=False), ours.translate(LINES)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    for each in found:
        numbers = [each.score, each.log_probability, *each.token_log_probabilities]
        assert np.isnan(numbers).all() == (search is GREEDY)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_devices_share_the_work_and_the_output_table(search, rough, monkeypatch):
    """Its second copy, turned or rounded, serves each of them where it is."""
    monkeypatch.setattr(offers, "multiplies_bfloat16", lambda: rough)
    alone = make_translator(search)
    devices = jax.devices()[:2]
    several = Translator(
        alone.model, alone.params, alone.tokenizer, search, devices=devices
    )
    lines = LINES * 24
    expected = alone.translate(lines, scores=False)
    found = several.translate(lines, scores=False)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert len(several._idle) == len(devices)
    for device, decoder in several._idle.items():
        assert decoder.whole is not None
        (columns, *_) = decoder.whole.output
        assert columns.devices() == {devices[device]}
        is_rough = columns.dtype == "bfloat16"
        assert is_rough == (rough and search is GREEDY)


def test_more_slots_than_wanted_are_no_reason_to_compile():
    ours = make_translator()
    expected = ours.translate(LINES)
    (decoder,) = ours._idle.values()
    found = ours.translate(LINES[:2])  # want fewer
    assert [*ours._idle.values()] == [decoder]
    assert_same(found, expected[:2])

    # But never more than allowed, nor fewer than wanted.
    ours.translate(LINES, batch_size=2)
    (smaller,) = ours._idle.values()
    assert smaller.slots <= 2 < decoder.slots
    ours.translate(LINES)
    (larger,) = ours._idle.values()
    assert larger.slots == decoder.slots


def test_as_many_lines_out_as_in():
    found = make_translator().translate(ODD_LINES)
    assert len(found) == len(ODD_LINES)
    for line, translation in zip(ODD_LINES, found, strict=True):
        if not line.strip():
            assert translation.text == ""
            assert translation.tokens == ()
            assert len(translation.hypotheses) == 1
    assert found[1].tokens[-1] == "</s>"


def test_nothing_gives_nothing():
    assert make_translator().translate([]) == []


def test_n_best_come_best_first():
    for found in make_translator(BEAM).translate(LINES):
        assert len(found.hypotheses) == 3
        assert found.tokens == found.hypotheses[0].tokens
        scores = [each.score for each in found.hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({each.tokens for each in found.hypotheses}) == 3
        for each in found.hypotheses:
            assert each.score == pytest.approx(each.log_probability / len(each.tokens))
            assert sum(each.token_log_probabilities) == pytest.approx(
                each.log_probability, rel=1e-4
            )


def test_a_translation_is_no_longer_than_its_source_allows():
    ours = make_translator()
    for line, found in zip(LINES, ours.translate(LINES), strict=True):
        pieces = len(ours.tokenizer.encode_source(line))
        assert len(found.tokens) <= pieces + 5


def test_lines_too_long_are_cut_and_reported(monkeypatch, caplog):
    monkeypatch.setattr(translator, "MAX_SOURCE_TOKENS", 12)
    ours = make_translator()
    lines = ["ein Hund", "Hund " * 20, "Hund " * 30]
    with caplog.at_level(logging.WARNING):
        found = ours.translate(lines, first_line=100)
    assert [each.truncated for each in found] == [False, True, True]
    assert found[1].tokens == found[2].tokens
    assert "2 of 3 lines have more than 12 tokens" in caplog.text
    assert "The first is line 101" in caplog.text


def test_learned_positions_bound_both_sides():
    ours = make_translator(positions="learned", max_positions=10)
    found = ours.translate(["Hund " * 20, "ein Hund"])
    assert found[0].truncated
    assert not found[1].truncated
    assert all(0 < len(each.tokens) <= 10 for each in found)


def test_progress_counts_every_line():
    counts = []
    make_translator().translate(ODD_LINES, progress=counts.append)
    assert sum(counts) == len(ODD_LINES)


@pytest.mark.parametrize("start", ["eos", "pad"])
def test_other_start_tokens_and_no_source_end(start):
    found = make_translator(decoder_start=start, source_eos=False).translate(LINES)
    assert all(each.tokens for each in found)


def test_a_run_on_disk_translates_alike(tmp_path):
    ours = make_translator(GREEDY)
    config = tiny_config(
        model=tiny_model_config(**MODEL, source_vocab_size=0, target_vocab_size=0),
        search=GREEDY,
    )
    store = CheckpointStore(tmp_path)
    store.write_run(config_to_json(config), ours.tokenizer.files())
    store.save(3, {"params": ours.params})
    loaded = Translator.load(tmp_path)
    assert loaded.search == GREEDY
    assert loaded.translate(LINES) == ours.translate(LINES)
    assert Translator.load(str(tmp_path), step=3).translate(LINES[:1])
