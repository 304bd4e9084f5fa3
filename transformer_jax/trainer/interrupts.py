"""Ctrl-C and SIGTERM ask a run to stop; it stops where nothing is lost."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0
"""The same signal so soon after the first is an echo: `timeout`, for one, sends it to
its command, and then to the group that this belongs to."""


class StopError(BaseException):
    """Raised by a signal in a part of the run that has nothing to save.

    Not an `Exception`, so that no library takes it for an error of its own.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals(contextlib.AbstractContextManager):
    """While open, the first signal sets `received`; another ends the program, unless it
    is an echo of the first (see `ECHO_SECONDS`).

    Updates ask for `received` between steps. Inside `at_once()` the signal raises
    `StopError` instead: for evaluation and start-up, which can be done over. With
    several processes nothing is raised, since all must leave at the same place.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self._alone = alone
        self.received: int | None = None
        self._received_at = 0.0
        self._raising = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            later = time.monotonic() - self._received_at
            if number == self.received and later <= ECHO_SECONDS:
                return
            sys.exit(128 + number)
        self._received_at, self.received = time.monotonic(), number
        if self._raising:
            raise StopError(number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Signals raise `StopError` inside this block, pending ones at its start."""
        if self._alone and self.received is not None:
            raise StopError(self.received)
        self._raising = self._alone
        try:
            yield
        finally:
            self._raising = False
