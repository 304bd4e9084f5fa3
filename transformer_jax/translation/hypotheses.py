"""What a search found, as text."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from transformer_jax.config import SearchConfig
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.search.result import SearchResult
from transformer_jax.translation.mbr import Utility, by_expected_utility
from transformer_jax.translation.phrases import missing_phrases

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One translation of a sentence."""

    text: str
    score: float
    """Log-probability over the length penalty (see `SearchConfig.length_penalty`); of
    minimum Bayes risk, the expected utility. nan, as those below, where none was
    asked."""
    log_probability: float
    """Of the whole translation, end token included, in nats."""
    tokens: tuple[str, ...]
    """Pieces, end token included."""
    token_log_probabilities: tuple[float, ...]
    """Of each token, given those before it."""
    ids: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)
    """The tokens' numbers."""
    alignment: tuple[tuple[int, int], ...] | None = dataclasses.field(
        default=None, kw_only=True
    )
    """Pairs (source word, target word), if `alignment.align` was asked for them."""


@dataclasses.dataclass(frozen=True)
class Translation(Hypothesis):
    """The best translation of a line, and the n best of them.

    A line without words has an empty translation, without tokens.
    """

    hypotheses: tuple[Hypothesis, ...]
    """The n best, best first."""
    truncated: bool = False
    """Whether the line was too long, so that only its beginning was translated."""
    missing: tuple[str, ...] = ()
    """Phrases that it was to hold, and does not."""


def hypotheses_of(result: SearchResult, tokenizer: Tokenizer) -> tuple[Hypothesis, ...]:
    """Those that were found of one sentence, best first; `result` without axis B."""
    found = []
    for rank, length in enumerate(result.lengths.tolist()):
        if not length:
            continue
        ids = result.tokens[rank, :length].tolist()
        found.append(
            Hypothesis(
                text=tokenizer.decode_target(ids),
                score=float(result.scores[rank]),
                log_probability=float(result.log_probabilities[rank]),
                tokens=tuple(tokenizer.target_pieces(ids)),
                token_log_probabilities=tuple(
                    result.token_log_probabilities[rank, :length].tolist()
                ),
                ids=tuple(ids),
            )
        )
    return tuple(found)


def translation_of(
    result: SearchResult,
    tokenizer: Tokenizer,
    search: SearchConfig,
    *,
    required: Mapping[str, Sequence[int]],
    truncated: bool,
) -> Translation:
    """What was found of one line, which was to hold the `required` phrases."""
    hypotheses = hypotheses_of(result, tokenizer)
    if search.mbr != "none":
        hypotheses = least_risk(hypotheses, search.mbr)[: search.n_best]
    missing = missing_phrases(required, hypotheses[0].ids if hypotheses else ())
    return as_translation(hypotheses, truncated=truncated, missing=missing)


def least_risk(
    samples: tuple[Hypothesis, ...], utility: Utility
) -> tuple[Hypothesis, ...]:
    """The different ones, best first; their score is their expected utility."""
    ranked = by_expected_utility([each.text for each in samples], utility)
    return tuple(dataclasses.replace(samples[i], score=mean) for i, mean in ranked)


def as_translation(
    hypotheses: tuple[Hypothesis, ...],
    *,
    truncated: bool = False,
    missing: tuple[str, ...] = (),
) -> Translation:
    """The best of the hypotheses, and all of them; without any, an empty one."""
    nothing = Hypothesis("", 0.0, 0.0, (), ())
    hypotheses = hypotheses or (nothing,)
    best = {
        field.name: getattr(hypotheses[0], field.name)
        for field in dataclasses.fields(Hypothesis)
    }
    return Translation(
        **best, hypotheses=hypotheses, truncated=truncated, missing=missing
    )


def warn_of_missing(translations: Sequence[Translation], first_line: int) -> None:
    """Says how many lack phrases."""
    lacking = [i for i, each in enumerate(translations) if each.missing]
    if lacking:
        logger.warning(
            "%d of %d translations lack a phrase that they were to hold. The first is "
            "that of line %d, which lacks %r.",
            len(lacking),
            len(translations),
            first_line + lacking[0],
            translations[lacking[0]].missing[0],
        )
