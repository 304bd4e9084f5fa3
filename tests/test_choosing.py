"""The best tokens of a large vocabulary are those of sorting all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.search.choosing import CHUNK, best_tokens, likeliest, log_totals


def by_sorting(logits, offsets, count):
    """Sums, beams and tokens; the better beam and the smaller token among equals."""
    vocab_size = logits.shape[-1]
    sums = (offsets[..., None] + logits).reshape(len(logits), -1)
    order = np.argsort(-sums, axis=-1, kind="stable")[:, :count]
    best = np.take_along_axis(sums, order, axis=-1)
    return best, order // vocab_size, order % vocab_size


@pytest.mark.parametrize("distinct", [3, 10_000], ids=["ties", "distinct"])
@pytest.mark.parametrize(
    ("beams", "vocab_size", "count"),
    [(1, 7, 1), (3, 7, 6), (1, 40 * CHUNK, 1), (1, 900, 1), (4, 5001, 8), (2, 700, 4)],
)
def test_equals_sorting(beams, vocab_size, count, distinct):
    draw = np.random.default_rng(vocab_size + distinct)
    logits = draw.integers(0, distinct, (3, beams, vocab_size)).astype(np.float32)
    offsets = draw.integers(-2, 2, (3, beams)).astype(np.float32)
    offsets[0, 0] = -np.inf
    logits[1, 0, ::2] = -np.inf
    found = jax.jit(best_tokens, static_argnums=2)(
        jnp.asarray(logits), jnp.asarray(offsets), count
    )
    for ours, theirs in zip(found, by_sorting(logits, offsets, count), strict=True):
        possible = np.isfinite(np.asarray(found[0]))
        np.testing.assert_array_equal(np.asarray(ours)[possible], theirs[possible])
    np.testing.assert_array_equal(found[0], by_sorting(logits, offsets, count)[0])


@pytest.mark.parametrize("vocab_size", [1, 7, CHUNK + 1, 900, 40 * CHUNK])
def test_the_likeliest_is_the_first_of_the_highest(vocab_size):
    draw = np.random.default_rng(vocab_size)
    logits = draw.integers(0, 50, (3, 4, vocab_size)).astype(np.float32)
    logits[0, 0] = -np.inf
    logits[1, 1, ::2] = -np.inf
    found = jax.jit(likeliest)(jnp.asarray(logits))
    np.testing.assert_array_equal(found, logits.argmax(axis=-1))


@pytest.mark.parametrize("vocab_size", [1, 7, CHUNK, CHUNK + 1, 900, 40 * CHUNK])
def test_totals_are_those_of_summing_all(vocab_size):
    logits = np.random.default_rng(vocab_size).normal(size=(3, 2, vocab_size)) * 20
    logits[0, 0, 1:] = -np.inf
    logits[1, 1] = -np.inf
    infinite = jnp.full((1, 1, vocab_size), jnp.inf)
    assert log_totals(infinite).item() == np.inf
    logits[2] += 1000  # exp of this alone would overflow
    highest = np.maximum(logits.max(axis=-1, keepdims=True), -1e9)
    with np.errstate(divide="ignore"):
        sums = np.log(np.exp(logits - highest).sum(axis=-1)) + highest[..., 0]
    found = jax.jit(log_totals)(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(found, sums, rtol=1e-6, atol=1e-5)


def test_totals_count_what_is_forbidden_however_likely_it_is():
    logits = np.random.default_rng(0).normal(size=(5, 2, 900)).astype(np.float32)
    allowed = logits.copy()
    allowed[..., 5:8] = -np.inf
    logits[1, 0, 6] = 60.0  # as a difference still within reach of exp
    logits[2, 1, 7] = 300.0
    allowed[3:] = -np.inf
    logits[3] += 500.0
    logits[4] -= 500.0
    expected = jax.jit(log_totals)(logits)
    found = jax.jit(log_totals)(logits, allowed)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    tame = np.repeat(logits[:1], 5, axis=0), np.repeat(allowed[:1], 5, axis=0)
    alone = jax.jit(log_totals)(*tame)
    np.testing.assert_array_equal(found[0], alone[0])  # whatever the others need
    with_nan = logits.copy()
    with_nan[0, 0, 3] = np.nan
    assert np.isnan(jax.jit(log_totals)(with_nan, allowed)[0, 0])


def test_nothing_is_sorted():
    text = jax.jit(best_tokens, static_argnums=2).lower(
        jnp.zeros((2, 5, 10_000)), jnp.zeros((2, 5)), 10
    )
    widest = max((shape[-1] for shape in _sorted_shapes(text.as_text())), default=0)
    assert 0 < widest < 10_000 / 5


def _sorted_shapes(text: str) -> list[tuple[int, ...]]:
    """Shapes of the operands of every sort and top-k in a lowered program."""
    shapes = []
    for line in text.splitlines():
        if "top_k" in line or "stablehlo.sort" in line:
            for part in line.split("tensor<")[1:]:
                sizes = part.split(">")[0].split("x")[:-1]
                shapes.append(tuple(int(size) for size in sizes if size.isdigit()))
    return [shape for shape in shapes if shape]
