"""Schedules against their formulas, and optimizers against hand-made updates."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import Config, ModelConfig, OptimizerConfig
from transformer_jax.testing import tiny_model
from transformer_jax.training.optimizer import (
    decay_mask,
    make_optimizer,
    muon_dimensions,
    sees_stacked_layers,
)
from transformer_jax.training.schedules import make_schedule
from transformer_jax.trees import leaves_by_path, stack_layers, unstack_layers


def test_the_paper_schedule_is_equation_three():
    config = OptimizerConfig(schedule="paper", learning_rate=1.0, warmup_steps=4000)
    schedule = make_schedule(config, d_model=512)
    for step in (1, 100, 4000, 4001, 100_000):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert math.isclose(
            float(np.asarray(schedule(step - 1))), expected, rel_tol=1e-5
        )


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_decaying_schedules_meet_their_ends_and_stay(name):
    config = OptimizerConfig(
        schedule=name,
        learning_rate=2.0,
        warmup_steps=10,
        schedule_steps=110,
        final_ratio=0.1,
    )
    schedule = make_schedule(config, d_model=16)
    rates = [float(np.asarray(schedule(step - 1))) for step in (1, 10, 60, 110, 1000)]
    np.testing.assert_allclose(rates, [0.2, 2.0, 1.1, 0.2, 0.2], rtol=1e-5)


def test_a_schedule_needs_its_horizon():
    with pytest.raises(ValueError, match="schedule_steps is 0"):
        OptimizerConfig(schedule="cosine")


def test_adam_is_the_rule_of_kingma_and_ba():
    config = OptimizerConfig(schedule="constant", warmup_steps=0, learning_rate=0.1)
    optimizer = make_optimizer(config, d_model=16)
    params = {"kernel": jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    m, v, expected = 0.0, 0.0, np.array([1.0, -2.0])
    for step in range(1, 4):
        gradient = np.array([0.5, -0.1]) * step
        updates, state = optimizer.update(
            {"kernel": jnp.asarray(gradient)}, state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
        m = 0.9 * m + 0.1 * gradient
        v = 0.98 * v + 0.02 * gradient**2
        corrected = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.98**step)) + 1e-9)
        expected = expected - 0.1 * corrected
    chex.assert_trees_all_close(
        params["kernel"], jnp.asarray(expected, jnp.float32), rtol=1e-4
    )


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor", "lion", "muon"])
def test_every_optimizer_lowers_a_quadratic(name):
    config = OptimizerConfig(
        name=name, schedule="constant", warmup_steps=0, learning_rate=0.03, clip_norm=1
    )
    _, params = tiny_model(num_encoder_layers=1, num_decoder_layers=1)
    goal = jax.tree.map(lambda p: p + 0.3, params)
    optimizer = make_optimizer(config, d_model=16)

    def loss(params):
        distance = jax.tree.map(lambda p, g: jnp.sum((p - g) ** 2), params, goal)
        return sum(jax.tree.leaves(distance))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state, before = optimizer.init(params), float(loss(params))
    for _ in range(20):
        params, state = step(params, state)
    chex.assert_tree_all_finite((params, state))
    assert float(loss(params)) < 0.9 * before


@pytest.mark.parametrize("name", ["adam", "lion", "muon"])
def test_layers_that_are_stacked_are_updated_as_they_would_be_apart(name):
    config = OptimizerConfig(
        name=name, schedule="constant", warmup_steps=0, weight_decay=0.1, clip_norm=1
    )
    _, params = tiny_model()
    grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size).reshape(p.shape)), params)
    optimizer = make_optimizer(config, d_model=16)
    expected, _ = optimizer.update(grads, optimizer.init(params), params)
    grads, params = stack_layers(grads), stack_layers(params)
    found, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    chex.assert_trees_all_close(unstack_layers(found), expected, atol=1e-6)


def test_adafactor_keeps_layers_apart():
    def config(name):
        model = ModelConfig(scan_layers=True)
        return Config(model=model, optimizer=OptimizerConfig(name=name))

    assert sees_stacked_layers(config("muon"))
    assert not sees_stacked_layers(config("adafactor"))


def test_weight_decay_spares_biases_norms_and_embeddings():
    _, params = tiny_model()
    for path, decays in leaves_by_path(decay_mask(params)).items():
        assert decays == path.endswith("/kernel"), path


def test_muon_sees_attention_projections_as_square_matrices():
    _, params = tiny_model(tied_embeddings="none")
    for path, sides in jax.tree_util.tree_leaves_with_path(
        muon_dimensions(params),
        is_leaf=lambda x: x is None or hasattr(x, "output_axis"),
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaf = leaves_by_path(params)[name]
        if not name.endswith("kernel"):
            assert sides is None, name
            continue
        rows = math.prod(leaf.shape[axis] for axis in sides.reduction_axis)
        columns = math.prod(leaf.shape[axis] for axis in sides.output_axis)
        assert rows * columns == leaf.size
        if "attention" in name:
            assert (rows, columns) == (16, 16), name


def test_clipping_bounds_the_update():
    config = OptimizerConfig(
        name="lion", schedule="constant", warmup_steps=0, learning_rate=1, clip_norm=0.5
    )
    clipped = make_optimizer(config, d_model=16)
    params = {"kernel": jnp.zeros(4)}
    huge = {"kernel": jnp.full(4, 1e8)}
    _, state = clipped.update(huge, clipped.init(params), params)
    momentum = next(x for x in jax.tree.leaves(state) if x.shape == (4,))
    assert math.isclose(float(jnp.linalg.norm(momentum)), 0.5 * 0.02, rel_tol=1e-4)
