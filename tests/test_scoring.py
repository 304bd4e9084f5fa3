"""Scores of given translations, held against search and against other batches."""

import numpy as np
import pytest

from transformer_jax.config import SearchConfig
from transformer_jax.testing import (
    SENTENCES,
    TINY_VOCAB_SIZE,
    NumberTokenizer,
    tiny_model,
    tiny_tokenizer,
)
from transformer_jax.translation.scoring import score_pairs
from transformer_jax.translation.translator import Translator


@pytest.mark.parametrize(
    ("norm_position", "search"),
    [
        ("pre", SearchConfig(method="greedy", max_length_offset=5)),
        ("post", SearchConfig(beam_size=4, n_best=4, max_length_offset=5)),
    ],
)
def test_score_equals_what_translate_reports(norm_position, search):
    model, params = tiny_model(norm_position=norm_position)
    tokenizer = NumberTokenizer()
    lines = ["5 6 7", "9", "20 4 4 11 23 8 8 9 10", "12 13"]
    found = Translator(model, params, tokenizer, search).translate(lines)
    hypotheses = [each for one in found for each in one.hypotheses]
    pairs = [
        (line, each.text)
        for line, one in zip(lines, found, strict=True)
        for each in one.hypotheses
    ]
    assert len(pairs) == len(lines) * search.n_best
    scores = score_pairs(model, params, tokenizer, pairs, batch_tokens=512)
    for each, score in zip(hypotheses, scores, strict=True):
        assert score.tokens == each.tokens
        assert score.log_probability == pytest.approx(each.log_probability, abs=1e-4)
        np.testing.assert_allclose(
            score.token_log_probabilities, each.token_log_probabilities, atol=1e-4
        )


def test_batches_and_order_do_not_matter():
    tokenizer = tiny_tokenizer()
    sizes = {
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
    }
    model, params = tiny_model(num_encoder_layers=1, num_decoder_layers=1, **sizes)
    pairs = [*SENTENCES, ("", "a dog"), ("ein Hund", "")]
    together = score_pairs(model, params, tokenizer, pairs)
    small = score_pairs(model, params, tokenizer, pairs[::-1], batch_tokens=256)[::-1]
    counts: list[int] = []
    again = score_pairs(model, params, tokenizer, pairs, progress=counts.append)
    assert again == together
    assert sum(counts) == len(pairs)
    for (_, target), one, other in zip(pairs, together, small, strict=True):
        assert one.tokens == other.tokens
        assert one.tokens[-1] == "</s>"
        assert len(one.tokens) == len(tokenizer.encode_target(target)) + 1
        assert sum(one.token_log_probabilities) == pytest.approx(one.log_probability)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_probabilities_of_all_next_tokens_sum_to_one():
    model, params = tiny_model()
    pairs = [("5 6", f"7 {token}") for token in range(TINY_VOCAB_SIZE)]
    tokenizer = NumberTokenizer()
    scores = score_pairs(model, params, tokenizer, pairs, batch_tokens=256)
    total = sum(np.exp(score.token_log_probabilities[1]) for score in scores)
    assert total == pytest.approx(1.0, abs=1e-5)
