"""Minimum Bayes risk: of many samples, the one that is most like all of them.

The expected utility of a candidate h is the mean of u(h, r) over the samples r, each
taken as if it were the reference (Kumar and Byrne, 2004; Eikema and Aziz, 2020, section
4). The samples are the candidates too.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Utility = Literal["chrf", "bleu"]

CHRF_ORDER, BLEU_ORDER = 6, 4
BETA = 2
"""chrF2: recall counts twice as much as precision."""


def by_expected_utility(
    samples: Sequence[str], utility: Utility
) -> list[tuple[int, float]]:
    """The different samples, best first: the first place of each, and its utility.

    A sample that came twice counts twice, and is compared once. Equals keep their
    order; utilities are rounded past the noise of adding them up in another order.

    >>> by_expected_utility(["a dog", "a cat", "the dog", "a dog"], "chrf")[0][0]
    0
    """
    weights = Counter(samples)
    texts = list(weights)
    utilities = utility_table(texts, utility) @ np.array([weights[t] for t in texts])
    utilities = np.round(utilities / len(samples), 10)
    order = np.argsort(-utilities, kind="stable")
    return [(samples.index(texts[i]), float(utilities[i])) for i in order]


def utility_table(texts: Sequence[str], utility: Utility) -> np.ndarray:
    """u(h, r) of each pair of n texts [n, n], h down and r across, from 0 to 100.

    They are sacreBLEU's sentence scores: chrF2, or BLEU with exponential smoothing and
    as many orders as the text has. n-grams of a text are counted once, and not again
    for each pair as there.
    """
    return {"chrf": _chrf_table, "bleu": _bleu_table}[utility](texts)


def _chrf_table(texts: Sequence[str]) -> np.ndarray:
    """F2 of precision and recall, each the mean over the orders that both texts have
    (Popović, 2015)."""
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    counted = [extract_all_char_ngrams(text, CHRF_ORDER) for text in texts]
    shape = len(texts), len(texts)
    precisions, recalls, orders = np.zeros((3, *shape))
    for order in range(CHRF_ORDER):
        matches, totals = _matches([each[order] for each in counted])
        here, references = np.maximum(totals, 1)[:, None], np.maximum(totals, 1)[None]
        precisions += matches / here
        recalls += matches / references
        orders += (totals[:, None] > 0) & (totals[None] > 0)
    weighted = BETA**2 * precisions + recalls
    product = precisions * recalls / np.maximum(orders, 1)
    return 100 * (1 + BETA**2) * product / np.where(weighted > 0, weighted, 1)


def _bleu_table(texts: Sequence[str]) -> np.ndarray:
    """BLEU of one sentence (Chen and Cherry, 2014, smoothing 3)."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    split = BLEU().tokenizer
    counted = [
        extract_all_word_ngrams(split(text.rstrip()), 1, BLEU_ORDER) for text in texts
    ]
    parts = [
        _matches([_of_order(ngrams, order) for ngrams, _ in counted])
        for order in range(1, BLEU_ORDER + 1)
    ]
    matches = np.stack([matches for matches, _ in parts], axis=-1)  # [n, n, order]
    totals = np.stack([totals for _, totals in parts], axis=-1)  # [n, order]
    lengths = [length for _, length in counted]
    table = np.zeros(matches.shape[:2])
    for h, r in np.ndindex(*table.shape):
        table[h, r] = BLEU.compute_bleu(
            correct=matches[h, r].tolist(),
            total=totals[h].tolist(),
            sys_len=lengths[h],
            ref_len=lengths[r],
            smooth_method="exp",
            effective_order=True,
        ).score
    return table


def _of_order(ngrams: Counter[Any], order: int) -> Counter[Any]:
    return Counter({each: n for each, n in ngrams.items() if len(each) == order})


def _matches(ngrams: Sequence[Counter[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """How many n-grams each two of n texts share [n, n], and how many each has [n]."""
    places = {each: i for i, each in enumerate(set().union(*ngrams))}
    counts = np.zeros((len(ngrams), len(places)), np.int64)
    for row, counter in zip(counts, ngrams, strict=True):
        row[[places[each] for each in counter]] = list(counter.values())
    shared = [
        np.minimum(counts[:, own], row[own]).sum(axis=1)
        for row, own in zip(counts, counts > 0, strict=True)
    ]
    return np.stack(shared), counts.sum(axis=1)
