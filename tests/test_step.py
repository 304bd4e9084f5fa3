"""One update: the same however the batch is cut, packed or padded."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.config import OptimizerConfig
from transformer_jax.testing import tiny_batch, tiny_model
from transformer_jax.training.metrics import compute
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import init_state
from transformer_jax.training.step import make_eval_step, make_train_step
from transformer_jax.trees import stack_layers, unstack_layers

LENGTHS: Any = {"source_lengths": (5, 3, 4, 6), "target_lengths": (4, 6, 2, 7)}
MODEL: Any = {"num_encoder_layers": 1, "num_decoder_layers": 1}
# Not Adam: it makes whole steps of the rounding noise where a gradient is zero.
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


@functools.cache
def jitted_step(**options):
    """Traced and compiled once for all tests."""
    objective = make_objective(tiny_model(**MODEL)[0], 0.1, deterministic=True)
    return jax.jit(make_train_step(objective, OPTIMIZER, **options))


def one_update(batch, *, ema_decay=0.0, **options):
    state = init_state(tiny_model(**MODEL)[1], OPTIMIZER, ema=ema_decay > 0)
    step = jitted_step(ema_decay=ema_decay, **options)
    return step(state, batch, jax.random.key(0))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_change_nothing(accumulate):
    batch = tiny_batch(**LENGTHS)
    whole, metrics = one_update(batch)
    cut, cut_metrics = one_update(batch, accumulate=accumulate)
    chex.assert_trees_all_close(cut.params, whole.params, atol=1e-5)
    chex.assert_trees_all_close(cut_metrics, metrics, rtol=1e-5)


def test_empty_rows_change_nothing():
    batch = tiny_batch(**LENGTHS)
    more = type(batch)(*(np.pad(x, ((0, 2), (0, 3))) for x in batch))
    state, metrics = one_update(batch)
    padded, padded_metrics = one_update(more)
    chex.assert_trees_all_close(padded.params, state.params, atol=1e-5)
    chex.assert_trees_all_close(padded_metrics, metrics, rtol=1e-5)


def test_order_of_the_rows_changes_nothing():
    batch = tiny_batch(**LENGTHS)
    turned = type(batch)(*(x[::-1] for x in batch))
    chex.assert_trees_all_close(
        one_update(turned)[0].params, one_update(batch)[0].params, atol=1e-5
    )


def test_the_gradient_is_that_of_the_mean_over_tokens():
    """After one update the momentum is the gradient."""
    batch = tiny_batch(**LENGTHS)
    model, params = tiny_model(**MODEL)
    objective = make_objective(model, 0.1, deterministic=True)
    state, _ = one_update(batch)
    tokens = int((batch.target_segment_ids > 0).sum())
    mean_loss = lambda p: objective(p, batch, None)[0] / tokens  # noqa: E731
    expected = jax.jit(jax.grad(mean_loss))(params)
    chex.assert_trees_all_close(state.opt_state[0].trace, expected, atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_non_finite_gradient_skips_the_update_and_is_counted(stacked):
    batch = tiny_batch(**LENGTHS)
    model, params = tiny_model(num_encoder_layers=2, scan_layers=stacked)
    table = params["shared_embedding"]["embedding"].at[5].set(jnp.nan)
    broken = {**params, "shared_embedding": {"embedding": table}}
    objective = make_objective(model, 0.1, deterministic=True)
    options = {"ema_decay": 0.5, "stacked": stacked}
    step = jax.jit(make_train_step(objective, OPTIMIZER, **options))
    state = init_state(broken, OPTIMIZER, ema=True, stacked=stacked)
    after, metrics = step(state, batch, jax.random.key(0))
    chex.assert_trees_all_equal(after.params, broken)
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)
    chex.assert_trees_all_equal(after.ema_params, broken)
    assert int(after.bad_steps) == int(after.skipped_steps) == int(after.step) == 1
    assert float(metrics["skipped"].sum) == 1
    healed = dataclasses.replace(after, params=params)
    well, _ = step(healed, batch, jax.random.key(0))
    assert (int(well.bad_steps), int(well.skipped_steps)) == (0, 1)


def test_the_exponential_average_follows_its_formula():
    batch = tiny_batch(**LENGTHS)
    _, start = tiny_model(**MODEL)
    state, _ = one_update(batch, ema_decay=0.75)
    expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, start, state.params)
    chex.assert_trees_all_close(state.ema_params, expected, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loop_over_stacked_layers_gives_the_updates_of_a_list(accumulate):
    batch, settings = tiny_batch(**LENGTHS), {"num_decoder_layers": 3}
    found = []
    for stacked in (False, True):
        model, params = tiny_model(**settings, scan_layers=stacked)
        objective = make_objective(model, 0.1, deterministic=True)
        options = {"accumulate": accumulate, "ema_decay": 0.75, "stacked": stacked}
        step = jax.jit(make_train_step(objective, OPTIMIZER, **options))
        state: Any = init_state(params, OPTIMIZER, ema=True, stacked=stacked)
        for _ in range(2):
            state, metrics = step(state, batch, jax.random.key(0))
        momentum = state.opt_state[0].trace
        momentum = unstack_layers(momentum) if stacked else momentum
        found.append((state.params, state.ema_params, momentum, metrics))
    chex.assert_trees_all_close(*found, atol=1e-5)


def test_with_stacked_layers_the_whole_update_does_not_grow_with_depth():
    """Adam takes a root of each array that it knows of, norms take some."""

    def roots(depth, *, stacked):
        model, params = tiny_model(
            num_encoder_layers=depth, num_decoder_layers=depth, scan_layers=stacked
        )
        adam = make_optimizer(OptimizerConfig(), d_model=16)
        objective = make_objective(model, 0.1, deterministic=True)
        step = make_train_step(objective, adam, stacked=stacked)
        state = init_state(params, adam, stacked=stacked)
        text = jax.jit(step).lower(state, tiny_batch(), jax.random.key(0)).as_text()
        return text.count("sqrt")

    assert roots(2, stacked=True) == roots(4, stacked=True) < roots(2, stacked=False)


def test_stacking_layers_can_be_undone():
    _, params = tiny_model(num_encoder_layers=11)  # "layer_10" sorts before "layer_2"
    chex.assert_trees_all_equal(unstack_layers(stack_layers(params)), params)


def test_each_step_drops_other_units():
    batch = tiny_batch(**LENGTHS)
    model, params = tiny_model(**MODEL, dropout=0.5)
    objective = make_objective(model, 0.1, deterministic=False)
    step = jax.jit(make_train_step(objective, OPTIMIZER))
    state = init_state(params, OPTIMIZER)
    rng = jax.random.key(0)
    at = lambda n: dataclasses.replace(state, step=jnp.int32(n))  # noqa: E731
    losses = {float(step(at(n), batch, rng)[1]["loss"].sum) for n in (0, 1, 2)}
    assert len(losses) == 3


def test_training_overfits_a_batch():
    batch = tiny_batch(**LENGTHS)
    model, params = tiny_model(**MODEL)
    objective = make_objective(model, 0.0, deterministic=True)
    config = OptimizerConfig(schedule="constant", warmup_steps=0, learning_rate=0.01)
    adam = make_optimizer(config, d_model=16)
    step = jax.jit(make_train_step(objective, adam))
    state = init_state(params, adam)
    for _ in range(80):
        state, _ = step(state, batch, jax.random.key(0))
    metrics = compute(jax.jit(make_eval_step(objective))(state.params, batch))
    assert metrics["accuracy"] == 1.0
    assert metrics["nll"] < 0.2


def test_averages_and_micro_batches_are_added_in_float32():
    """bfloat16 has 8 bits: 1 + 0.001 is 1, so that an average would never move."""
    model, params = tiny_model(**MODEL, param_dtype="bfloat16")
    objective = make_objective(model, 0.1, deterministic=True)
    state = init_state(params, OPTIMIZER, ema=True)
    step = make_train_step(objective, OPTIMIZER, ema_decay=0.999, accumulate=2)
    new, _ = jax.jit(step)(state, tiny_batch(**LENGTHS), jax.random.key(0))
    chex.assert_trees_all_equal_dtypes(new.params, params)
    wanted = jax.tree.map(
        lambda old, p: 0.999 * old.astype(jnp.float32) + 0.001 * p.astype(jnp.float32),
        params,
        new.params,
    )
    chex.assert_trees_all_close(new.ema_params, wanted, rtol=1e-5, atol=1e-7)
    assert any(
        np.any(np.asarray(a) != np.asarray(b, np.float32))
        for a, b in zip(
            jax.tree.leaves(new.ema_params), jax.tree.leaves(params), strict=True
        )
    )
