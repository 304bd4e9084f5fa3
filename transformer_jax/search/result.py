"""What every search returns, and how it compares hypotheses of different lengths."""

from typing import Literal, NamedTuple

import numpy as np

from transformer_jax.types import Array

LengthPenalty = Literal["average", "gnmt", "none"]
StopRule = Literal["first", "beams", "bound"]


class SearchResult(NamedTuple):
    """The n best hypotheses of each sentence, best first.

    A hypothesis is a whole target: the end token is its last, and counts in its length
    and probability. Places after it hold zeros. Where fewer than n were found, the rest
    have length 0 and score -inf.
    """

    tokens: Array
    """[B, n, T] int32, without the start token."""
    lengths: Array
    """[B, n] int32, end token included."""
    scores: Array
    """[B, n]: log-probability over length penalty."""
    log_probabilities: Array
    """[B, n]: the sum over the tokens, in nats."""
    token_log_probabilities: Array
    """[B, n, T]: of each token given those before it."""


def penalty_table(kind: LengthPenalty, alpha: float, max_length: int) -> np.ndarray:
    """What a log-probability is divided by, for lengths 0 … T: [T + 1].

    - "average": length^α (fairseq, Marian, Hugging Face);
    - "gnmt": ((5 + length) / 6)^α (Wu et al., 2016, equation 14);
    - "none": 1.

    It never falls with length, so a hypothesis of log-probability p that may grow to T
    tokens never scores above p / penalty(T): search stops on that bound.

    >>> penalty_table("gnmt", 1.0, 7).tolist()[1::6]
    [1.0, 2.0]
    """
    if kind not in ("average", "gnmt", "none"):
        raise ValueError(
            f"length_penalty is {kind!r}: choose 'average', 'gnmt' or 'none'."
        )
    if alpha < 0:
        raise ValueError(f"alpha is {alpha}: it must be at least 0.")
    lengths = np.arange(max_length + 1, dtype=np.float64)
    lengths[0] = 1  # No hypothesis is empty; this keeps the table free of zeros.
    if kind == "average":
        penalties = lengths**alpha
    elif kind == "gnmt":
        penalties = ((5 + lengths) / 6) ** alpha
    else:
        penalties = np.ones_like(lengths)
    return penalties.astype(np.float32)


def without_scores(result: SearchResult) -> SearchResult:
    """The targets alone: what nobody asked is None, and takes neither time nor room."""
    return result._replace(
        scores=None, log_probabilities=None, token_log_probabilities=None
    )


def with_nan_scores(result: SearchResult) -> SearchResult:
    """On the host, targets without scores with nan in their place."""
    of_each = np.full(result.lengths.shape, np.nan, np.float32)
    of_tokens = np.full(result.tokens.shape, np.nan, np.float32)
    return result._replace(
        scores=of_each, log_probabilities=of_each, token_log_probabilities=of_tokens
    )
