"""What a search found, as text."""

import dataclasses

from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.search.result import SearchResult
from transformer_jax.translation.mbr import Utility, by_expected_utility


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One translation of a sentence."""

    text: str
    score: float
    """Log-probability over the length penalty (see `SearchConfig.length_penalty`); of
    minimum Bayes risk, the expected utility."""
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


def least_risk(
    samples: tuple[Hypothesis, ...], utility: Utility
) -> tuple[Hypothesis, ...]:
    """The different ones, best first; their score is their expected utility."""
    ranked = by_expected_utility([each.text for each in samples], utility)
    return tuple(dataclasses.replace(samples[i], score=mean) for i, mean in ranked)


def as_translation(
    hypotheses: tuple[Hypothesis, ...], *, truncated: bool
) -> Translation:
    """The best of the hypotheses, and all of them; without any, an empty one."""
    nothing = Hypothesis("", 0.0, 0.0, (), ())
    hypotheses = hypotheses or (nothing,)
    best = {
        field.name: getattr(hypotheses[0], field.name)
        for field in dataclasses.fields(Hypothesis)
    }
    return Translation(**best, hypotheses=hypotheses, truncated=truncated)
