"""What goes into a checkpoint, and how a run comes back from one."""

import dataclasses
from typing import Any, NamedTuple

import jax

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.data.pipeline import TrainBatches
from transformer_jax.trainer.engine import Engine
from transformer_jax.trainer.progress import Progress
from transformer_jax.training.state import TrainState
from transformer_jax.types import PRNGKey


class Restored(NamedTuple):
    """Where an earlier start left a run."""

    state: TrainState
    rng: PRNGKey
    progress: Progress


def restore(engine: Engine, store: CheckpointStore, batches: TrainBatches) -> Restored:
    """State, dropout key and totals of the latest checkpoint; `batches` moves there."""
    some_key = parallel.put_key(jax.random.key(0), engine.mesh)
    like = checkpoint_items(engine.state_like, some_key)
    items, position = store.restore(like)
    training = items["training"]
    state = TrainState(
        params=items["params"],
        ema_params=items.get("ema_params"),
        step=training["step"],
        opt_state=training["opt_state"],
        bad_steps=training["bad_steps"],
        skipped_steps=training["skipped_steps"],
    )
    if position is None:
        raise ValueError(
            f"The checkpoint in {store.workdir} has weights only: a training cannot go "
            "on from it. Start a new run from it with --init-from."
        )
    batches.set_state(position["data"])
    rng = jax.random.wrap_key_data(training["rng"])
    return Restored(state, rng, Progress(**position["progress"]))


def checkpoint_items(state: TrainState, rng: PRNGKey) -> dict[str, Any]:
    """The parts of a checkpoint."""
    items = {
        "params": state.params,
        "training": {
            "step": state.step,
            "opt_state": state.opt_state,
            "bad_steps": state.bad_steps,
            "skipped_steps": state.skipped_steps,
            "rng": jax.random.key_data(rng),
        },
    }
    if state.ema_params is not None:
        items["ema_params"] = state.ema_params
    return items


def position_to_save(batches: TrainBatches, progress: Progress) -> dict[str, Any]:
    """Where the data stands and the totals of the run, as JSON beside the arrays."""
    return {"data": batches.get_state(), "progress": dataclasses.asdict(progress)}
