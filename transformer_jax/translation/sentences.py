"""What is asked of the engine, in the arrays that devices read, and what it finds."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.search.beams import FREE, Job
from transformer_jax.search.parallel_greedy import Effort
from transformer_jax.search.result import SearchResult, with_nan_scores
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.planning import SOURCE_LENGTHS, padded_length


class Sentence(NamedTuple):
    """One sentence to be translated."""

    index: int
    """The caller's number of it."""
    inputs: np.ndarray
    """[S] int32, as the model reads them."""
    max_length: int
    """Most target tokens, end included."""
    prefix: tuple[int, ...] = ()
    """Tokens that the target begins with, without the start token."""
    draw: tuple[int, int] = (0, 0)
    """The seed and the sentence's number, by which its samples are drawn."""
    candidates: np.ndarray | None = None
    """Sorted token ids that it may use, the end among them; the prefix is besides. All
    sentences of a queue have some, or none has."""
    phrases: tuple[tuple[int, ...], ...] = ()
    """What its targets must hold."""


class Found(NamedTuple):
    """The n best targets of a sentence."""

    index: int
    result: SearchResult
    """On the host, without the axis B."""
    effort: Effort | None = None
    """Of a search in blocks; so too."""


def stacked(
    sentences: Sequence[Sentence],
    *,
    rows: int,
    longest: int,
    lengths: Sequence[int] = SOURCE_LENGTHS,
) -> tuple[np.ndarray, np.ndarray]:
    """Sources and their segment ids [P, S], S one of a few `lengths`; rows without a
    sentence are all padding."""
    needed = max(len(each.inputs) for each in sentences)
    length = padded_length(needed, lengths, longest)
    inputs, segment_ids = np.zeros((2, rows, length), np.int32)
    for row, sentence in enumerate(sentences):
        inputs[row, : len(sentence.inputs)] = sentence.inputs
        segment_ids[row, : len(sentence.inputs)] = 1
    return inputs, segment_ids


def stacked_jobs(sentences: Sequence[Sentence], *, rows: int, plan: SearchPlan) -> Job:
    """What is asked for each; nothing where there is no sentence."""
    prefix: Any = np.full((rows, plan.prefix_width), FREE, np.int32)
    prefix[:, 0] = plan.start_id
    max_lengths: Any = np.zeros(rows, np.int32)
    draws: Any = np.zeros((rows, 2), np.uint32) if plan.draws else None
    phrases: Any = plan.phrases and np.full((rows, *plan.phrases), FREE, np.int32)
    for row, sentence in enumerate(sentences):
        prefix[row, 1 : 1 + len(sentence.prefix)] = sentence.prefix
        max_lengths[row] = sentence.max_length
        if draws is not None:
            draws[row] = sentence.draw
        for place, phrase in enumerate(sentence.phrases):
            phrases[row, place, : len(phrase)] = phrase
    return Job(prefix, max_lengths, draws, phrases)


def take(queue: deque[Sentence], count: int) -> list[Sentence]:
    """Up to `count` sentences; another thread may take the last ones first."""
    taken: list[Any] = []
    while len(taken) < count:
        try:
            taken.append(queue.popleft())
        except IndexError:
            break
    return taken


def found_in(
    result: SearchResult,
    effort: Effort | None,
    rows: Sequence[tuple[int, int]],
    *,
    plan: SearchPlan,
) -> list[Found]:
    """What is in some rows of what was found, each with the number of its sentence; all
    on the host."""
    if not plan.scores:
        result = with_nan_scores(result)
    return [
        Found(
            index,
            SearchResult(*(x[row] for x in result)),
            effort and Effort(*(x[row] for x in effort)),
        )
        for row, index in rows
    ]
