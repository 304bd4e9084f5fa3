"""Compiling before anything is timed."""

from collections.abc import Callable

import jax

MOST_ROUNDS = 12


def warm_up(work: Callable[[], object]) -> None:
    """Works until two rounds have compiled nothing: which device meets which shapes
    depends on who is done first.

    Raises RuntimeError where `MOST_ROUNDS` were not enough.
    """
    compiled = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        quiet = 0
        for _ in range(MOST_ROUNDS):
            compiled.clear()
            work()
            quiet = 0 if compiled else quiet + 1
            if quiet == 2:
                return
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    raise RuntimeError(
        f"{MOST_ROUNDS} rounds still compiled something: nothing would be timed but "
        "compiling. Run it again, with what is compiled kept on disk."
    )
