"""Minimum Bayes risk against sacreBLEU and a plain double loop."""

import random
from collections import Counter

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from test_translator import LINES, make_translator

from transformer_jax.config import SearchConfig
from transformer_jax.translation.mbr import by_expected_utility, utility_table

METRICS = {"chrf": CHRF(), "bleu": BLEU(effective_order=True)}
UTILITIES = pytest.mark.parametrize("utility", ["chrf", "bleu"])
WORDS = ("a", "the", "dog,", "cat", "walks", "under", "ä", "🍺", "tables.", "in")


def random_texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count)]


@UTILITIES
def test_utilities_are_sacrebleus_sentence_scores(utility):
    texts = ["", " ", "a", "...", *random_texts(0, 20)]
    table = utility_table(texts, utility)
    for h, hypothesis in enumerate(texts):
        for r, reference in enumerate(texts):
            expected = METRICS[utility].sentence_score(hypothesis, [reference]).score
            assert table[h, r] == pytest.approx(expected, abs=1e-9)


@UTILITIES
def test_the_best_is_that_of_a_plain_double_loop(utility):
    for seed in range(5):
        samples = random.Random(seed).choices(random_texts(seed, 7), k=20)
        score = METRICS[utility].sentence_score
        risks = [
            np.mean([score(each, [other]).score for other in samples])
            for each in samples
        ]
        first = [i for i, each in enumerate(samples) if each not in samples[:i]]
        expected = sorted(first, key=lambda i: (-round(risks[i], 8), i))
        found = by_expected_utility(samples, utility)
        assert [place for place, _ in found] == expected
        np.testing.assert_allclose(
            [mean for _, mean in found], [risks[i] for i in expected], atol=1e-8
        )


@UTILITIES
def test_equals_keep_their_order(utility):
    texts = ["xx yy", "vv ww", "tt uu"]
    found = by_expected_utility(texts, utility)
    assert [place for place, _ in found] == [0, 1, 2]


SAMPLING = SearchConfig(
    method="sampling",
    n_best=8,
    temperature=0.4,
    top_k=3,
    max_length_factor=1.0,
    max_length_offset=5,
)


def test_a_translator_gives_the_samples_with_the_best_utility():
    ours = make_translator(SAMPLING)
    settings = {**vars(SAMPLING), "mbr": "chrf", "mbr_samples": 8, "n_best": 2}
    chosen = ours.translate(LINES[:2], search=SearchConfig(**settings))
    for samples, found in zip(ours.translate(LINES[:2]), chosen, strict=True):
        texts = [each.text for each in samples.hypotheses]
        assert len(texts) == 8
        best = by_expected_utility(texts, "chrf")[:2]
        assert [each.text for each in found.hypotheses] == [texts[i] for i, _ in best]
        assert [each.score for each in found.hypotheses] == [u for _, u in best]
        assert found.text == found.hypotheses[0].text
        assert found.tokens == samples.hypotheses[best[0][0]].tokens


def test_samples_of_a_line_stay_the_same_in_another_chunk():
    ours = make_translator(SAMPLING)
    together = ours.translate(LINES[:4])
    apart = ours.translate(LINES[:1])
    apart += ours.translate(LINES[1:4], first_line=2)
    texts = lambda found: [[h.text for h in f.hypotheses] for f in found]  # noqa: E731
    assert texts(together) == texts(apart)
    again = ours.translate([LINES[0]] * 2)
    assert Counter(texts(again)[0]) != Counter(texts(again)[1])


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="method is 'beam'"):
        SearchConfig(mbr="chrf")
    with pytest.raises(ValueError, match="mbr_samples"):
        SearchConfig(method="sampling", mbr="chrf", mbr_samples=4, n_best=5)
