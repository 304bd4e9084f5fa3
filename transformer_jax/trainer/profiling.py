"""A trace of some updates, to see where their time goes."""

from pathlib import Path
from typing import Any

import jax

PROFILE_DIR = "profile"


class Profiler:
    """Traces the updates first:last, if they are given, into `workdir`/profile.

    `tensorboard --logdir` (with its profile plugin) opens the folder, and Perfetto
    (https://ui.perfetto.dev) the file perfetto_trace.json.gz in it. Names of scopes
    (encoder, decoder, loss, optimizer) stand with the operations on accelerators.
    """

    def __init__(self, workdir: Path, updates: str):
        self.folder = workdir / PROFILE_DIR
        first, _, last = updates.partition(":")
        self._first, self._last = (int(first), int(last)) if updates else (0, -1)
        self._tracing = False

    def update(self, step: int) -> Any:
        """The context of the update that leads to `step`."""
        if not self._tracing and self._first <= step <= self._last:
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def done(self, step: int, result: Any) -> Path | None:
        """To be told of each update; the folder, once it holds the trace."""
        if not self._tracing or step < self._last:
            return None
        jax.block_until_ready(result)
        return self.close()

    def close(self) -> Path | None:
        """Writes the trace that is under way, if one is."""
        if not self._tracing:
            return None
        self._tracing = False
        jax.profiler.stop_trace()
        return self.folder
