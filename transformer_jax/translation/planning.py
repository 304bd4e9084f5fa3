"""Which sentences are translated together, and in which of a few shapes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SOURCE_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Padded source lengths: each (rows, length) met is compiled once."""


class SourceBatch(NamedTuple):
    """Sentences in one shape; rows beyond `indices` only fill it up."""

    indices: np.ndarray
    """Places of the sentences in the list given."""
    rows: int
    length: int


def plan_batches(
    lengths: Sequence[int], *, positions: int, longest: int
) -> Iterator[SourceBatch]:
    """Longest sentences first, as many rows as `positions` allow at their length.

    A batch's length is the first of `SOURCE_LENGTHS` that holds its longest sentence,
    but at most `longest`. A batch that is not full has a power of four of rows.

    >>> batches = plan_batches([9, 3, 2, 4], positions=32, longest=1024)
    >>> [(batch.indices.tolist(), batch.rows, batch.length) for batch in batches]
    [([0, 3], 2, 16), ([1, 2], 4, 8)]
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    start = 0
    while start < len(order):
        needed = lengths[order[start]]
        length = next((size for size in SOURCE_LENGTHS if size >= needed), longest)
        length = min(length, longest)
        rows = full_rows(positions, length)
        indices = order[start : start + rows]
        if len(indices) < rows:
            rows = min(rows, next_power_of_four(len(indices)))
        yield SourceBatch(indices, rows, length)
        start += len(indices)


def full_rows(positions: int, length: int) -> int:
    """Rows of a full batch: at least one, and a multiple of eight when more than that.

    >>> full_rows(4096, 24), full_rows(100, 24), full_rows(10, 24)
    (168, 4, 1)
    """
    rows = max(1, positions // length)
    return rows if rows < 8 else rows // 8 * 8


def next_power_of_four(count: int) -> int:
    """The least power of four that is not below `count`.

    >>> [next_power_of_four(n) for n in (1, 2, 4, 5, 64)]
    [1, 4, 4, 16, 64]
    """
    power = 1
    while power < count:
        power *= 4
    return power
