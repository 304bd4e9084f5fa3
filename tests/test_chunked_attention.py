"""Attention in chunks and by a kernel: the plain path's numbers, in less memory."""

import contextlib
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models import attention
from transformer_jax.models import fused_attention as kernel
from transformer_jax.models.attention import attention_path, dot_product_attention
from transformer_jax.models.chunked_attention import chunked_attention
from transformer_jax.models.fused_attention import fused_attention, has_fused_kernel
from transformer_jax.models.masks import Segments, block_visible
from transformer_jax.testing import tiny_batch, tiny_model, tiny_model_config
from transformer_jax.training.objectives import make_objective

PACKED = jnp.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0], [1, 1, 2, 2] + 9 * [0]])
SOURCE = jnp.array([[1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3], [1, 1, 1, 1, 2, 2, 2] + 4 * [0]])
"""Sentence 2 of the first row has no source: its queries may attend to nothing."""
ALONE = PACKED.clip(max=1)
CASES = {
    "self": Segments(PACKED, PACKED),
    "causal": Segments(PACKED, PACKED, causal=True),
    "cross": Segments(PACKED, SOURCE),
    "padding alone": Segments(0 * PACKED, SOURCE),
    "one a row": Segments(ALONE, ALONE, causal=True, one_per_row=True),
    "one a row, cross": Segments(ALONE, SOURCE.clip(max=1), one_per_row=True),
    "a row without source": Segments(ALONE, ALONE.at[1].set(0), one_per_row=True),
}
every_case = pytest.mark.parametrize("case", CASES)


def random_qkv(segments, *, N=2, H=8, dtype=jnp.float32) -> Any:
    draw = np.random.default_rng(0)
    (B, T), S = segments.query.shape, segments.key.shape[1]
    shapes = ((B, T, N, H), (B, N, S, H), (B, N, S, H))
    return tuple(jnp.asarray(draw.normal(size=s), dtype) for s in shapes)


def value_and_gradients(attend, qkv):
    """What it gives, and gradients of a number that is made of all of it."""

    def total(q, k, v):
        out = attend(q, k, v)
        return jnp.sin(out.astype(jnp.float32)).sum(), out

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return gradients(*qkv)[::-1]


def plain(segments):
    return lambda q, k, v: dot_product_attention(q, k, v, segments.mask())[0]


@pytest.mark.parametrize("block", [4, 64])
@every_case
def test_chunks_give_the_attention_and_gradients_of_the_plain_path(case, block):
    segments = CASES[case]
    qkv = random_qkv(segments)

    def chunked(q, k, v):
        return chunked_attention(q, k, v, segments, block=block)

    chex.assert_trees_all_close(
        value_and_gradients(chunked, qkv),
        value_and_gradients(plain(segments), qkv),
        atol=2e-6,
    )


def test_large_logits_overflow_nowhere():
    segments = CASES["causal"]
    q, k, v = random_qkv(segments)
    qkv = (300 * q, 300 * k, v)

    def chunked(q, k, v):
        return chunked_attention(q, k, v, segments, block=4)

    found = value_and_gradients(chunked, qkv)
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(found[0], value_and_gradients(plain(segments), qkv)[0])


def test_chunks_of_bfloat16_are_as_exact_as_the_plain_path():
    segments = CASES["causal"]
    exact = plain(segments)(*random_qkv(segments))
    q, k, v = low = random_qkv(segments, dtype=jnp.bfloat16)
    out = chunked_attention(q, k, v, segments, block=4)
    assert out.dtype == jnp.bfloat16
    errors = [
        float(jnp.abs(x.astype(jnp.float32) - exact).max())
        for x in (out, plain(segments)(*low))
    ]
    assert errors[0] < 1.5 * errors[1] < 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_that_are_skipped_hold_nothing_to_attend_to(causal):
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 7, (4, 12))
    rows = [np.repeat(np.arange(1, 13), row)[:24] for row in lengths]
    ids = np.stack([np.pad(row, (0, 24 - len(row))) for row in rows])
    cut = jnp.asarray(ids.reshape(4, 6, 4))
    mask = np.asarray(Segments(cut.reshape(4, 24), cut.reshape(4, 24), causal).mask())
    needed = mask.any(axis=(0, 1)).reshape(6, 4, 6, 4).any(axis=(1, 3))
    visible = np.asarray(block_visible(cut, cut, causal=causal))
    assert not (needed & ~visible).any()
    # Sentences in a row are in order, so some blocks are far apart.
    assert visible.sum() < (21 if causal else 36)


def test_memory_is_linear_in_length():
    def temporary_bytes(attend, length):
        ids = jnp.ones((1, length), jnp.int32)
        shapes = ((1, length, 1, 8), (1, 1, length, 8), (1, 1, length, 8))
        like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        segments = Segments(ids, ids, causal=True)
        gradient = jax.grad(lambda *qkv: attend(*qkv, segments).sum(), argnums=(0, 1))
        analysis: Any = jax.jit(gradient).lower(*like).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def whole(q, k, v, segments):
        return dot_product_attention(q, k, v, segments.mask())[0]

    def chunked(q, k, v, segments):
        return chunked_attention(q, k, v, segments, block=64)

    short, long = (temporary_bytes(chunked, length) for length in (1024, 4096))
    assert long < 4.5 * short
    # A GPU's product has 32 MiB to itself, of whatever length.
    grown = long if jax.default_backend() == "cpu" else long - short
    assert temporary_bytes(whole, 4096) > 4096 * 4096 * 4 > 20 * grown


def test_rows_and_heads_may_be_shared_out_over_devices():
    devices = jax.devices()
    if len(devices) != 8:
        pytest.skip("needs eight devices")
    mesh = jax.sharding.Mesh(np.reshape(devices, (4, 2)), ("data", "tensor"))
    rows = jnp.concatenate([PACKED, PACKED[::-1]])
    segments = Segments(rows, rows, causal=True)
    qkv = random_qkv(segments)

    def chunked(q, k, v):
        return chunked_attention(q, k, v, segments, block=4)

    q, k, v = (
        jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(*axes)))
        for x, axes in zip(
            qkv, (("data", None, "tensor"), *2 * [("data", "tensor")]), strict=True
        )
    )
    found = value_and_gradients(chunked, (q, k, v))
    assert found[0].sharding.shard_shape(q.shape) == (1, 13, 1, 8)
    chex.assert_trees_all_close(
        found, value_and_gradients(plain(segments), qkv), atol=2e-6
    )


def eightfold(segments, length=13):
    """As many rows for each of eight devices, all of that length."""

    def eight(ids):
        padded = jnp.pad(ids, ((0, 0), (0, length)))[:, :length]
        return jnp.tile(padded, (8, 1))

    query = eight(segments.query)
    key = query if segments.key is segments.query else eight(segments.key)
    return segments.replace(query=query, key=key)


def of_words(attend, segments):
    """What it gives for queries that are not padding: the kernel's others differ."""
    word = (segments.query > 0)[:, :, None, None]
    return lambda q, k, v: jnp.where(word, attend(q, k, v), 0)


each_tile = pytest.mark.parametrize("tile", [1, 128])
"""Of 1, rows stay apart; of 128, some of those that a device has become one."""


@each_tile
@every_case
def test_what_the_kernel_is_asked_for_is_the_plain_path(monkeypatch, case, tile):
    """On a CPU the same call goes to XLA; the kernel's own numbers need a GPU."""
    monkeypatch.setattr(kernel, "TILE", tile)
    segments = eightfold(CASES[case])
    qkv = random_qkv(segments)

    def fused(q, k, v):
        with jax.numpy_rank_promotion("allow"):
            return fused_attention(q, k, v, segments, implementation="xla")

    chex.assert_trees_all_close(
        value_and_gradients(of_words(fused, segments), qkv),
        value_and_gradients(plain(segments), qkv),
        rtol=1e-5,
        atol=2e-6,
    )


@each_tile
@every_case
def test_the_kernel_gives_the_plain_path(monkeypatch, case, tile):
    monkeypatch.setattr(kernel, "TILE", tile)
    segments = eightfold(CASES[case], length=12)
    qkv = random_qkv(segments, dtype=jnp.bfloat16)
    if not has_fused_kernel(qkv[0], (12, 12)):
        pytest.skip("needs an NVIDIA GPU of Ampere or later")

    def fused(q, k, v):
        return fused_attention(q, k, v, segments)

    chex.assert_tree_all_finite(value_and_gradients(fused, qkv))
    out, gradients = value_and_gradients(of_words(fused, segments), qkv)
    expected, others = value_and_gradients(plain(segments), random_qkv(segments))
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x.astype(jnp.float32), (out, gradients)),
        (expected, others),
        atol=0.05,
    )


@pytest.mark.parametrize("rows", [8, 24, 64])
def test_rows_are_joined_within_a_device(rows):
    devices = jax.devices()
    if len(devices) != 8:
        pytest.skip("needs eight devices")
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    by_row = jax.sharding.NamedSharding(mesh, jax.P("data"))
    ids = jnp.ones((rows, 32), jnp.int32)
    segments = jax.device_put(Segments(ids, ids), by_row)

    def total(q, k, v):
        with jax.numpy_rank_promotion("allow"):
            out = fused_attention(q, k, v, segments, implementation="xla")
        return (out**2).sum(axis=(1, 2, 3))

    qkv = jax.device_put(random_qkv(segments), by_row)
    text = jax.jit(total).lower(*qkv).compile().as_text() or ""
    assert "fusion" in text
    assert not re.search("all-gather|all-to-all|collective-permute", text)


def test_the_path_follows_from_setting_length_and_need():
    def path(length=64, *, weights=False, kernel=False, training=False, **settings):
        return attention_path(
            tiny_model_config(**settings),
            (length, length),
            weights=weights,
            kernel=kernel,
            training=training,
        )

    long = attention.CHUNKED_LENGTH + 1
    assert path() == "plain"
    assert path(long) == "chunked"
    assert path(kernel=True) == "fused"
    assert path(long, weights=True, kernel=True) == "plain"
    assert path(attention="chunked") == "chunked"
    assert path(attention="chunked", weights=True) == "plain"
    assert path(long, attention="plain", kernel=True) == "plain"
    assert path(attention="fused", kernel=True) == "fused"
    assert path(attention="fused") == path() == "plain"
    assert path(long, attention="fused") == path(long) == "chunked"
    with pytest.raises(ValueError, match="no kernel is there"):
        path(attention="fused", training=True)


def test_a_model_trained_with_the_kernel_translates_without(monkeypatch):
    monkeypatch.setattr(attention, "has_fused_kernel", lambda *_: False)
    batch, losses = tiny_batch(), []
    for kind in ("plain", "fused"):
        model, params = tiny_model(attention=kind)
        objective = make_objective(model, 0.1, deterministic=True)
        losses.append(objective(params, batch, None)[0])
    assert losses[0] == losses[1]
    training = make_objective(model, 0.1, deterministic=False)
    with pytest.raises(ValueError, match="no kernel is there"):
        jax.eval_shape(training, params, batch, jax.random.key(0))


def test_a_model_in_chunks_gives_the_same_loss_and_gradients(monkeypatch):
    batch = tiny_batch()
    found = []
    for kind in ("plain", "chunked", "kernel"):
        attention_kind = "fused" if kind == "kernel" else kind
        model, params = tiny_model(attention=attention_kind)
        objective = make_objective(model, 0.1, deterministic=True)
        gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
        context = contextlib.nullcontext()
        if kind == "kernel":
            monkeypatch.setattr(attention, "has_fused_kernel", lambda *_: True)
            monkeypatch.setattr(attention, "fused_attention", by_xla)
            context = jax.numpy_rank_promotion("allow")
        with context:
            found.append(gradient(params, batch, None))
    for other in found[1:]:
        chex.assert_trees_all_close(other, found[0], atol=1e-4)


def by_xla(q, k, v, segments):
    return fused_attention(q, k, v, segments, implementation="xla")
