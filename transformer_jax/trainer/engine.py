"""What moves a run: model, mesh and state, with steps compiled ahead of time."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax import parallel
from transformer_jax.config import Config
from transformer_jax.data.batching import Batch
from transformer_jax.data.pipeline import batch_shapes
from transformer_jax.models.functions import init_params
from transformer_jax.models.transformer import Transformer
from transformer_jax.training.metrics import Metrics
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer, sees_stacked_layers
from transformer_jax.training.schedules import make_schedule
from transformer_jax.training.state import TrainState, init_state
from transformer_jax.training.step import TrainStep, make_eval_step, make_train_step
from transformer_jax.trees import leaves_by_path
from transformer_jax.types import Params, PRNGKey

Shape = tuple[int, int, int]
CompiledSteps = Mapping[Shape, Callable[..., Any]]
"""The train step of each batch shape (B, S, T)."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """Model, optimizer and mesh of a run, and what can be told without parameters."""

    config: Config
    model: Transformer
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    state_like: TrainState
    """Shapes, types and shardings of the state."""

    @property
    def rows_multiple(self) -> int:
        """What the rows of every batch divide by."""
        return self.config.train.accumulate * parallel.num_data_shards(self.mesh)

    def shapes(self) -> list[Shape]:
        """(B, S, T) of every batch that training can meet."""
        return batch_shapes(self.config, rows_multiple=self.rows_multiple)

    def learning_rate(self, step: int) -> float:
        """The rate of the update that led to `step`; the first update is step 1."""
        return float(np.asarray(self.schedule(step - 1)))

    def fresh_state(self, rng: PRNGKey) -> TrainState:
        """New parameters, drawn by the host where there is one process, since a GPU's
        compiler takes half a minute for what is run once; of several, each draws those
        of its devices in place."""
        shardings = jax.tree.map(lambda x: x.sharding, self.state_like)

        def init(rng: PRNGKey) -> TrainState:
            return self._start(init_params(self.model, rng))

        host = parallel.host_device()
        if host is None:
            return jax.jit(init, out_shardings=shardings)(rng)
        state = jax.jit(init)(jax.device_put(rng, host))
        return jax.device_put(state, shardings)

    def state_from(self, params: Params) -> TrainState:
        """The state before the first update of parameters from elsewhere."""
        check_same_shapes(params, self.state_like.params)
        shardings = jax.tree.map(lambda x: x.sharding, self.state_like)
        start = jax.jit(self._start, out_shardings=shardings)
        return start(jax.device_put(params, shardings.params))

    def _start(self, params: Params) -> TrainState:
        return first_state(self.config, self.optimizer, params)

    def _make_step(self, reduce: Callable[[Any], Any]) -> TrainStep:
        """The update; `reduce` adds a tree over devices."""
        train = self.config.train
        pmap = self.config.parallel.wrapper == "pmap"  # A device sees its part alone.
        objective = make_objective(
            self.model,
            train.label_smoothing,
            deterministic=False,
            shards=1 if pmap else parallel.num_data_shards(self.mesh),
            one_per_row=self.config.data.batching == "bucket",
        )
        return make_train_step(
            objective,
            self.optimizer,
            accumulate=train.accumulate,
            ema_decay=train.ema_decay,
            stacked=sees_stacked_layers(self.config),
            reduce=reduce,
        )

    @functools.cached_property
    def eval_step(self) -> Callable[[Params, Batch], Metrics]:
        """Metrics of a batch, with nothing random; compiled when first needed."""
        smoothing = self.config.train.label_smoothing
        objective = make_objective(
            self.model,
            smoothing,
            deterministic=True,
            shards=parallel.num_data_shards(self.mesh),
            one_per_row=True,  # `eval_batches` makes no others
        )
        return parallel.jit_eval_step(
            make_eval_step(objective), self.mesh, self.state_like
        )

    def compile_train_step(
        self, rng: PRNGKey, note: Callable[[str], None]
    ) -> CompiledSteps:
        """One executable for each batch shape; `note` hears how it goes.

        pmap compiles a shape when it first meets it.
        """
        if self.config.parallel.wrapper == "pmap":
            mapped = parallel.pmap_train_step(self._make_step, self.mesh)
            return dict.fromkeys(self.shapes(), mapped)
        step = self._make_step(lambda tree: tree)
        jitted = parallel.jit_train_step(step, self.mesh, self.state_like)
        sharding = parallel.batch_sharding(self.mesh)
        compiled = {}
        shapes = self.shapes()
        for count, shape in enumerate(shapes, start=1):
            start = time.monotonic()
            lowered = jitted.lower(self.state_like, batch_like(shape, sharding), rng)
            compiled[shape] = lowered.compile()
            rows, source, target = shape
            note(
                f"compiled     batch shape {count} of {len(shapes)}: {rows} rows × "
                f"{source} source, {target} target positions, "
                f"{time.monotonic() - start:.1f} s"
            )
        return compiled


def build_engine(config: Config) -> Engine:
    """Model, mesh and optimizer of settings whose vocabulary sizes are known."""
    mesh = parallel.make_mesh(config.parallel)
    parallel.check_divisible(config, mesh)
    model = Transformer(config.model)
    optimizer = make_optimizer(config.optimizer, config.model.d_model)

    def init(rng: PRNGKey) -> TrainState:
        return first_state(config, optimizer, init_params(model, rng))

    shapes = jax.eval_shape(init, jax.random.key(0))
    state_like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        parallel.state_shardings(shapes, mesh),
    )
    schedule = make_schedule(config.optimizer, config.model.d_model)
    return Engine(config, model, mesh, optimizer, schedule, state_like)


def first_state(
    config: Config, optimizer: optax.GradientTransformation, params: Params
) -> TrainState:
    """The state before the first update, as the settings want it."""
    return init_state(
        params,
        optimizer,
        ema=config.train.ema_decay > 0,
        stacked=sees_stacked_layers(config),
    )


def batch_like(shape: Shape, sharding: jax.sharding.Sharding) -> Batch:
    """The shapes of a training batch of B rows, S and T positions."""
    rows, source, target = shape
    sides = {
        name: source if name.startswith("input") else target for name in Batch._fields
    }
    return Batch(
        **{
            name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding)
            for name, length in sides.items()
        }
    )


def check_same_shapes(params: Params, wanted: Params) -> None:
    """Raises unless `params` are those of a model of the wanted shapes."""
    there, here = (
        {path: tuple(x.shape) for path, x in leaves_by_path(tree).items()}
        for tree in (params, wanted)
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"The weights do not fit the model: {name} is {there.get(name)} in the "
                f"checkpoint and {here.get(name)} in the model. Start from a run with "
                "the same model settings."
            )
