"""How far a run has come: the numbers that outlive a stop, and those of the moment."""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from transformer_jax.training.metrics import Metrics


@dataclasses.dataclass
class Progress:
    """What is kept in checkpoints beside the arrays, so that totals survive a stop."""

    seconds: float = 0.0
    """Wall clock of all starts, from start-up to the last checkpoint."""
    update_seconds: float = 0.0
    """Of these, the time in updates: no compilation, evaluation or saving."""
    waiting_seconds: float = 0.0
    """Of these, the time until batches were ready."""
    target_tokens: int = 0
    """Target tokens trained on, padding excluded."""
    evaluated_step: int = 0
    """Step of the last evaluation."""
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0

    def copy(self) -> "Progress":
        """The numbers of this moment."""
        return dataclasses.replace(self)

    def note_evaluation(
        self, step: int, value: float, *, lower_is_better: bool
    ) -> bool:
        """Counts an evaluation; whether it is the best so far."""
        self.evaluated_step = step
        best = self.best_value
        better = math.isfinite(value) and (
            best is None or (value < best if lower_is_better else value > best)
        )
        if better:
            self.best_step, self.best_value = step, value
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better

    def out_of_patience(self, patience: int) -> bool:
        """Whether `patience` evaluations have passed without a better one."""
        return 0 < patience <= self.evaluations_since_best

    @property
    def tokens_per_second(self) -> float:
        """Target tokens over time in updates, over the whole run."""
        return self.target_tokens / self.update_seconds if self.update_seconds else 0.0

    @property
    def update_share(self) -> float:
        """Of the wall clock, the time in updates."""
        return self.update_seconds / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """Of the time in updates, that until batches were ready."""
        if not self.update_seconds:
            return 0.0
        return self.waiting_seconds / self.update_seconds


class Stopwatch:
    """Seconds since the start, with pauses left out.

    >>> watch = Stopwatch()
    >>> watch.pause()
    >>> watch.seconds() == watch.seconds()
    True
    """

    def __init__(self, *, running: bool = True) -> None:
        self._past, self._since = 0.0, time.monotonic()
        self._running = running

    def seconds(self) -> float:
        """Seconds that the watch has run."""
        running = time.monotonic() - self._since if self._running else 0.0
        return self._past + running

    def pause(self) -> None:
        """Stops counting until `go`."""
        self._past, self._running = self.seconds(), False

    def go(self) -> None:
        """Counts on after a pause."""
        self._past, self._since = self.seconds(), time.monotonic()
        self._running = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is counted; afterwards the watch does what it did before."""
        running = self._running
        self.pause()
        try:
            yield
        finally:
            if running:
                self.go()


class MetricWindow:
    """Sums the metrics of updates on the host, a few updates behind the device.

    Waiting for the newest update would leave the device idle between steps; letting
    it run ahead without end would make a stop slow. So two updates stay in flight.
    """

    IN_FLIGHT = 2

    def __init__(self, *, bad_steps: int = 0) -> None:
        self._pending: deque[Metrics] = deque()
        self._sums: dict[str, Any] = {}
        self._seconds = 0.0
        self.bad_steps = bad_steps
        """Skipped updates in a row, as far as seen."""
        self.tokens = 0.0
        """Target tokens of all updates seen, skipped ones left out."""

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of one update, `Mean`s of device arrays."""
        self._pending.append(metrics)
        self._settle(self.IN_FLIGHT)

    def _settle(self, in_flight: int) -> None:
        while len(self._pending) > in_flight:
            metrics = jax.device_get(self._pending.popleft())
            skipped = float(metrics["skipped"].sum) > 0
            self.bad_steps = self.bad_steps + 1 if skipped else 0
            self.tokens += 0.0 if skipped else float(metrics["loss"].weight)
            for name, mean in metrics.items():
                if skipped and name != "skipped":
                    continue
                sum_and_weight = np.asarray(mean, np.float64)
                self._sums[name] = self._sums.get(name, 0.0) + sum_and_weight

    def wait(self) -> None:
        """Waits for every update that was added."""
        self._settle(0)

    def take(self, seconds: float) -> dict[str, float]:
        """Means and rates since the last take; `seconds` is the time in updates."""
        self.wait()
        sums, self._sums = self._sums, {}
        elapsed, self._seconds = max(seconds - self._seconds, 1e-9), seconds
        values = {name: float(s / w) for name, (s, w) in sums.items() if w}
        skipped, steps = sums.get("skipped", (0.0, 0.0))
        tokens = sums.get("loss", (0.0, 0.0))[1]
        values["skipped"] = float(skipped)
        values["perplexity"] = perplexity(values.get("nll", math.nan))
        values["tokens_per_second"] = float(tokens) / elapsed
        values["seconds_per_step"] = elapsed / max(float(steps), 1.0)
        return values


def perplexity(nll: float) -> float:
    """exp(nll), without overflow.

    >>> perplexity(0.0), perplexity(1e6)
    (1.0, inf)
    """
    return math.exp(nll) if nll < 700 else math.inf
