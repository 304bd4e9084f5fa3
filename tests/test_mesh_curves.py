"""Fifty updates give one curve, however many devices share them and in whatever way;
also when they change half-way."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import ModelConfig, OptimizerConfig, ParallelConfig
from transformer_jax.models.functions import init_params
from transformer_jax.models.transformer import Transformer
from transformer_jax.testing import tiny_batch
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import TrainState, init_state
from transformer_jax.training.step import make_train_step

Shape = tuple[int, int, int]
STEPS = 50
MESHES: list[Shape] = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)]
ONE: Shape = (1, 1, 1)
MODEL: dict[str, Any] = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_model": 16,
    "d_ff": 32,
    "num_heads": 8,
    "dropout": 0.0,
    "source_vocab_size": 24,
    "target_vocab_size": 24,
}


def make_mesh(shape: Shape) -> jax.sharding.Mesh:
    config = ParallelConfig(data=shape[0], fsdp=shape[1], tensor=shape[2])
    return parallel.make_mesh(config, jax.devices()[: np.prod(shape)])


def draw_like(tree: Any, *, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: draw.normal(size=x.shape, scale=0.2).astype(x.dtype), tree
    )


class Setup:
    """The train step of a mesh."""

    def __init__(self, shape: Shape):
        model = Transformer(ModelConfig(**MODEL))
        settings = OptimizerConfig(learning_rate=1e-2, warmup_steps=10)
        self.rule = make_optimizer(settings, model.config.d_model)
        self.mesh = make_mesh(shape)

        def init(rng: jax.Array) -> TrainState:
            return init_state(init_params(model, rng), self.rule)

        shapes = jax.eval_shape(init, jax.random.key(0))
        self.like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            parallel.state_shardings(shapes, self.mesh),
        )
        shards = parallel.num_data_shards(self.mesh)
        objective = make_objective(model, 0.1, deterministic=True, shards=shards)
        step = make_train_step(objective, self.rule)
        jitted = parallel.jit_train_step(step, self.mesh, self.like)
        self.rng = jax.random.key(1)
        lowered = jitted.lower(self.like, self.batch(0), self.rng)
        self.step = lowered.compile({"xla_backend_optimization_level": 0})

    def batch(self, step: int) -> Any:
        """One of five."""
        draw = np.random.default_rng(step % 5)
        source, target = draw.integers(1, 7, (2, 16)).tolist()
        batch = tiny_batch(step % 5, source_lengths=source, target_lengths=target)
        return parallel.put_batch(batch, self.mesh)

    def fresh(self) -> TrainState:
        """The same numbers on every mesh."""
        params = draw_like(self.like.params, seed=0)
        state = jax.device_get(init_state(params, self.rule))
        return jax.device_put(state, jax.tree.map(lambda x: x.sharding, self.like))

    def train(self, state: TrainState, first: int, last: int):
        """The state after updates first … last - 1, and their losses."""
        losses = []
        for step in range(first, last):
            state, metrics = self.step(state, self.batch(step), self.rng)
            losses.append(metrics["loss"].sum / metrics["loss"].weight)
        return state, np.array(jax.device_get(losses))


setup = functools.cache(Setup)


@functools.cache
def curve(shape: Shape) -> np.ndarray:
    """The losses of all updates."""
    made = setup(shape)
    return made.train(made.fresh(), 0, STEPS)[1]


def assert_is_the_curve_of_one_device(losses):
    wanted = curve(ONE)
    assert len(wanted) == STEPS
    assert wanted[-1] < 0.95 * wanted[0]  # It learns.
    np.testing.assert_allclose(losses, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", MESHES)
def test_every_mesh_has_the_curve_of_one_device(shape):
    assert_is_the_curve_of_one_device(curve(shape))


def test_a_run_goes_on_with_another_mesh_on_the_same_curve(tmp_path):
    before, after = setup((2, 4, 1)), setup((1, 1, 8))
    state, losses = before.train(before.fresh(), 0, STEPS // 2)
    store = CheckpointStore(tmp_path)
    store.write_run("{}", {})
    store.save(STEPS // 2, {"state": state})
    items, _ = store.restore({"state": after.like})
    _, more = after.train(items["state"], STEPS // 2, STEPS)
    assert_is_the_curve_of_one_device([*losses, *more])


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_updates_are_the_same_where_optimizer_states_are_shared_out(name: Any):
    """Of a model large enough that Adafactor factors its moments (128 each way)."""
    model = Transformer(ModelConfig(**{**MODEL, "d_model": 128, "d_ff": 128}))
    settings = OptimizerConfig(name=name, weight_decay=0.1, clip_norm=1.0)
    rule = make_optimizer(settings, 128)
    init = functools.partial(init_params, model)
    params = draw_like(jax.eval_shape(init, jax.random.key(0)), seed=0)
    state = jax.device_get(init_state(params, rule))
    if name == "adafactor":
        assert (128,) in {x.shape for x in jax.tree.leaves(state.opt_state)}

    def step(state: TrainState, grads: Any) -> TrainState:
        updates, opt_state = rule.update(grads, state.opt_state, state.params)
        moved = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, params=moved, opt_state=opt_state)

    results = []
    for shape in (ONE, (2, 2, 2)):
        mesh = make_mesh(shape)
        places = parallel.state_shardings(state, mesh)
        here = jax.device_put(state, places)
        update = jax.jit(
            step, in_shardings=(places, places.params), out_shardings=places
        )
        for seed in (1, 2, 3):
            grads = draw_like(params, seed=seed)
            here = update(here, jax.device_put(grads, places.params))
        results.append(jax.device_get(here))
    chex.assert_trees_all_close(*results, atol=1e-6, rtol=1e-4)
