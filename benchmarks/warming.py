"""Compiling before anything is timed."""

from collections.abc import Callable

import jax


def warm_up(work: Callable[[], object]) -> None:
    """Works until two rounds have compiled nothing, ten at most: which device meets
    which shapes depends on who is done first."""
    compiled = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    quiet = 0
    for _ in range(10):
        compiled.clear()
        work()
        quiet = 0 if compiled else quiet + 1
        if quiet == 2:
            break
