"""What updates spend their time on, and how much of the devices they use."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax.config import ModelConfig
from transformer_jax.data.batching import Batch
from transformer_jax.parallel import num_data_shards, shares_here
from transformer_jax.trainer.progress import Stopwatch
from transformer_jax.training.flops import peak_flops, train_flops, work_of


def share_of_work(mesh: Mesh) -> float:
    """Of the arithmetic on the rows that this process holds, what its own devices do:
    processes that share out a tensor axis hold the same rows."""
    here = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    rows = len(shares_here(mesh)) / num_data_shards(mesh)
    return sum(here) / len(here) / rows


class Effort:
    """Counts the arithmetic of batches, and the time that was waited for them.

    A process counts its own devices, and the `share` of the work on its rows that they
    do (see `share_of_work`).
    """

    def __init__(self, model: ModelConfig, devices: Sequence[Any], share: float = 1.0):
        self._model, self._peak, self._share = model, peak_flops(devices), share
        self._flops = 0.0
        self._waited = Stopwatch(running=False)
        self._last = (0.0, 0.0)

    @property
    def waiting_seconds(self) -> float:
        """Time that updates stood still because no batch was ready."""
        return self._waited.seconds()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a batch is waited for."""
        self._waited.go()
        try:
            yield
        finally:
            self._waited.pause()

    def add(self, batch: Batch) -> None:
        """Counts a batch of numpy arrays."""
        self._flops += self._share * train_flops(self._model, work_of(batch))

    def take(self, seconds: float) -> dict[str, float]:
        """Since the last take: `waiting`, a share of the time in updates, and `mfu`,
        where the devices' peak is known; `seconds` is the time in updates."""
        flops, self._flops = self._flops, 0.0
        now = (seconds, self.waiting_seconds)
        elapsed, waited = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        elapsed = max(elapsed, 1e-9)
        values = {"waiting": waited / elapsed}
        if self._peak is not None:
            values["mfu"] = flops / elapsed / self._peak
        return values
