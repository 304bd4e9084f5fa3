"""The fused loss against the plain one, and the plain one against optax."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from transformer_jax import parallel
from transformer_jax.config import ParallelConfig
from transformer_jax.training import losses
from transformer_jax.training.losses import (
    fused_cross_entropy,
    smoothed_cross_entropy,
)

B, T, D, V = 3, 7, 8, 11


def random_problem(*, bias: bool = True, dtype=jnp.float32) -> Any:
    draw = np.random.default_rng(0)
    hidden = jnp.asarray(draw.normal(size=(B, T, D)), dtype)
    table = jnp.asarray(draw.normal(size=(V, D)), jnp.float32)
    offsets = jnp.asarray(draw.normal(size=V), jnp.float32) if bias else None
    targets = jnp.asarray(draw.integers(0, V, (B, T)), jnp.int32)
    weights = jnp.asarray(draw.random((B, T)) < 0.7, jnp.float32)
    return hidden, table, offsets, targets, weights


def plain(hidden, table, bias, targets, weights, smoothing):
    logits = jnp.einsum("BTD,VD->BTV", hidden, table)
    if bias is not None:
        logits += bias[None, None, :]
    return smoothed_cross_entropy(logits, targets, weights, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_plain_loss_is_that_of_optax(smoothing):
    hidden, table, bias, targets, weights = random_problem()
    logits = jnp.einsum("BTD,VD->BTV", hidden, table) + bias[None, None, :]
    labels = optax.smooth_labels(jax.nn.one_hot(targets, V), smoothing)
    with jax.numpy_rank_promotion("allow"):
        expected = (weights * optax.softmax_cross_entropy(logits, labels)).sum()
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    sums = smoothed_cross_entropy(logits, targets, weights, smoothing)
    chex.assert_trees_all_close(sums.loss, expected, rtol=1e-5)
    chex.assert_trees_all_close(sums.nll, (weights * nll).sum(), rtol=1e-5)
    correct = (weights * (logits.argmax(axis=-1) == targets)).sum()
    chex.assert_trees_all_equal(sums.correct, correct)


def hold_at_once(monkeypatch, chunk):
    """On any device."""
    monkeypatch.setattr(losses, "held_at_once", lambda: chunk)


@pytest.mark.parametrize("chunk_tokens", [1, 6, 1000])
@pytest.mark.parametrize(("bias", "shards"), [(True, 1), (False, 1), (True, B)])
def test_fused_equals_plain_in_value_and_gradients(
    monkeypatch, chunk_tokens, bias, shards
):
    hold_at_once(monkeypatch, losses.Chunk(chunk_tokens, 2**24))
    problem = random_problem(bias=bias)
    wanted = (0, 1, 2) if bias else (0, 1)

    def value_and_gradients(loss):
        def total(*arguments):
            sums = loss(*arguments, 0.1)
            return 3.0 * sums.loss, sums

        gradient = jax.value_and_grad(total, argnums=wanted, has_aux=True)
        return jax.jit(gradient)(*problem)

    chex.assert_trees_all_close(
        value_and_gradients(functools.partial(fused_cross_entropy, shards=shards)),
        value_and_gradients(plain),
        rtol=1e-4,
        atol=1e-5,
    )


def test_fused_gives_the_same_sums_with_and_without_differentiation():
    hidden, *rest = random_problem()

    def total(hidden):
        table, bias, targets, weights = rest
        sums = fused_cross_entropy(hidden, table, bias, targets, weights, 0.1)
        return sums.loss, sums

    _, sums = total(hidden)
    _, under_gradient = jax.grad(total, has_aux=True)(hidden)
    chex.assert_trees_all_close(sums, under_gradient, rtol=1e-5)


def test_padding_carries_no_loss_and_no_gradient():
    hidden, table, bias, targets, weights = random_problem()
    other = jnp.where(weights > 0, targets, (targets + 1) % V)

    def gradient(y):
        return jax.grad(
            lambda h: fused_cross_entropy(h, table, bias, y, weights, 0.1).loss
        )(hidden)

    chex.assert_trees_all_equal(gradient(targets), gradient(other))
    assert not np.any(gradient(targets)[np.asarray(weights) == 0])


def temporary_bytes(loss, *, tokens, words):
    """Of value and gradients, as XLA plans them."""
    shapes = (
        jax.ShapeDtypeStruct((64, tokens // 64, 16), jnp.float32),
        jax.ShapeDtypeStruct((words, 16), jnp.float32),
    )
    ids = jnp.zeros((64, tokens // 64), jnp.int32)
    ones = jnp.ones((64, tokens // 64))

    def total(hidden, table):
        return loss(hidden, table, None, ids, ones, 0.1).loss

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch):
    """Full logits take four bytes a token and word. The fused loss holds those of a
    chunk, and of each token only what has the size of a hidden state."""
    hold_at_once(monkeypatch, losses.CPU_CHUNK)
    few, many = (
        temporary_bytes(fused_cross_entropy, tokens=tokens, words=8_000)
        for tokens in (4096, 32768)
    )
    full_logits = 4096 * 8_000 * 4
    assert temporary_bytes(plain, tokens=4096, words=8_000) >= full_logits
    assert few < full_logits / 2
    assert many - few < 4 * (32768 - 4096) * 16 * 4
    chunk = losses.CPU_CHUNK.logits * 4
    large = temporary_bytes(fused_cross_entropy, tokens=4096, words=131_072)
    assert large < 4 * chunk + 4 * 131_072 * 16 * 4 < 4096 * 131_072 * 4 / 6


def shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Of all that is computed, in loops and functions too."""
    for equation in jaxpr.eqns:
        yield from (value.aval.shape for value in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


@pytest.mark.parametrize("chunk", [losses.CPU_CHUNK, losses.CHUNK])
@pytest.mark.parametrize("words", [8_000, 100_000])
@pytest.mark.parametrize(("rows", "length"), [(4096, 8), (17, 1021)])
def test_logits_of_a_chunk_have_a_bound_whatever_the_rows(
    monkeypatch, chunk, words, rows, length
):
    hold_at_once(monkeypatch, chunk)

    def total(hidden, table, targets, weights):
        return fused_cross_entropy(hidden, table, None, targets, weights, 0.1).loss

    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(
        jax.ShapeDtypeStruct((rows, length, 16), jnp.float32),
        jax.ShapeDtypeStruct((words, 16), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((rows, length), jnp.float32),
    )
    logits = {shape for shape in shapes_in(jaxpr.jaxpr) if shape[1:] == (words,)}
    bound = min(chunk.tokens * words, chunk.logits)
    largest = max(math.prod(shape) for shape in logits)
    assert 0.8 * bound < largest <= bound


def test_rows_on_several_devices_give_the_same_when_the_loss_is_not_told(monkeypatch):
    hold_at_once(monkeypatch, losses.Chunk(5, 2**24))
    hidden, table, bias, targets, weights = random_problem()
    rows = [jnp.repeat(x, 4, axis=0)[:8] for x in (hidden, targets, weights)]

    def total(h, table, y, w):
        return fused_cross_entropy(h, table, bias, y, w, 0.1).loss

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    alone = gradient(rows[0], table, *rows[1:])
    mesh = parallel.make_mesh(ParallelConfig(), jax.devices())
    h, y, w = jax.device_put(rows, parallel.batch_sharding(mesh))
    chex.assert_trees_all_close(gradient(h, table, y, w), alone, rtol=1e-5, atol=1e-6)


def test_bfloat16_hidden_states_keep_float32_gradients_for_the_table():
    hidden, table, _, targets, weights = random_problem(dtype=jnp.bfloat16)

    def total(hidden, table):
        return fused_cross_entropy(hidden, table, None, targets, weights, 0.1).loss

    d_hidden, d_table = jax.grad(total, argnums=(0, 1))(hidden, table)
    assert (d_hidden.dtype, d_table.dtype) == (jnp.bfloat16, jnp.float32)
    exact = jax.grad(total, argnums=1)(hidden.astype(jnp.float32), table)
    assert float(jnp.abs(d_table - exact).max()) < 0.05 * float(jnp.abs(exact).max())
