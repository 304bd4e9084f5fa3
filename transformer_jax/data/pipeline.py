"""From sentence pairs to batches: one Grain pipeline for training, one for evaluation.

Training reads an endless stream: position p is pair p mod n of epoch p div n, in that
epoch's own order. Everything follows from (seed, position), so what has been read so
far is a number, what waits to be batched is a list of numbers, and that is all a
checkpoint holds. Every process forms the same global batches and takes its own rows.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

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
from transformer_jax.data.examples import Example, FilterCounts, judge, make_example

if TYPE_CHECKING:
    from transformer_jax.data.sources import Pair, PairSource
    from transformer_jax.data.tokenizer import Tokenizer

__all__ = ["EvalBatch", "TrainBatches", "batch_shapes", "eval_batches", "train_batches"]

MAX_REMEMBERED = 1_000_000
"""Pairs whose ids are kept in memory, so that later epochs need not encode them."""
READ_AHEAD = 4
"""Batches that a background thread keeps ready."""


class _Encoder:
    """(position in the stream, index of the pair) → example.

    With subword sampling each position has a seed of its own. Without it a pair is
    always the same example, and is remembered.
    """

    def __init__(self, pairs: "PairSource", tokenizer: "Tokenizer", config: Config):
        self._pairs = pairs
        self._tokenizer = tokenizer
        self._model = config.model
        self._seed = config.seed
        self._sampling = config.tokenizer.sampling > 0
        self._remembered: dict[int, Example] = {}

    def __call__(self, position: int, index: int) -> Example:
        if self._sampling:
            seed = _mix(self._seed, position)
            return self._encode(index, seed)
        example = self._remembered.get(index)
        if example is None:
            example = self._encode(index, None)
            if len(self._remembered) < MAX_REMEMBERED:
                self._remembered[index] = example
        return example

    def _encode(self, index: int, seed: int | None) -> Example:
        return make_example(self._pairs[index], self._tokenizer, self._model, seed=seed)


def _mix(seed: int, position: int) -> int:
    """A 31-bit number that looks random (the finaliser of SplitMix64)."""
    mask = 2**64 - 1
    z = (seed * 0xD1342543DE82EF95 + position * 0x9E3779B97F4A7C15 + 1) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 33


def _example_stream(
    pairs: "PairSource", tokenizer: "Tokenizer", config: Config
) -> grain.MapDataset[Example]:
    """The endless stream, by position."""
    indices = grain.MapDataset.range(len(pairs)).seed(config.seed)
    encoder = _Encoder(pairs, tokenizer, config)
    return indices.shuffle().repeat().map_with_index(encoder)


class _Settings(NamedTuple):
    """What the batches depend on, besides the stream."""

    config: Config
    num_pairs: int
    pad_id: int
    rows_multiple: int
    process_index: int
    process_count: int


class _Batches(grain.IterDataset[Batch]):
    """Filter, batch, and take this process's rows. Its iterators save and restore."""

    def __init__(self, stream: grain.MapDataset[Example], settings: _Settings):
        super().__init__(stream)
        self._stream = stream
        self._settings = settings

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self._stream, self._settings)


class _BatchIterator(grain.DatasetIterator[Batch]):
    """Reads the stream until the batcher has a batch."""

    def __init__(self, stream: grain.MapDataset[Example], settings: _Settings):
        super().__init__()
        self._stream = stream
        self._settings = settings
        self._position = 0
        self._counts = FilterCounts()
        self._batcher = _make_batcher(settings)

    def __next__(self) -> Batch:
        while (ready := self._batcher.pop(self._position)) is None:
            self._read()
        rows = [[placed.example for placed in row] for row in ready.rows]
        _, _, pad_id, _, index, count = self._settings
        mine = ready.num_rows // count
        shape = (mine, ready.length, ready.length)
        return stack_rows(rows[index * mine : (index + 1) * mine], shape, pad_id)

    def _read(self) -> None:
        config, num_pairs = self._settings[:2]
        example = self._example_at(self._position)
        verdict = judge(example, config.data)
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

    def _example_at(self, position: int) -> Example:
        return cast(Example, self._stream[position])  # nothing is filtered in Grain

    def get_state(self) -> dict[str, Any]:
        return {
            **_identity(self._settings),
            "position": self._position,
            "counts": self._counts._asdict(),
            "pending": self._batcher.pending(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        for name, value in _identity(self._settings).items():
            if state.get(name) != value:
                raise ValueError(
                    f"The saved data position has {name} {state.get(name)!r}, but this "
                    f"run has {value!r}: it belongs to other data or settings. Use the "
                    "same data, or another workdir."
                )
        self._position = state["position"]
        self._counts = FilterCounts(**state["counts"])
        self._batcher = _make_batcher(self._settings)
        self._batcher.restore(state["pending"], self._example_at)


def _make_batcher(settings: _Settings) -> Batcher:
    shapes = batch_shapes(settings.config, rows_multiple=settings.rows_multiple)
    if settings.config.data.batching == "pack":
        return Packer(shapes[0])
    return Buckets(shapes, max_wait=settings.num_pairs)


def _identity(settings: _Settings) -> dict[str, Any]:
    """What must not change between saving a position and going on from it."""
    return {
        "batching": settings.config.data.batching,
        "num_pairs": settings.num_pairs,
        "seed": settings.config.seed,
    }


class TrainBatches:
    """Batches for ever, each epoch in another order, read ahead in the background.

    The state is that of the batch returned last, however far reading is ahead.
    """

    def __init__(self, batches: grain.IterDataset[Batch], num_pairs: int):
        self._num_pairs = num_pairs
        ahead = grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=READ_AHEAD
        )
        self._iterator = iter(ahead)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """What JSON can hold, and `set_state` goes on from."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on behind the batch that was returned last when `state` was got."""
        self._iterator.set_state(state)

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator.close()

    @property
    def epoch(self) -> int:
        """Whole epochs read up to the batch returned last."""
        return self.get_state()["position"] // self._num_pairs

    @property
    def counts(self) -> FilterCounts:
        """What the filter did up to the batch returned last; only in the first epoch
        does it count, so that each pair counts once."""
        return FilterCounts(**self.get_state()["counts"])


def train_batches(
    pairs: "PairSource",
    tokenizer: "Tokenizer",
    config: Config,
    *,
    rows_multiple: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Shuffled, filtered training batches without end; this process's rows of each."""
    if len(pairs) == 0:
        raise ValueError(
            f"The training split {config.data.train_split!r} of {config.data.name} "
            "holds no pairs: choose another with data.train_split."
        )
    if rows_multiple % process_count:
        raise ValueError(
            f"Rows come in multiples of {rows_multiple}, which {process_count} "
            "processes cannot share evenly: use a number of devices that is a "
            "multiple of the processes."
        )
    settings = _Settings(
        config,
        len(pairs),
        tokenizer.pad_id,
        rows_multiple,
        process_index,
        process_count,
    )
    # Says at once, and not in the background, when rows do not fit.
    batch_shapes(config, rows_multiple=rows_multiple)
    stream = _example_stream(pairs, tokenizer, config)
    return TrainBatches(_Batches(stream, settings), len(pairs))


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
    longer = np.array([max(lengths(example)) for example in examples], np.int64)
    order = np.argsort(-longer, kind="stable")
    start = 0
    while start < len(order):
        length = round_length(int(longer[order[start]]))
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
