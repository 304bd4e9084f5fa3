"""sacreBLEU's numbers under our names, and dev metrics as sums."""

import sys
from typing import Any

import pytest
import sacrebleu
from sacrebleu.metrics.chrf import CHRF

from transformer_jax.training.metrics import Mean, Metrics
from transformer_jax.translation.evaluation import (
    check_tokenizer,
    dev_loss,
    evaluate_translation,
)

REFERENCES = ["The man reads a book .", "A dog sleeps under the table .", "two beers"]
HYPOTHESES = ["the man reads the book .", "A dog is under a table .", "two beer"]


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("tokenize", ["13a", "none"])
def test_scores_are_sacrebleus(lowercase, tokenize):
    found = evaluate_translation(
        HYPOTHESES, REFERENCES, lowercase=lowercase, tokenize=tokenize
    )
    bleu = sacrebleu.corpus_bleu(
        HYPOTHESES, [REFERENCES], lowercase=lowercase, tokenize=tokenize
    )
    chrf = CHRF(lowercase=lowercase)
    assert found["bleu"] == pytest.approx(bleu.score)
    assert found["chrf"] == pytest.approx(
        chrf.corpus_score(HYPOTHESES, [REFERENCES]).score
    )
    assert found["ter"] == pytest.approx(
        sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score
    )
    assert f"tok:{tokenize}" in found["bleu_signature"]
    assert f"case:{'lc' if lowercase else 'mixed'}" in found["bleu_signature"]
    assert f"version:{sacrebleu.__version__}" in found["ter_signature"]
    assert found["chrf_signature"].startswith("nrefs:1")


def test_only_the_metrics_asked_for():
    found = evaluate_translation(HYPOTHESES, REFERENCES, metrics=("chrf",))
    assert set(found) == {"chrf", "chrf_signature"}
    with pytest.raises(ValueError, match="no metric 'meteor'"):
        evaluate_translation(HYPOTHESES, REFERENCES, metrics=("meteor",))


def test_other_line_counts_are_an_error():
    with pytest.raises(ValueError, match=r"3 translations and 2 references.*: 3"):
        evaluate_translation(HYPOTHESES, REFERENCES[:2])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_translation([], [])


def test_dev_metrics_are_added():
    def eval_step(params: Any, batch: Any) -> Metrics:
        return {"loss": Mean(params * batch, batch)}

    batches: list[Any] = [1.0, 3.0]
    assert dev_loss(eval_step, 2.0, batches)["loss"] == (8.0, 4.0)
    with pytest.raises(ValueError, match="no sentences"):
        dev_loss(eval_step, 2.0, [])


def test_a_tokenizer_without_its_library_is_named(monkeypatch):
    for name in ("MeCab", "mecab_ko"):
        monkeypatch.setitem(sys.modules, name, None)
    for tokenize, extra in (("ja-mecab", "ja"), ("ko-mecab", "ko")):
        with pytest.raises(ValueError, match=rf"pip install 'sacrebleu\[{extra}\]'"):
            check_tokenizer(tokenize)
