"""The story of a run: start, train, look, save, stop, and go on another day."""

import math
import signal
from pathlib import Path
from typing import NamedTuple

import jax

from transformer_jax import parallel
from transformer_jax.analysis.plots import plot_curves
from transformer_jax.checkpoint import CheckpointStore, count_params
from transformer_jax.config import Config
from transformer_jax.processes import is_main_process, largest
from transformer_jax.trainer.dev import LOWER_IS_BETTER, DevSet
from transformer_jax.trainer.effort import Effort, share_of_work
from transformer_jax.trainer.interrupts import StopError, StopSignals
from transformer_jax.trainer.profiling import Profiler
from transformer_jax.trainer.progress import MetricWindow, Progress, Stopwatch
from transformer_jax.trainer.reporting import (
    CURVES_FILE,
    LOG_FILE,
    Reporter,
    duration,
    environment,
)
from transformer_jax.trainer.saving import checkpoint_items, position_to_save
from transformer_jax.trainer.startup import Finished, Started, start

STOP_EVERY = 10
"""Updates after which several processes ask each other for signals: asking waits for
the slowest."""


class TrainResult(NamedTuple):
    """How a run ended."""

    workdir: Path
    step: int
    """Updates done."""
    reason: str
    """finished, out of patience, or stopped."""
    metrics: dict[str, float]
    """Of the last evaluation on the dev split; empty if there was none."""
    progress: Progress
    signal: int | None = None
    """The signal that stopped the run."""

    @property
    def exit_code(self) -> int:
        """What a shell expects: 0, or 128 + the signal."""
        return 0 if self.signal is None else 128 + self.signal


def train(
    config: Config, workdir: str | Path, *, init_from: str | Path | None = None
) -> TrainResult:
    """Trains to `config.train.steps`, from the last checkpoint in `workdir` if any.

    `init_from` is a run whose weights, model settings and tokenizer a new run starts
    with; a run that is resumed has them already.
    """
    watch = Stopwatch()
    store = CheckpointStore(Path(workdir), keep=config.train.keep_checkpoints)
    origin = None if init_from is None else CheckpointStore(Path(init_from))
    reporter = Reporter(store.workdir, active=is_main_process())
    with StopSignals(alone=jax.process_count() == 1) as signals:
        try:
            with signals.at_once():
                started = start(config, store, origin, reporter)
            if isinstance(started, Finished):
                return _nothing_to_do(started, config, store, reporter)
            return Run(started, store, reporter, signals, watch).go()
        except StopError as stop:
            reporter.say(f"\nStopped by {stop} during start-up: nothing new to save.")
            step = store.latest_step() or 0
            return TrainResult(
                store.workdir, step, "stopped", {}, Progress(), stop.number
            )
        finally:
            reporter.close()


def _nothing_to_do(
    done: Finished, config: Config, store: CheckpointStore, reporter: Reporter
) -> TrainResult:
    setting = "steps" if done.reason == "finished" else "patience"
    reporter.say(
        f"{store.workdir} is at step {done.step:,} of {config.train.steps:,}, "
        f"{done.reason}: nothing to do. To go on, raise --train.{setting}."
    )
    metrics = dict(done.metrics)
    return TrainResult(store.workdir, done.step, done.reason, metrics, done.progress)


class Run:
    """One start of a run, from its first update to its last."""

    def __init__(
        self,
        started: Started,
        store: CheckpointStore,
        reporter: Reporter,
        signals: StopSignals,
        watch: Stopwatch,
    ):
        self.engine, self.steps, self.batches = started[1:4]
        self.config = self.engine.config
        self.store, self.reporter, self.signals = store, reporter, signals
        self.state, self.rng, self.progress = started.restored
        self.step = int(self.state.step)
        self.saved_step = store.latest_step()
        self.saved_evaluation = self.progress.evaluated_step
        self.metrics: dict[str, float] = {}
        self.stopped_by: int | None = None
        pairs = started.prepared.dev_pairs
        self.dev = DevSet(self.engine, started.prepared.tokenizer, pairs)
        self.window = MetricWindow(bad_steps=int(self.state.bad_steps))
        self.watch, self.update_watch = watch, Stopwatch(running=False)
        self.earlier = self.progress.copy()
        mesh = self.engine.mesh
        self.effort = Effort(self.config.model, mesh.local_devices, share_of_work(mesh))
        traced = self.config.train.profile if is_main_process() else ""
        self.profiler = Profiler(store.workdir, traced, self.update_watch)

    def go(self) -> TrainResult:
        """Trains until the steps are done, patience runs out, or a signal comes."""
        first, last = self.step, self.config.train.steps
        self.reporter.open(first)
        name = "resume" if first else "start"
        size = count_params(self.state.params)
        self._event(name, **environment(), steps=last, parameters=size)
        self.reporter.start_bar(first, last)
        try:
            return self._end(self._updates())
        finally:
            self.profiler.close()
            self.batches.close()

    def _updates(self) -> str:
        train = self.config.train
        while True:
            best = False
            if self._stop_asked():
                return "stopped"
            if self._evaluation_is_due():
                try:
                    best = self._evaluate()
                except StopError:
                    continue
            if best or (self.step and self.step % train.checkpoint_every == 0):
                self._save(best=best)
            if self.progress.out_of_patience(train.patience):
                return "out of patience"
            if self.step >= train.steps:
                return "finished"
            self._update()

    def _update(self) -> None:
        self.update_watch.go()
        with self.effort.waiting():
            batch = next(self.batches)
        self.effort.add(batch)
        batch = parallel.put_batch(batch, self.engine.mesh)
        shape = (*batch.inputs.shape, batch.targets.shape[1])
        with self.profiler.update(self.step + 1):
            self.state, metrics = self.steps[shape](self.state, batch, self.rng)
        self.window.add(metrics)
        self.step += 1
        if folder := self.profiler.done(self.step, metrics):
            self.reporter.say(f"{'profile':<13}{folder}")
        self.reporter.advance()
        if self.window.bad_steps >= self.config.train.max_bad_steps:
            self._give_up()
        every = self.config.train.log_every
        if self.step % every == 0 or self.step == self.config.train.steps:
            self._log()

    def _log(self) -> None:
        """Reports the updates since the last report."""
        seconds = self.update_watch.seconds()
        values = self.window.take(seconds) | self.effort.take(seconds)
        values["learning_rate"] = self._learning_rate()
        self._tally()
        self._event(
            "train",
            **values,
            epoch=self.batches.epoch,
            tokens=self.progress.target_tokens,
        )
        self.reporter.updates(self.step, self.config.train.steps, values)

    def _tally(self) -> None:
        """Brings the totals of the run up to now."""
        self.window.wait()
        now, before = self.progress, self.earlier
        now.seconds = before.seconds + self.watch.seconds()
        now.update_seconds = before.update_seconds + self.update_watch.seconds()
        now.waiting_seconds = before.waiting_seconds + self.effort.waiting_seconds
        now.target_tokens = before.target_tokens + round(self.window.tokens)

    def _evaluation_is_due(self) -> bool:
        train = self.config.train
        return (
            bool(self.dev.pairs)
            and self.step > 0
            and self.progress.evaluated_step != self.step
            and (self.step % train.evaluate_every == 0 or self.step >= train.steps)
        )

    def _evaluate(self) -> bool:
        """Looks at the dev split; whether the model is the best so far."""
        self._tally()
        self.update_watch.pause()
        watch, state = Stopwatch(), self.state
        params = state.params if state.ema_params is None else state.ema_params
        with self.signals.at_once():
            report = self.dev.evaluate(params)
        name = self.config.train.best_metric
        best = self.progress.note_evaluation(
            self.step, report.values[name], lower_is_better=LOWER_IS_BETTER[name]
        )
        self.metrics = report.values
        self._tally()
        self._event("evaluate", **report.values, best=best)
        self.reporter.evaluated(self.step, report, best=best, seconds=watch.seconds())
        return best

    def _save(self, *, best: bool = False) -> None:
        now = (self.step, self.progress.evaluated_step)
        if now == (self.saved_step, self.saved_evaluation):
            return
        self._tally()
        self.update_watch.pause()
        finite = {k: v for k, v in self.metrics.items() if math.isfinite(v)}
        fresh = self.progress.evaluated_step == self.step
        self.store.save(
            self.step,
            checkpoint_items(self.state, self.rng),
            data_position=position_to_save(self.batches, self.progress),
            metrics=finite if fresh else None,
            best=best,
        )
        self.saved_step, self.saved_evaluation = now
        self._event("checkpoint", best=best)

    def _stop_asked(self) -> bool:
        """Whether a signal has come, to any process: they must stop at one step."""
        if jax.process_count() > 1 and self.step % STOP_EVERY:
            return False
        # Kept apart from this one's own: one that comes now is its first, not a second.
        self.stopped_by = largest(self.signals.received or 0) or None
        return self.stopped_by is not None

    def _give_up(self) -> None:
        rate = self._learning_rate()
        saved = "none" if self.saved_step is None else f"of step {self.saved_step}"
        message = (
            f"Loss or gradient was not finite in {self.window.bad_steps} updates in a "
            f"row, up to step {self.step} (learning rate {rate:.2g}); they were "
            "skipped, and the run stops. Last checkpoint: "
            f"{saved}. Lower optimizer.learning_rate, raise optimizer.warmup_steps or "
            "set optimizer.clip_norm."
        )
        self._tally()
        self._event("end", reason="not finite", message=message)
        raise ValueError(message)

    def _end(self, reason: str) -> TrainResult:
        self._save()
        self._tally()
        self._event("end", reason=reason, **self._totals())
        curves = self.config.train.curves and self.reporter.active and self.step > 0
        if curves and reason != "stopped":
            workdir = self.store.workdir
            plot_curves(workdir / LOG_FILE, workdir / CURVES_FILE)
        number = self.stopped_by
        self.reporter.ended(self._last_words(reason, number))
        return TrainResult(
            self.store.workdir, self.step, reason, self.metrics, self.progress, number
        )

    def _totals(self) -> dict[str, object]:
        counts = self.batches.counts
        return {
            "update_seconds": self.progress.update_seconds,
            "waiting_seconds": self.progress.waiting_seconds,
            "tokens": self.progress.target_tokens,
            "tokens_per_second": self.progress.tokens_per_second,
            "best_step": self.progress.best_step,
            "skipped_steps": int(self.state.skipped_steps),
            "filter": counts._asdict(),
        }

    def _last_words(self, reason: str, number: int | None) -> str:
        progress, workdir = self.progress, self.store.workdir
        if number is not None:
            return (
                f"Stopped by {signal.Signals(number).name} at step {self.step:,}; the "
                f"checkpoint in {workdir} is that of this step. The same command goes "
                "on from there."
            )
        best = (
            f", best {progress.best_step:,} by {self.config.train.best_metric}"
            if progress.best_step
            else ""
        )
        return (
            f"{reason}: {self.step:,} steps in {duration(progress.seconds)}, "
            f"{progress.tokens_per_second:,.0f} target tokens/s; "
            f"{progress.update_share:.0%} of the time in updates, of which "
            f"{progress.waiting_share:.1%} waiting for batches\n"
            f"checkpoints  {workdir} (latest {self.step:,}{best})\n"
            f"logs         {workdir / LOG_FILE}; tensorboard --logdir {workdir}"
            + (
                f"\ncurves       {workdir / CURVES_FILE}"
                if self.config.train.curves
                else ""
            )
        )

    def _learning_rate(self) -> float:
        """Of the last update: those that were skipped did not move the schedule."""
        return self.engine.learning_rate(self.step - int(self.state.skipped_steps))

    def _event(self, name: str, **values: object) -> None:
        seconds = self.earlier.seconds + self.watch.seconds()
        self.reporter.event(name, self.step, seconds, **values)
