"""The `Batch` tuple, and the two ways to form one: length buckets and packed rows.

A row is a list of examples: one in a bucketed batch, several in a packed one. The
k-th example of a row has segment number k on both sides, so that masks made from
segment ids let a target read its own source only.

`Buckets` and `Packer` decide which examples share a batch. What they hold is told by
the examples' positions in the stream alone, which is why a saved position is small.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from transformer_jax.config import Config
from transformer_jax.data.examples import Example


class Batch(NamedTuple):
    """What a model is trained or scored on: int32, [B, S] or [B, T].

    Places without a token hold pad_id, segment 0 and position 0. Segments count from
    1 in each row; positions from 0 in each segment.
    """

    inputs: Any
    input_segment_ids: Any
    input_positions: Any
    decoder_inputs: Any
    targets: Any
    target_segment_ids: Any
    target_positions: Any


class Placed(NamedTuple):
    """An example, and its position in the endless stream of the epochs."""

    position: int
    example: Example


Lookup = Callable[[int], Example]


def lengths(example: Example) -> tuple[int, int]:
    """(S, T) of an example, end tokens included."""
    return len(example["inputs"]), len(example["targets"])


class Ready(NamedTuple):
    """Rows that form a batch of `num_rows` rows (if they are fewer, the rest is
    padding), `length` positions long on both sides."""

    rows: list[list[Placed]]
    num_rows: int
    length: int


def stack_rows(
    rows: Sequence[Sequence[Example]], shape: tuple[int, int, int], pad_id: int
) -> Batch:
    """Rows of examples → one batch of shape (B, S, T), padded with empty rows to B.

    Raises ValueError for examples that have no room in their row.
    """
    B, S, T = shape
    examples = [example for row in rows for example in row]
    in_row = [len(row) for row in rows]
    source = _lay_out([len(each["inputs"]) for each in examples], in_row, (B, S))
    target = _lay_out([len(each["targets"]) for each in examples], in_row, (B, T))
    return Batch(
        inputs=source.spread([each["inputs"] for each in examples], pad_id),
        input_segment_ids=source.spread([source.segments]),
        input_positions=source.spread([source.positions]),
        decoder_inputs=target.spread(
            [each["decoder_inputs"] for each in examples], pad_id
        ),
        targets=target.spread([each["targets"] for each in examples], pad_id),
        target_segment_ids=target.spread([target.segments]),
        target_positions=target.spread([target.positions]),
    )


class _Layout(NamedTuple):
    """Where the n tokens of some examples lie in one side [B, L] of a batch."""

    shape: tuple[int, int]
    places: np.ndarray
    """[n], counted through all rows."""
    segments: np.ndarray
    """[n]"""
    positions: np.ndarray
    """[n]"""

    def spread(self, values: Sequence[np.ndarray], elsewhere: int = 0) -> np.ndarray:
        """n values, in one piece or in some → [B, L]."""
        spread = np.full(math.prod(self.shape), elsewhere, np.int32)
        if values:
            spread[self.places] = np.concatenate(values)
        return spread.reshape(self.shape)


def _lay_out(
    sizes: Sequence[int], in_row: Sequence[int], shape: tuple[int, int]
) -> _Layout:
    """Examples of these sizes side by side, so many in each row."""
    length = shape[1]
    size, count = np.array(sizes, np.int64), np.array(in_row, np.int64)
    row = np.repeat(np.arange(len(count)), count)  # of each example
    before = np.cumsum(size) - size
    first = np.cumsum(count) - count  # example of each row
    start = before - before[first[row]] if len(row) else before
    if (start + size > length).any():
        most = int((start + size).max())
        raise ValueError(
            f"The examples of a row have {most} tokens on a side, and a row of this "
            f"batch has {length} places: put them into more rows."
        )
    segment = np.arange(len(row)) - first[row] + 1
    position = np.arange(int(size.sum())) - np.repeat(before, size)
    places = np.repeat(row * length + start, size) + position
    return _Layout(shape, places, np.repeat(segment, size), position)


def num_rows(batch_tokens: int, length: int, rows_multiple: int) -> int:
    """Rows of `length` positions that the token budget holds, in whole multiples.

    >>> num_rows(4096, length=48, rows_multiple=8)
    80
    """
    rows = batch_tokens // length // rows_multiple * rows_multiple
    if rows == 0:
        raise ValueError(
            f"data.batch_tokens is {batch_tokens}, which holds "
            f"{batch_tokens // length} rows of {length} positions, but rows must come "
            f"in multiples of {rows_multiple} (devices that share the batch × "
            f"train.accumulate): raise data.batch_tokens to at least "
            f"{length * rows_multiple}, or lower the row length, the devices or "
            "train.accumulate."
        )
    return rows


def batch_shapes(config: Config, *, rows_multiple: int) -> list[tuple[int, int, int]]:
    """Every (B, S, T) that training can meet, over all processes, shortest first."""
    data = config.data
    if data.batching == "pack":
        padded = [data.pack_length]
    else:
        # Buckets past the first that holds max_length would stay empty.
        padded = [
            length
            for shorter, length in zip(
                (0, *data.bucket_lengths), data.bucket_lengths, strict=False
            )
            if shorter < data.max_length
        ]
    return [
        (num_rows(data.batch_tokens, length, rows_multiple), length, length)
        for length in padded
    ]


class Batcher(Protocol):
    """Collects examples until some of them form a batch.

    What it does next depends on what it holds and on nothing else, so that a
    `restore` of what `pending` told goes on alike.
    """

    def add(self, placed: Placed) -> None:
        """Take in the next example of the stream."""
        ...

    def pop(self, position: int) -> Ready | None:
        """The next batch, if there is one now that `position` examples were read."""
        ...

    def pending(self) -> list[list[int]]:
        """Positions of the examples held, in groups."""
        ...

    def restore(self, pending: list[list[int]], lookup: Lookup) -> None:
        """Hold again what `pending` told; `lookup` gives the example at a position."""
        ...


class Buckets:
    """One pair a row; rows of about the same length share a batch.

    A pair goes to the shortest bucket that holds its longer side. Full buckets become
    batches. Rare lengths, and small data sets, never fill theirs: so pairs that have
    waited for half of `max_wait` (an epoch) may go along in any longer batch, and a
    bucket whose first pair has waited for all of it is a batch, with shorter pairs in
    the rows that are left.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], *, max_wait: int):
        self._shapes = list(shapes)
        self._max_wait = max_wait
        self._buckets: list[list[Placed]] = [[] for _ in shapes]

    def add(self, placed: Placed) -> None:
        """Put the pair into its bucket."""
        longer = max(lengths(placed.example))
        for bucket, (_, length, _) in zip(self._buckets, self._shapes, strict=True):
            if longer <= length:
                bucket.append(placed)
                return
        raise ValueError(
            f"A pair of {longer} pieces came, but the longest bucket holds "
            f"{self._shapes[-1][1]}: raise data.bucket_lengths or lower "
            "data.max_length."
        )

    def pop(self, position: int) -> Ready | None:
        """The first bucket that is full or has waited too long."""
        for place, (B, length, _) in enumerate(self._shapes):
            bucket = self._buckets[place]
            if len(bucket) >= B or (
                bucket and position - bucket[0].position >= self._max_wait
            ):
                late = position - self._max_wait // 2
                return Ready([[p] for p in self._take(place, B, late)], B, length)
        return None

    def _take(self, place: int, count: int, late: int) -> list[Placed]:
        """Late pairs of shorter buckets, this bucket's own, others of shorter ones."""
        taken: list[Placed] = []
        shorter = self._buckets[:place]
        for bucket, only_late in (
            *((bucket, True) for bucket in shorter),
            (self._buckets[place], False),
            *((bucket, False) for bucket in reversed(shorter)),
        ):
            chosen = bucket[: count - len(taken)]
            if only_late:
                chosen = [placed for placed in chosen if placed.position <= late]
            taken += chosen
            del bucket[: len(chosen)]  # oldest first, so the late ones lead
        return taken

    def pending(self) -> list[list[int]]:
        """Positions of the pairs that wait, by bucket."""
        return [[placed.position for placed in bucket] for bucket in self._buckets]

    def restore(self, pending: list[list[int]], lookup: Lookup) -> None:
        """Hold again what `pending` told."""
        self._buckets = [[Placed(p, lookup(p)) for p in group] for group in pending]


class Packer:
    """Several pairs a row, chosen from a window of pairs that wait.

    A row starts with the pair that has waited longest, so that none waits for ever.
    Then comes, again and again, the pair that fills the row most and leaves it most
    even, of those that fit: largest S + T - 2 |room left in S - room left in T|.
    """

    def __init__(self, shape: tuple[int, int, int], *, window: int = 256):
        self._num_rows, self._length, _ = shape
        self._waiting: list[Placed] = []
        self._sizes = np.zeros((2, window), np.int32)  # S and T of those that wait
        self._rows: list[list[Placed]] = []

    def add(self, placed: Placed) -> None:
        """Let the pair wait; form a row if the window is full."""
        size = lengths(placed.example)
        if max(size) > self._length:
            raise ValueError(
                f"A pair of {max(size)} pieces came, but a packed row holds "
                f"{self._length}: raise data.pack_length or lower data.max_length."
            )
        self._sizes[:, len(self._waiting)] = size
        self._waiting.append(placed)
        if len(self._waiting) == self._sizes.shape[1]:
            self._rows.append(self._form_row())

    def _form_row(self) -> list[Placed]:
        S, T = self._sizes.copy()
        size, unevenness = S + T, S - T
        room_s = room_t = self._length
        chosen: list[int] = []
        best = 0
        while True:
            chosen.append(best)
            room_s -= S.item(best)
            room_t -= T.item(best)
            S[best] = self._length + 1  # taken: fits no more
            (fits,) = ((room_s >= S) & (room_t >= T)).nonzero()
            if not len(fits):
                break
            left = abs(room_s - room_t - unevenness[fits])
            best = fits.item((size[fits] - 2 * left).argmax())
        row = [self._waiting[place] for place in chosen]
        for place in sorted(chosen, reverse=True):
            del self._waiting[place]
        self._sizes[:, : len(self._waiting)] = self._sizes[:, self._length >= S]
        return row

    def pop(self, position: int) -> Ready | None:
        """The rows, when there are enough."""
        del position  # nobody waits long here
        if len(self._rows) < self._num_rows:
            return None
        rows = self._rows[: self._num_rows]
        del self._rows[: self._num_rows]
        return Ready(rows, self._num_rows, self._length)

    def pending(self) -> list[list[int]]:
        """Positions of the pairs that wait, then of those in each row formed."""
        groups = [self._waiting, *self._rows]
        return [[placed.position for placed in group] for group in groups]

    def restore(self, pending: list[list[int]], lookup: Lookup) -> None:
        """Hold again what `pending` told."""
        groups = [[Placed(p, lookup(p)) for p in group] for group in pending]
        self._waiting, *self._rows = groups
        for place, placed in enumerate(self._waiting):
            self._sizes[:, place] = lengths(placed.example)
