"""The pairs of all epochs as one endless stream of examples.

Position p is the pair at place p mod n in the order of epoch p div n. Its example
follows from (seed, p) alone, so any position can be read again at any time: that is
how training resumes at the exact batch from a few numbers.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from transformer_jax.config import Config
from transformer_jax.data.examples import Example, make_example

if TYPE_CHECKING:
    from transformer_jax.data.sources import PairSource
    from transformer_jax.data.tokenizer import Tokenizer

MAX_REMEMBERED = 300_000
"""Pairs whose ids are kept in memory, so that later epochs need not encode them."""
CHUNK = 64
"""Examples that a worker process hands over at a time."""


class ExampleStream:
    """The endless stream: position → example, at random access and without a memory.

    With subword sampling each position has a seed of its own. Without it a pair is
    always the same example, and is remembered.
    """

    def __init__(self, pairs: "PairSource", tokenizer: "Tokenizer", config: Config):
        self.num_pairs = len(pairs)
        self.name: str = getattr(pairs, "name", "")  # a plain list has none
        self._pairs = pairs
        self._tokenizer = tokenizer
        self._config = config
        self._orders: dict[int, np.ndarray] = {}
        self._remembered: dict[int, Example] = {}

    def __getitem__(self, position: int) -> Example:
        epoch, place = divmod(position, self.num_pairs)
        index = int(self._order(epoch)[place])
        if self._config.tokenizer.sampling > 0:
            return self._encode(index, seed=_mix(self._config.seed, position))
        if index in self._remembered:
            return self._remembered[index]
        example = self._encode(index, seed=None)
        if len(self._remembered) < MAX_REMEMBERED:
            self._remembered[index] = example
        return example

    def _encode(self, index: int, *, seed: int | None) -> Example:
        pair = self._pairs[index]
        return make_example(pair, self._tokenizer, self._config.model, seed=seed)

    def _order(self, epoch: int) -> np.ndarray:
        # Grain's own shuffle takes milliseconds a pair when pairs are few.
        order = self._orders.get(epoch)
        if order is None:
            if len(self._orders) == 2:  # this epoch, and what waits from the last
                del self._orders[min(self._orders)]
            draw = np.random.default_rng((self._config.seed, epoch))
            order = draw.permutation(np.arange(self.num_pairs, dtype=np.int32))
            self._orders[epoch] = order
        return order

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}, "_remembered": {}}


def _mix(seed: int, position: int) -> int:
    """A 31-bit number that looks random (the finaliser of SplitMix64)."""
    mask = 2**64 - 1
    z = (seed * 0xD1342543DE82EF95 + position * 0x9E3779B97F4A7C15 + 1) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 33


class Reader:
    """Reads the stream from a position on, here or with worker processes."""

    def __init__(self, stream: ExampleStream, position: int, num_workers: int):
        self._chunks: ReadBeside | None = None
        if num_workers == 0:
            self._examples = map(stream.__getitem__, itertools.count(position))
            return
        positions = grain.MapDataset.range(position, sys.maxsize)
        chunks = positions.map(stream.__getitem__).batch(CHUNK, batch_fn=pickle.dumps)
        read = chunks.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        )
        self._chunks = ReadBeside(read, grain.MultiprocessingOptions(num_workers))
        # As bytes: Grain gives each array a piece of shared memory, slow when small.
        chunks = map(pickle.loads, self._chunks)
        self._examples = itertools.chain.from_iterable(chunks)

    def __next__(self) -> Example:
        return next(self._examples)

    def close(self) -> None:
        """End the worker processes."""
        if self._chunks is not None:
            self._chunks.close()


class ReadBeside:
    """The elements of a dataset from processes of their own."""

    def __init__(
        self, dataset: grain.IterDataset, options: grain.MultiprocessingOptions
    ):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks for flags when it starts workers
        read = dataset.mp_prefetch(options, worker_init_fn=_leave_with_parent)
        self._elements = iter(read)
        with _deaf_to_stop_signals():
            self._first = [next(self._elements)]  # starts the processes

    def __iter__(self) -> "ReadBeside":
        return self

    def __next__(self) -> Any:
        return self._first.pop() if self._first else next(self._elements)

    def close(self) -> None:
        """End the processes."""
        self._elements.close()


@contextlib.contextmanager
def _deaf_to_stop_signals() -> Iterator[None]:
    """Processes started inside never get Ctrl-C or SIGTERM, from their birth on.

    Both go to the whole process group, but a worker that died of one would take the
    run's next batch with it: the run stops where it wants, then ends its workers.
    """
    # Where it starts first, it would lift the block again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_with_parent(index: int, count: int) -> None:
    """Ends this worker when the run is gone: nobody else could, short of SIGKILL."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
