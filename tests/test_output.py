"""Logits: rough ones are as near as they say, and search finds the same with them."""

from collections import deque

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import SearchConfig
from transformer_jax.models.output import project, project_roughly, rough_output
from transformer_jax.search.choosing import CANDIDATES, best_token
from transformer_jax.testing import TINY_VOCAB_SIZE, tiny_model
from transformer_jax.translation import offers
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.ensembles import Ensemble
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.offers import WholeOffers, whole_offer
from transformer_jax.translation.sentences import Sentence

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
    chex.assert_trees_all_equal(every, project(hidden, table, bias))
    scale = np.abs(exact).max(axis=-1, keepdims=True)
    chex.assert_trees_all_close(some / scale, every / scale, atol=1e-6)


def best(logits, allow=lambda x: x, wanted=True):
    rows = jnp.full((logits.values.shape[0], 1), wanted)
    return best_token(logits, allow, rows)


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
    alone, beside = run(hidden, every), None
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

    def kind(plan=plan, slots=30, ensemble=False, **settings):
        model, params = tiny_model(0, **settings)
        if ensemble:
            model, params = Ensemble((model,)), (params,)
        whole = WholeOffers(model, params).for_search(plan, slots)
        return whole and type(whole.output).__name__

    assert kind() == "RoughOutput"
    assert kind(slots=1) == "Output"
    assert kind(plan._replace(scores=True)) == "Output"
    assert kind(plan._replace(search=SearchConfig(beam_size=2))) == "Output"
    assert kind(dtype="bfloat16") == "Output"
    assert kind(tied_embeddings="none") is None
    assert kind(ensemble=True) is None
    assert kind(plan._replace(search=SearchConfig(method="greedy", block=2))) is None
    monkeypatch.setattr(offers, "multiplies_bfloat16", lambda: False)
    assert kind() == "Output"
