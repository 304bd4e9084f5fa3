"""How good translations are: sacreBLEU's metrics, and the loss on a dev set."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformer_jax.data.batching import Batch
from transformer_jax.training.metrics import Metrics, merge
from transformer_jax.types import Params

METRICS = ("bleu", "chrf", "ter")


def evaluate_translation(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
    metrics: Sequence[str] = METRICS,
) -> dict[str, Any]:
    """BLEU, chrF and TER of a whole text by sacreBLEU, each with its signature.

    `lowercase` and `tokenize` (of BLEU) are sacreBLEU's; TER ignores case, as there.
    Keys: bleu, bleu_signature, chrf, chrf_signature, ter, ter_signature.

    >>> scores = evaluate_translation(["a beer , please"], ["a beer , please"])
    >>> scores["bleu"], scores["chrf"], scores["ter"]
    (100.0, 100.0, 0.0)
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if len(hypotheses) != len(references):
        raise ValueError(
            f"There are {len(hypotheses)} translations and {len(references)} "
            "references: line n of one must answer line n of the other. First line "
            f"without a partner: {min(len(hypotheses), len(references)) + 1}."
        )
    if not references:
        raise ValueError("There is nothing to evaluate: give at least one line.")
    makers: dict[str, Callable[[], Any]] = {
        # Told that the text is tokenised, it need not warn of that.
        "bleu": lambda: BLEU(
            lowercase=lowercase, tokenize=tokenize, force=tokenize == "none"
        ),
        "chrf": lambda: CHRF(lowercase=lowercase),
        "ter": lambda: TER(),
    }
    found: dict[str, Any] = {}
    for name in metrics:
        if name not in makers:
            raise ValueError(f"There is no metric {name!r}: choose from {METRICS}.")
        metric = makers[name]()
        # Rounded past sacreBLEU's own noise: a perfect BLEU is 100.00000000000004.
        score = metric.corpus_score(list(hypotheses), [list(references)]).score
        found[name] = round(score, 10)
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


def check_tokenizer(tokenize: str) -> None:
    """Raises if BLEU's tokenizer of this name lacks a library that it needs.

    >>> check_tokenizer("13a")
    """
    from sacrebleu.metrics.bleu import BLEU

    try:
        BLEU(tokenize=tokenize)
    except (ImportError, RuntimeError):
        language = tokenize.split("-")[0]
        raise ValueError(
            f"BLEU's tokenizer {tokenize!r} needs a library that is not installed: "
            f"pip install 'sacrebleu[{language}]', or choose another (char needs none)."
        ) from None


def dev_loss(
    eval_step: Callable[[Params, Batch], Metrics],
    params: Params,
    batches: Iterable[Batch],
) -> Metrics:
    """The metrics of all batches, added: sums and weights, not yet divided."""
    total: Metrics | None = None
    for batch in batches:
        metrics = eval_step(params, batch)
        total = metrics if total is None else merge(total, metrics)
    if total is None:
        raise ValueError(
            "The dev split has no sentences: give one that has (data.dev_split)."
        )
    return total
