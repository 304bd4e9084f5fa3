"""From sentence pairs to batches: one Grain pipeline for training, one for evaluation.

Training reads the endless stream of `stream.py`, in which a position tells everything:
what has been read so far is a number, what waits to be batched is a list of numbers,
and that is all a checkpoint holds. Every process forms the same global batches and
takes the rows of its own devices.

Batches are formed in a thread of the training process, or in a process beside it, so
that neither of the two waits for the other's Python.
"""

import pickle
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import grain
import numpy as np

from transformer_jax.config import Config, ModelConfig
from transformer_jax.data.batching import (
    Batch,
    Batcher,
    Buckets,
    Packer,
    Placed,
    batch_shapes,
    lengths,
    stack_rows,
)
from transformer_jax.data.examples import (
    FilterCounts,
    check_positions,
    judge,
    make_example,
)
from transformer_jax.data.stream import ExampleStream, ReadBeside, Reader

if TYPE_CHECKING:
    from transformer_jax.data.sources import Pair, PairSource
    from transformer_jax.data.tokenizer import Tokenizer

__all__ = ["EvalBatch", "TrainBatches", "batch_shapes", "eval_batches", "train_batches"]

READ_AHEAD = 4
"""Batches that a background thread, or the queue of a process, keeps ready."""


class _Settings(NamedTuple):
    """What the batches depend on, besides the stream."""

    config: Config
    pad_id: int
    rows_multiple: int
    shares: Sequence[int]
    num_shares: int
    num_encoders: int
    """Processes that encode for the one that forms batches."""


State = dict[str, Any]
"""Where the batches stand, as JSON can hold it."""


class _Batches(grain.IterDataset[tuple[Batch, State]]):
    """Filter, batch, and take this process's rows, from a state on; with each batch
    comes the state after it."""

    def __init__(
        self, stream: ExampleStream, settings: _Settings, state: State | None = None
    ):
        super().__init__()
        self.stream, self.settings, self.state = stream, settings, state

    def __iter__(self) -> "_BatchIterator":
        batches = _BatchIterator(self.stream, self.settings, self.identity)
        if self.state is not None:
            batches.set_state(self.state)
        return batches

    @property
    def identity(self) -> State:
        """What a state must agree with."""
        return {
            "batching": self.settings.config.data.batching,
            "num_pairs": self.stream.num_pairs,
            "seed": self.settings.config.seed,
            "data": self.stream.name,
        }

    def check(self, state: State) -> None:
        """Raises for a state of other batches."""
        for name, value in self.identity.items():
            if state.get(name, value) != value:
                raise ValueError(
                    f"The saved data position has {name} {state.get(name)!r}, but this "
                    f"run has {value!r}: it belongs to other data or settings. Use the "
                    "same data, or another workdir."
                )

    def starting_at(self, state: State) -> "_Batches":
        """The same batches from another state on."""
        return _Batches(self.stream, self.settings, state)


class _BatchIterator(grain.DatasetIterator[tuple[Batch, State]]):
    """Reads the stream until the batcher has a batch."""

    def __init__(self, stream: ExampleStream, settings: _Settings, identity: State):
        super().__init__()
        self._stream = stream
        self._settings = settings
        self._identity = identity
        self._position = 0
        self._counts = FilterCounts()
        self._batcher = self._new_batcher()
        self._reader: Reader | None = None

    def __next__(self) -> tuple[Batch, State]:
        while (ready := self._batcher.pop(self._position)) is None:
            self._read()
        rows = [[placed.example for placed in row] for row in ready.rows]
        settings = self._settings
        size, shares = ready.num_rows // settings.num_shares, settings.shares
        mine = [row for i in shares for row in rows[i * size : (i + 1) * size]]
        shape = (size * len(shares), ready.length, ready.length)
        return stack_rows(mine, shape, settings.pad_id), self.get_state()

    def _read(self) -> None:
        data, num_pairs = self._settings.config.data, self._stream.num_pairs
        if self._reader is None:
            encoders = self._settings.num_encoders
            self._reader = Reader(self._stream, self._position, encoders)
        example = next(self._reader)
        verdict = judge(example, data)
        if self._position < num_pairs:
            self._counts = self._counts.add(verdict)
        elif self._counts.kept == 0:
            raise ValueError(
                f"None of the {num_pairs} training pairs passes the filter: "
                f"{self._counts}. Check that both files are what they should be, or "
                "raise data.max_length or data.max_length_ratio."
            )
        if verdict == "kept":
            self._batcher.add(Placed(self._position, example))
        self._position += 1

    def _new_batcher(self) -> Batcher:
        config = self._settings.config
        shapes = batch_shapes(config, rows_multiple=self._settings.rows_multiple)
        if config.data.batching == "pack":
            return Packer(shapes[0])
        return Buckets(shapes, max_wait=self._stream.num_pairs)

    def get_state(self) -> State:
        return {
            **self._identity,
            "position": self._position,
            "counts": self._counts._asdict(),
            "pending": self._batcher.pending(),
        }

    def set_state(self, state: State) -> None:
        self._stop_reading()
        self._position = state["position"]
        self._counts = FilterCounts(**state["counts"])
        self._batcher = self._new_batcher()
        self._batcher.restore(state["pending"], self._stream.__getitem__)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        self._stop_reading()
        super().close()


class TrainBatches:
    """Batches for ever, each epoch in another order, read ahead in the background: in a
    thread, or in a process of their own if they are to be formed `beside`.

    The state is that of the batch returned last, however far reading is ahead.
    """

    def __init__(self, batches: _Batches, num_pairs: int, *, beside: bool = False):
        self._num_pairs, self._beside = num_pairs, beside
        self._batches = batches
        self._state = iter(batches).get_state()
        self._opened: list[Any] = []
        # Also at exit: Grain complains of iterators that outlive the interpreter.
        self._stop_reading = weakref.finalize(self, _close, self._opened)

    def _open(self) -> None:
        """Starts to read behind the batch that was returned last."""
        batches = self._batches.starting_at(self._state)
        if self._beside:
            options = grain.MultiprocessingOptions(1, READ_AHEAD)
            # As bytes: see `Reader`.
            self._opened.append(ReadBeside(batches.map(pickle.dumps), options))
        else:
            ahead = grain.experimental.ThreadPrefetchIterDataset(
                batches, prefetch_buffer_size=READ_AHEAD
            )
            self._opened.append(iter(ahead))

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        if not self._stop_reading.alive:
            raise ValueError("These batches are closed: open them anew.")
        if not self._opened:
            self._open()
        read = next(self._opened[0])
        batch, self._state = pickle.loads(read) if self._beside else read
        return batch

    def get_state(self) -> State:
        """What JSON can hold, and `set_state` goes on from."""
        return self._state

    def set_state(self, state: State) -> None:
        """Go on behind the batch that was returned last when `state` was got."""
        self._batches.check(state)
        self._state = state
        _close(self._opened)

    def close(self) -> None:
        """Stop reading ahead; can be called again."""
        self._stop_reading()

    @property
    def epoch(self) -> int:
        """Whole epochs read up to the batch returned last."""
        return self._state["position"] // self._num_pairs

    @property
    def counts(self) -> FilterCounts:
        """What the filter did up to the batch returned last; only in the first epoch
        does it count, so that each pair counts once."""
        return FilterCounts(**self._state["counts"])


def _close(opened: list[Any]) -> None:
    while opened:
        opened.pop().close()


def train_batches(
    pairs: "PairSource",
    tokenizer: "Tokenizer",
    config: Config,
    *,
    rows_multiple: int = 1,
    shares: Sequence[int] = (0,),
    num_shares: int = 1,
    num_workers: int = 0,
) -> TrainBatches:
    """Shuffled, filtered training batches without end. Of the `num_shares` equal parts
    of each one's rows, these are the `shares` of this process. `num_workers` counts
    unless `data.num_workers` says how many."""
    if len(pairs) == 0:
        raise ValueError(
            f"The training split {config.data.train_split!r} of {config.data.name} "
            "holds no pairs: choose another with data.train_split."
        )
    if rows_multiple % num_shares:
        raise ValueError(
            f"Rows come in multiples of {rows_multiple}, which cannot be cut into "
            f"{num_shares} equal shares: make one a multiple of the other."
        )
    if config.data.num_workers is not None:
        num_workers = config.data.num_workers
    settings = _Settings(
        config,
        tokenizer.pad_id,
        rows_multiple,
        shares,
        num_shares,
        num_encoders=num_workers if num_workers > 1 else 0,
    )
    # Says at once, and not in the background, when rows do not fit.
    batch_shapes(config, rows_multiple=rows_multiple)
    stream = ExampleStream(pairs, tokenizer, config)
    batches = _Batches(stream, settings)
    return TrainBatches(batches, len(pairs), beside=num_workers == 1)


class EvalBatch(NamedTuple):
    """A batch, and which line each of its rows is."""

    batch: Batch
    indices: np.ndarray
    """[B] line numbers from 0; -1 for rows that only fill up the shape."""


def eval_batches(
    pairs: "Sequence[Pair] | PairSource",
    tokenizer: "Tokenizer",
    model: ModelConfig,
    *,
    batch_tokens: int,
    rows_multiple: int = 1,
) -> Iterator[EvalBatch]:
    """Every pair once, one a row, longest first, in few shapes; none is dropped.

    A batch is as long as its longest side, rounded up by `round_length`, and has as
    many rows as `batch_tokens` allows at that length, but at least `rows_multiple`.
    """
    examples = [
        make_example(pairs[i], tokenizer, model)  # pyright: ignore[reportArgumentType]
        for i in range(len(pairs))
    ]
    for line, example in enumerate(examples, start=1):
        check_positions(example, model, name=f"Line {line}")
    longer = np.array([max(lengths(example)) for example in examples], np.int64)
    order = np.argsort(-longer, kind="stable")
    start = 0
    while start < len(order):
        longest = int(longer[order[start]])
        length = max(longest, min(round_length(longest), model.num_positions))
        rows = max(batch_tokens // length // rows_multiple, 1) * rows_multiple
        chosen = order[start : start + rows]
        indices = np.full(rows, -1, np.int64)
        indices[: len(chosen)] = chosen
        batch = stack_rows(
            [[examples[i]] for i in chosen], (rows, length, length), tokenizer.pad_id
        )
        yield EvalBatch(batch, indices)
        start += rows


def round_length(length: int) -> int:
    """The next of few lengths: multiples of 8 up to 64, then steps of at most 1/4.

    >>> [round_length(n) for n in (1, 9, 60, 65, 129, 1000)]
    [8, 16, 64, 80, 160, 1024]
    """
    step = max(8, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step
