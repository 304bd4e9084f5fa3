"""The bits that dropout draws: fair, and unlike those of neighbours and other keys."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax import parallel
from transformer_jax.config import ParallelConfig
from transformer_jax.models import dropout
from transformer_jax.models.dropout import drop, random_words
from transformer_jax.testing import tiny_batch, tiny_model
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.state import init_state
from transformer_jax.training.step import make_train_step

SHAPE = (64, 32, 50)
SIGMA = 1 / np.sqrt(np.prod(SHAPE))
"""Standard deviation of a mean of as many fair values of variance 1."""


def signs(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Each of the 32 bits as -1 or 1: [32, ...]."""
    words = np.asarray(random_words(jax.random.key(seed), shape))
    bits = words[None] >> np.arange(32, dtype=np.uint32)[:, None, None, None] & 1
    return 2.0 * bits - 1


def test_every_bit_is_fair():
    assert np.abs(signs(0).mean(axis=(1, 2, 3))).max() < 4.5 * SIGMA


def test_bits_of_a_word_do_not_hang_together():
    flat = signs(0).reshape(32, -1)
    correlations = flat @ flat.T / flat.shape[1] - np.eye(32)
    assert np.abs(correlations).max() < 5 * SIGMA


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("distance", [1, 2, 8])
def test_neighbours_do_not_hang_together(axis, distance):
    bits = signs(0)
    same = (bits * np.roll(bits, distance, axis)).mean(axis=(1, 2, 3))
    assert np.abs(same).max() < 5 * SIGMA


@pytest.mark.parametrize("other", [1, 2, 1000])
def test_keys_do_not_hang_together(other):
    same = (signs(0) * signs(other)).mean(axis=(1, 2, 3))
    assert np.abs(same).max() < 5 * SIGMA


def test_no_word_comes_twice_in_an_array():
    """The hash is one to one, so that no stretch of an array repeats another."""
    words = np.asarray(random_words(jax.random.key(0), SHAPE))
    assert len(np.unique(words)) == words.size


def test_sums_over_rows_spread_as_those_of_independent_draws():
    kept = np.asarray(drop(jnp.ones((500, 1000)), 0.1, jax.random.key(3)) > 0)
    expected = 0.1 * 0.9 * np.array([1000, 500])
    spread = np.array([kept.sum(axis=1).var(), kept.sum(axis=0).var()])
    # A variance estimated from n values is off by √(2/n), about.
    assert (np.abs(spread / expected - 1) < 4 * np.sqrt([2 / 500, 2 / 1000])).all()


def test_the_same_words_fall_to_a_part_whatever_the_rest_is():
    """Rows are numbered from the first on: more rows change nothing of them."""
    few = random_words(jax.random.key(0), (3, 5))
    many = random_words(jax.random.key(0), (8, 5))
    np.testing.assert_array_equal(few, many[:3])


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_bfloat16_keeps_its_type_and_its_mean(rate):
    """bfloat16 has eight bits: a factor of 1/0.9 rounded to them is off by 0.3 %."""
    x = jnp.full((1000, 1000), 0.9, jnp.bfloat16)
    dropped = drop(x, rate, jax.random.key(0))
    assert dropped.dtype == jnp.bfloat16
    wanted = (x[0, 0].astype(jnp.float32) / (1 - rate)).astype(jnp.bfloat16)
    assert set(np.unique(dropped.astype(jnp.float32))) == {0.0, float(wanted)}
    kept = np.asarray(dropped > 0).mean()
    assert abs(kept - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / x.size)


def test_a_rate_of_almost_one_drops_almost_all():
    dropped = drop(jnp.ones(10_000), 1 - 2**-40, jax.random.key(0))
    assert not dropped.any()


def keys_drawn(monkeypatch, **settings: Any) -> np.ndarray:
    """The keys of all uses of dropout in one pass."""
    keys = []

    def record(x, rate, rng):
        del rate
        keys.append(jax.random.key_data(rng))
        return x

    monkeypatch.setattr(dropout, "drop", record)
    model, params = tiny_model(dropout=0.1, **settings)
    objective = make_objective(model, 0.1, deterministic=False)

    @jax.jit
    def draw(rng):
        objective(params, tiny_batch(), rng)
        return jnp.stack(keys)

    return np.asarray(draw(jax.random.key(0)))


def test_every_use_draws_its_own(monkeypatch):
    """In a layer, in layers that are alike, and in encoder and decoder."""
    keys = keys_drawn(monkeypatch, activation_dropout=0.1, attention_dropout=0.1)
    embeddings, encoder, decoder = 2, 2 * (2 + 2), 2 * (3 + 3)
    assert len(keys) == embeddings + encoder + decoder
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_an_update_drops_the_same_on_a_mesh_as_on_one_device():
    model, params = tiny_model(
        num_encoder_layers=1, num_decoder_layers=1, dropout=0.3, activation_dropout=0.2
    )
    rule, found = optax.sgd(1.0), []
    state = jax.device_get(init_state(params, rule))
    for axes in ((1, 1, 1), (2, 2, 2)):
        config = ParallelConfig(data=axes[0], fsdp=axes[1], tensor=axes[2])
        mesh = parallel.make_mesh(config, jax.devices()[: np.prod(axes)])
        shards = parallel.num_data_shards(mesh)
        objective = make_objective(model, 0.1, deterministic=False, shards=shards)
        step = parallel.jit_train_step(make_train_step(objective, rule), mesh, state)
        here = jax.device_put(state, parallel.state_shardings(state, mesh))
        batch = tiny_batch(source_lengths=(5,) * 8, target_lengths=(4,) * 8)
        lowered = step.lower(here, parallel.put_batch(batch, mesh), jax.random.key(1))
        compiled = lowered.compile({"xla_backend_optimization_level": 0})
        new, metrics = compiled(
            here, parallel.put_batch(batch, mesh), jax.random.key(1)
        )
        found.append(jax.device_get((new.params, metrics["loss"].sum)))
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-5)
    without = make_objective(model, 0.1, deterministic=True)
    assert abs(without(params, batch, None)[0] - found[0][1]) > 1e-2
