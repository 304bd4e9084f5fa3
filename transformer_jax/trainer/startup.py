"""Everything between the command and the first update."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.compilation import keep_compiled_programs
from transformer_jax.config import Config
from transformer_jax.data.pipeline import TrainBatches, train_batches
from transformer_jax.recipes import config_to_json
from transformer_jax.trainer.engine import (
    CompiledSteps,
    Engine,
    build_engine,
)
from transformer_jax.trainer.preparation import (
    Prepared,
    prepare,
    replaced_model_settings,
    settle_config,
)
from transformer_jax.trainer.progress import Progress
from transformer_jax.trainer.reporting import Reporter
from transformer_jax.trainer.saving import Restored, restore
from transformer_jax.trainer.summary import summary
from transformer_jax.trees import params_sha256


class Started(NamedTuple):
    """A run that is ready for its next update."""

    prepared: Prepared
    engine: Engine
    steps: CompiledSteps
    batches: TrainBatches
    restored: Restored


class Finished(NamedTuple):
    """A run that has nothing left to do."""

    step: int
    reason: str
    metrics: Mapping[str, float]
    progress: Progress


def start(
    config: Config,
    store: CheckpointStore,
    origin: CheckpointStore | None,
    reporter: Reporter,
) -> Started | Finished:
    """Opens or begins the run in the store's folder; `origin` is that of --init-from.

    Nothing is written before all that is there is known to fit.
    """
    _check_folder(store.workdir)
    used = settle_config(config, store, origin)
    done = _finished(used, store)
    if done is not None:
        return done
    if origin is not None and not store.steps():
        _tell_replaced(config, used, reporter)
    keep_compiled_programs()
    prepared = prepare(used, store, init_from=origin, say=reporter.say)
    engine = build_engine(prepared.config)
    reporter.say(summary(prepared, engine))
    batches = _batches(prepared, engine)
    try:
        restored = _state(engine, store, origin, batches)
        if (step := int(restored.state.step)) > 0:
            reporter.say(f"{'resuming':<13}from step {step:,}")
        steps = engine.compile_train_step(restored.rng, reporter.say)
        store.write_run(
            config_to_json(prepared.config),
            prepared.tokenizer.files(),
            origin=store.origin() if store.steps() else _note_origin(origin),
        )
    except BaseException:
        batches.close()
        raise
    return Started(prepared, engine, steps, batches, restored)


def _check_folder(workdir: Path) -> None:
    """A run's folder need not exist, but nothing else may stand in its place."""
    there = next((p for p in (workdir, *workdir.parents) if p.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(
            f"--workdir is {workdir}, but {there} is a file: a run needs a folder of "
            "its own. Give another --workdir."
        )


def _finished(config: Config, store: CheckpointStore) -> Finished | None:
    step = store.latest_step()
    if step is None:
        return None
    position = store.position(step)
    progress = Progress(**position["progress"]) if position else Progress()
    evaluated = progress.evaluated_step == step or not config.data.dev_split
    if step >= config.train.steps and (evaluated or step == 0):
        reason = "finished"
    elif progress.out_of_patience(config.train.patience):
        reason = "out of patience"
    else:
        return None
    return Finished(step, reason, store.metrics(step), progress)


def _tell_replaced(asked: Config, used: Config, reporter: Reporter) -> None:
    """Says which settings of the recipe give way to those of --init-from."""
    replaced = replaced_model_settings(asked, used)
    if replaced:
        pairs = ", ".join(f"{name} {value}" for name, value in replaced.items())
        reporter.say(f"{'init-from':<13}takes from the other run: {pairs}")


def _note_origin(origin: CheckpointStore | None) -> dict[str, Any] | None:
    """What a new run notes of the run that its weights come from, and of where that
    had its own from."""
    if origin is None:
        return None
    step = origin.chosen_step()
    digest = params_sha256(origin.restore_params(step=step))
    noted = {"run": str(origin.workdir), "step": step, "params_sha256": digest}
    before = origin.origin()
    return {**noted, "origin": before} if before else noted


def _batches(prepared: Prepared, engine: Engine) -> TrainBatches:
    return train_batches(
        prepared.train_pairs,
        prepared.tokenizer,
        prepared.config,
        rows_multiple=engine.rows_multiple,
        shares=parallel.shares_here(engine.mesh),
        num_shares=parallel.num_data_shards(engine.mesh),
        num_workers=int(jax.default_backend() != "cpu"),
    )


def _state(
    engine: Engine,
    store: CheckpointStore,
    origin: CheckpointStore | None,
    batches: TrainBatches,
) -> Restored:
    """The state to go on from: of a checkpoint, of another run's weights, or new."""
    if store.latest_step() is not None:
        return restore(engine, store, batches)
    params_rng, train_rng, _ = jax.random.split(jax.random.key(engine.config.seed), 3)
    if origin is not None:
        state = engine.state_from(origin.restore_params())
    else:
        state = engine.fresh_state(params_rng)
    return Restored(state, parallel.put_key(train_rng, engine.mesh), Progress())
