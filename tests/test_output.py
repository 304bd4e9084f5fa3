"""Logits: rough ones are as near as they say, and search finds the same with them."""

from collections import deque
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import SearchConfig
from transformer_jax.models.output import project_roughly, rough_output
from transformer_jax.search.choosing import CANDIDATES, best_token
from transformer_jax.search.greedy import greedy_search
from transformer_jax.testing import TINY_VOCAB_SIZE, tiny_model
from transformer_jax.translation import offers
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.ensembles import Ensemble
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.offers import WholeOffers, whole_offer
from transformer_jax.translation.sentences import Sentence
from transformer_jax.types import RoughLogits, StepOutput

D, V = 32, 700
EOS = 2


def draws(seed: int, rows: int = 6):
    """Hidden states [R, 1, D], a table [V, D] and a bias [V], some far from others."""
    draw = np.random.default_rng(seed)
    hidden = draw.normal(size=(rows, 1, D)) * 10.0 ** draw.integers(-3, 3, (rows, 1, 1))
    table = draw.normal(size=(V, D)) * 3.0 ** draw.integers(-2, 2, (V, 1))
    return (jnp.asarray(x, jnp.float32) for x in (hidden, table, draw.normal(size=V)))


@jax.jit
def roughly(hidden, table, bias):
    logits = project_roughly(hidden, rough_output(table, bias), table, bias)
    places = jnp.broadcast_to(jnp.arange(V), (*hidden.shape[:2], V))
    return *logits[:2], logits.exactly(places), logits.exactly(None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("biased", [False, True])
def test_rough_logits_are_as_near_as_they_say(seed, biased):
    hidden, table, bias = draws(seed)
    bias = bias if biased else None
    values, error, some, every = jax.device_get(roughly(hidden, table, bias))
    exact = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    exact += np.asarray(bias, np.float64) if biased else 0
    off = np.abs(values - exact).max(axis=-1)
    assert (off <= error).all()
    assert (off > error / 100).all(), "nothing was rounded, or the bound is idle"
    scale = np.abs(exact).max(axis=-1, keepdims=True)
    chex.assert_trees_all_close(every / scale, exact / scale, atol=1e-6)
    chex.assert_trees_all_close(some / scale, every / scale, atol=1e-6)


@jax.jit
def by_both(hidden, table, bias, allowed):
    """The best token by rough logits, by exact ones, and what rough ones alone say."""
    rough = project_roughly(hidden, rough_output(table, bias), table, bias)

    def allow(x):
        return jnp.where(allowed, x, -jnp.inf)

    exact = rough.exactly(None)
    wanted = jnp.full((len(hidden), 1), True)
    found = best_token(rough, allow, wanted), best_token(exact, allow, wanted)
    return *found, allow(rough.values).argmax(axis=-1)


@pytest.mark.parametrize("near", [0, 3, CANDIDATES - 1, 60], ids=str)
def test_the_best_is_that_of_exact_logits(near):
    """`near` others are so close to each row's best that rounding changes the order."""
    hidden, table, bias = draws(near)
    draw = np.random.default_rng(near)
    hidden = hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)
    close = np.asarray(table).copy()
    for row in np.asarray(hidden[:, 0]):
        tokens = draw.choice(V, near + 1, replace=False)
        others = draw.normal(size=(near + 1, D)) * 3
        others -= (others @ row)[:, None] * row
        steps = 1e-4 * draw.permutation(near + 1)[:, None]
        close[tokens] = (60 + steps) * row + others
    allowed = jnp.ones((len(hidden), 1, V), bool)
    ours, exact, rough = jax.device_get(
        by_both(hidden, jnp.asarray(close), 0 * bias, allowed)
    )
    chex.assert_trees_all_equal(ours[1], exact[1])
    chex.assert_trees_all_close(ours[0], exact[0], rtol=1e-5)
    assert (rough != exact[1]).any() == (near > 0)


UP = 1 + 2.0**-8 - 2.0**-20
"""What becomes 1 in bfloat16, and loses nearly as much as can be lost."""


@pytest.mark.parametrize(
    ("hidden", "weight", "bias"),
    [
        (np.full(D, UP), np.ones(D), 0.0),
        (np.ones(D), np.full(D, UP), 0.0),
        (np.arange(1.0, 1 + D), 1 / 2.0 ** np.arange(D), 0.0),
        (np.ones(D), np.ones(D), 1e4 + 1 / 3),
        (np.full(D, UP * 1e-20), np.ones(D), 0.0),
        (np.ones(D), np.full(D, UP * 1e-25), 0.0),
    ],
    ids=["hidden", "table", "sums", "bias", "hidden underflows", "table underflows"],
)
def test_no_part_of_the_bound_can_be_left_out(hidden, weight, bias):
    """One thing is rounded, the same way in all places, so that nothing cancels."""
    table = np.zeros((V, D))
    table[V // 2] = weight
    parts = hidden[None, None], table, np.full(V, bias)
    parts = [jnp.asarray(part, jnp.float32) for part in parts]
    values, error, *_ = jax.device_get(roughly(*parts))
    wide = [np.asarray(part, np.float64) for part in parts]
    off = np.abs(values - (wide[0] @ wide[1].T + bias)).max()
    assert 0 < off <= error.max()


def made_up(values, exact, error: float) -> RoughLogits:
    values, exact = (jnp.asarray(x)[None, None] for x in (values, exact))

    def exactly(tokens):
        if tokens is None:
            return exact
        return jnp.take_along_axis(exact, tokens, axis=-1)

    return RoughLogits(values, jnp.full((1, 1), error), exactly)


@pytest.mark.parametrize(
    ("exact", "error", "token"),
    [
        ([8.3, 8.4, 8.2, 8, 8.8, 7, 7, 1, 1], 1.0, 4),  # not of the highest four
        ([9, 9, 8.8, 8.1, 8, 7, 7, 1, 1], 0.2, 0),
        ([8.9, 9, 9, 8.1, 8, 7, 7, 1, 1], 0.3, 1),
    ],
)
def test_rough_order_decides_nothing(exact, error, token):
    values = [8.9, 9, 8.8, 8.1, 8, 7, 7, 1, 1]
    for order in (slice(None), slice(None, None, -1)):
        logits = made_up(values[order], exact[order], error)
        wanted = jnp.ones((1, 1), bool)
        best, found = best_token(logits, lambda x: x, wanted)
        assert best.item() == np.float32(max(exact))
        assert found.item() == exact[order].index(max(exact))
        assert found.item() == token or order != slice(None)


def test_a_row_that_is_sure_is_not_decided_by_what_another_asked_for():
    exact = jnp.arange(12.0)[None, None] * jnp.ones((2, 1, 1))

    def exactly(tokens):
        if tokens is None:
            return exact[..., ::-1]
        return jnp.take_along_axis(exact, tokens, axis=-1)

    logits = RoughLogits(exact, jnp.array([[0.1], [10.0]]), exactly)
    _, found = best_token(logits, lambda x: x, jnp.ones((2, 1), bool))
    assert found.tolist() == [[11], [0]]


def test_all_are_asked_for_only_where_a_token_is_to_be_chosen():
    table = np.random.default_rng(0).normal(size=(40, 40))
    table = jnp.asarray(table, jnp.float32)
    asked = []

    def exact_step(tokens, positions, cache, memory):
        return StepOutput(table[tokens]), cache

    def rough_step(tokens, positions, cache, memory):
        exact = table[tokens]

        def exactly(some):
            if some is None:
                jax.debug.callback(lambda: asked.append(True))
                return exact
            return jnp.take_along_axis(exact, some, axis=-1)

        error = jnp.full(tokens.shape, 100.0)
        return StepOutput(RoughLogits(0 * exact, error, exactly)), cache

    rest: dict[str, Any] = {
        "prefix": jnp.array([[1, 5, 6], [1, 7, 8]]),
        "max_length": 8,
        "eos_id": EOS,
        "scores": False,
    }
    found = [
        greedy_search(step, (), jnp.zeros(2), **rest).tokens
        for step in (exact_step, rough_step)
    ]
    jax.effects_barrier()
    chex.assert_trees_all_equal(*found)
    assert found[0].all(), "eight tokens each"
    assert len(asked) == 5  # two come from the prefix, and the last is the end


def test_what_is_forbidden_is_not_found():
    hidden, table, bias = draws(7)
    draw = np.random.default_rng(0)
    allowed = draw.random((6, 1, V)) < 0.02
    allowed[1], allowed[2] = False, False
    allowed[2, 0, 40] = True
    ours, exact, _ = jax.device_get(by_both(hidden, table, bias, jnp.asarray(allowed)))
    possible = np.isfinite(exact[0])
    assert possible[:, 0].tolist() == [True, False, True, True, True, True]
    chex.assert_trees_all_equal(ours[1][possible], exact[1][possible])
    assert ours[1][2] == 40
    chex.assert_trees_all_close(ours[0], exact[0], rtol=1e-4)


def test_neighbours_do_not_matter_and_only_those_who_ask_cost():
    """A row with many equals makes all logits be computed, but decides of itself."""
    hidden, table, _ = draws(3)
    equals = hidden.at[3].set(0)
    asked = []

    def search(hidden, wanted):
        rough = project_roughly(hidden, rough_output(table, None), table, None)

        def exactly(tokens):
            if tokens is None:
                jax.debug.callback(lambda: asked.append(True))
            return rough.exactly(tokens)

        return best_token(rough._replace(exactly=exactly), lambda x: x, wanted)

    every = jnp.ones((6, 1), bool)
    run = jax.jit(search)
    alone = run(hidden, every)
    jax.effects_barrier()
    assert not asked
    beside = run(equals, every)
    jax.effects_barrier()
    assert asked == [True]
    others = np.array([0, 1, 2, 4, 5])
    for one, other in zip(alone, beside, strict=True):
        chex.assert_trees_all_equal(one[others], other[others])
    assert beside[1][3] == 0, "the smallest among equals"
    run(equals, every.at[3].set(False))
    jax.effects_barrier()
    assert asked == [True]


GREEDY = SearchConfig(method="greedy")


def decoders(search: SearchConfig, banned: tuple[int, ...], *, bias: bool):
    """One that goes by exact logits, and one that goes by rough ones."""
    model, params = tiny_model(
        0, num_encoder_layers=1, num_decoder_layers=1, output_bias=bias
    )
    plan = SearchPlan(search, 12, 1, EOS, banned=banned, scores=False)
    for rough in (False, True):
        whole = whole_offer(params, model=model, rough=rough)
        yield Decoder(model, params, plan, slots=4, length=8, whole=whole)


@pytest.mark.parametrize(
    ("search", "banned"),
    [
        (GREEDY, ()),
        (SearchConfig(method="greedy", min_length=5, no_repeat_ngram=1), (4, 9)),
    ],
    ids=["free", "constrained"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_greedy_search_finds_the_same(search, banned, bias):
    draw = np.random.default_rng(5)
    sentences = [
        Sentence(i, draw.integers(4, TINY_VOCAB_SIZE, 6), 12) for i in range(30)
    ]
    found = []
    for decoder in decoders(search, banned, bias=bias):
        parts = [each for part in decoder.run(deque(sentences)) for each in part]
        parts = sorted(parts, key=lambda each: each.index)
        found.append([each.result.tokens.tolist() for each in parts])
    assert len(found[0]) == len(sentences)
    assert found[0] == found[1]
    assert len({str(each) for each in found[0]}) > 1


def test_rough_logits_are_taken_where_they_pay(monkeypatch):
    monkeypatch.setattr(offers, "multiplies_bfloat16", lambda: True)
    plan = SearchPlan(GREEDY, 12, 1, EOS, banned=(), scores=False)

    def kind(plan=plan, slots=30, ensemble=False, platform="cpu", **settings):
        model, params = tiny_model(0, **settings)
        if ensemble:
            model, params = Ensemble((model,)), (params,)
        whole = WholeOffers(model, params, platform).for_search(plan, slots)
        return whole and type(whole.output).__name__

    assert kind() == "RoughOutput"
    assert kind(slots=1) == "Output"
    assert kind(platform="gpu") is None
    assert kind(plan._replace(scores=True)) == "Output"
    assert kind(plan._replace(search=SearchConfig(beam_size=2))) == "Output"
    assert kind(dtype="bfloat16") == "Output"
    assert kind(tied_embeddings="none") is None
    assert kind(ensemble=True) is None
    assert kind(plan._replace(search=SearchConfig(method="greedy", block=2))) is None
    monkeypatch.setattr(offers, "multiplies_bfloat16", lambda: False)
    assert kind() == "Output"
