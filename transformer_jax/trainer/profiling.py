"""A trace of some updates, to see where their time goes."""

from pathlib import Path
from typing import Any

import jax

from transformer_jax.trainer.progress import Stopwatch

PROFILE_DIR = "profile"


class Profiler:
    """Traces the updates first:last, if they are given, into `workdir`/profile.

    Of several processes one at most may trace: they would share the folder.

    `tensorboard --logdir` (with its profile plugin) opens the folder, and Perfetto
    (https://ui.perfetto.dev) the file perfetto_trace.json.gz in it. Names of scopes
    (encoder, decoder, loss, optimizer) stand with the operations on accelerators.
    """

    def __init__(self, workdir: Path, updates: str, watch: Stopwatch):
        """`watch` stands still while a trace is started and while it is written."""
        self.folder, self._watch = workdir / PROFILE_DIR, watch
        first, _, last = updates.partition(":")
        self._first, self._last = (int(first), int(last)) if updates else (0, -1)
        self._tracing = False

    def update(self, step: int) -> Any:
        """The context of the update that leads to `step`."""
        if not self._tracing and self._first <= step <= self._last:
            with self._watch.paused():
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
        with self._watch.paused():
            jax.profiler.stop_trace()
        return self.folder
