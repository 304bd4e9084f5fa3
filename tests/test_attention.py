"""Attention as a formula, its masks, and the cache."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models.attention import (
    KeyValue,
    decoding_attention,
    dot_product_attention,
)
from transformer_jax.models.cache import write_cache
from transformer_jax.models.dropout import drop
from transformer_jax.models.masks import (
    NEG_INF,
    cache_bias,
    causal_mask,
    mask_bias,
    segment_mask,
)


def random_qkv(T=3, S=4, B=2, N=2, H=5):
    draw = np.random.default_rng(0)
    shapes = ((B, T, N, H), (B, N, S, H), (B, N, S, H))
    return tuple(jnp.asarray(draw.normal(size=s), jnp.float32) for s in shapes)


def test_attention_is_its_formula_written_with_loops():
    q, k, v = random_qkv()
    mask = np.ones((2, 1, 3, 4), bool)
    mask[0, 0, :, 3] = False
    out, weights = dot_product_attention(q, k, v, jnp.asarray(mask))
    for b, t, n in np.ndindex(2, 3, 2):
        seen = [s for s in range(4) if mask[b, 0, t, s]]
        scores = [float(q[b, t, n] @ k[b, n, s]) / math.sqrt(5) for s in seen]
        exp = np.exp(np.array(scores) - max(scores))
        expected = exp / exp.sum()
        chex.assert_trees_all_close(
            weights[b, n, t, np.array(seen)], expected, atol=1e-6
        )
        mixed = sum(
            w * np.array(v[b, n, s]) for w, s in zip(expected, seen, strict=True)
        )
        chex.assert_trees_all_close(out[b, t, n], mixed, atol=1e-6)


def test_attention_equals_that_of_jax():
    q, k, v = random_qkv()
    mask = jnp.asarray(np.random.default_rng(1).random((2, 1, 3, 4)) < 0.7)
    mask = mask.at[..., 0].set(True)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.nn.dot_product_attention(
            q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask
        )
    chex.assert_trees_all_close(
        dot_product_attention(q, k, v, mask)[0], expected, atol=1e-5
    )


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("turned", [False, True])
def test_attention_of_decoding_is_that_of_training(turned, dtype, atol):
    q, k, v = (x.astype(dtype) for x in random_qkv())
    mask = jnp.asarray(np.random.default_rng(1).random((2, 1, 3, 4)) < 0.7)
    mask = mask.at[1, :, 2].set(False)  # a query that may attend to nothing
    keys = k.swapaxes(2, 3) if turned else k
    found = decoding_attention(q, keys, v, mask_bias(mask), keys_turned=turned)
    expected = dot_product_attention(q, k, v, mask)
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    chex.assert_trees_all_close(found, expected, atol=atol)
    chex.assert_trees_all_equal(found[0][1, 2], jnp.zeros_like(found[0][1, 2]))


def test_cached_places_of_other_pasts_are_masked():
    draw = np.random.default_rng(0)
    B, K, L, T = 2, 3, 2, 5
    ancestors = draw.integers(0, K, size=(B * K, T))
    positions = draw.integers(0, T - 1, size=(B * K, 1)) + np.arange(L)
    bias = cache_bias(jnp.asarray(positions), jnp.asarray(ancestors), B)
    chex.assert_shape(bias, (B, 1, K * L, T * K))
    for b, k, token, t, w in np.ndindex(B, K, L, T, K):
        row = b * K + k
        own = t <= positions[row, token] and ancestors[row, t] == w
        expected = 0 if own else NEG_INF
        assert bias[b, 0, k * L + token, t * K + w] == np.float32(expected)


def test_a_query_that_may_attend_to_nothing_gives_zeros_and_finite_gradients():
    q, k, v = random_qkv()
    mask = jnp.zeros((2, 1, 3, 4), bool).at[0].set(True)

    def total(q, k, v):
        return dot_product_attention(q, k, v, mask)[0].sum()

    out, weights = dot_product_attention(q, k, v, mask)
    chex.assert_trees_all_equal(out[1], jnp.zeros_like(out[1]))
    chex.assert_trees_all_equal(weights[1], jnp.zeros_like(weights[1]))
    chex.assert_tree_all_finite(jax.grad(total, argnums=(0, 1, 2))(q, k, v))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_gradients_are_those_of_the_formula(dropped, dtype, atol):
    """Ours are written out; those of the formula jax finds by itself."""
    q, k, v = random_qkv()
    draw = np.random.default_rng(1)
    mask = jnp.asarray(draw.random((2, 1, 3, 4)) < 0.6).at[1, :, 2].set(False)
    aim = jnp.asarray(draw.normal(size=(2, 3, 2, 5)), jnp.float32)
    kept = jnp.asarray(draw.random((2, 2, 3, 4)) < 0.7) | (not dropped)

    def ours(q, k, v):
        out, weights = dot_product_attention(q, k, v, mask, drop=lambda w: w * kept)
        return (out * aim).sum() + (weights**2).sum()

    def formula(q, k, v):
        logits = jnp.einsum("BTNH,BNSH->BNTS", q, k) / math.sqrt(5)
        exp = jnp.where(mask, jnp.exp(logits), 0)
        total = exp.sum(axis=-1, keepdims=True)
        weights = exp / jnp.where(total > 0, total, 1)
        out = jnp.einsum("BNTS,BNSH->BTNH", weights * kept, v)
        return (out * aim).sum() + (weights**2).sum()

    found = jax.grad(ours, argnums=(0, 1, 2))(*(x.astype(dtype) for x in (q, k, v)))
    assert {x.dtype for x in found} == {jnp.dtype(dtype)}
    wanted = jax.grad(formula, argnums=(0, 1, 2))(q, k, v)
    found = jax.tree.map(lambda x: x.astype(jnp.float32), found)
    chex.assert_trees_all_close(found, wanted, atol=atol)


def test_packed_rows_attend_inside_their_sentence_and_backwards_only():
    segments = jnp.array([[1, 1, 2, 2, 2, 0]])
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        dtype=bool,
    )
    mask = segment_mask(segments, segments) & causal_mask(6)
    chex.assert_trees_all_equal(mask[0, 0], expected)


def test_each_row_writes_the_cache_at_its_own_place():
    empty = jnp.zeros((2, 2, 4, 1))  # two sentences, two heads
    keys = jnp.array([[1, 2], [3, 4]], jnp.float32)[..., None, None]
    new = KeyValue(keys, 10 * keys)
    written = write_cache(KeyValue(empty, empty), new, jnp.array([[1], [3]]))
    expected = jnp.array(
        [[[0, 1, 0, 0], [0, 2, 0, 0]], [[0, 0, 0, 3], [0, 0, 0, 4]]], jnp.float32
    )
    chex.assert_trees_all_equal(written.key[..., 0], expected)
    chex.assert_trees_all_equal(written.value[..., 0], 10 * expected)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    x = jnp.ones((200, 500))
    kept = drop(x, rate, jax.random.key(0))
    share = float((kept == 0).mean())
    sigma = math.sqrt(rate * (1 - rate) / x.size)
    assert abs(share - rate) < 4 * sigma + 2**-16
    assert abs(float(kept.mean()) - 1) < 5 * sigma / (1 - rate) + 1e-4


def test_attention_dropout_works_on_the_weights():
    q, k, v = random_qkv()
    mask = jnp.ones((2, 1, 3, 4), bool)
    out, _ = dot_product_attention(q, k, v, mask, drop=lambda w: 0 * w)
    chex.assert_trees_all_equal(out, jnp.zeros_like(out))
