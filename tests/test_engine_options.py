"""Options of a search in the engine: the same results as one sentence at a time, and
nothing of them in the compiled program when they are off."""

import functools
import itertools
from collections import deque
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import SearchConfig
from transformer_jax.models.cache import init_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.search import beam
from transformer_jax.search.beam import beam_search
from transformer_jax.search.beams import FREE
from transformer_jax.search.greedy import greedy_search
from transformer_jax.testing import TINY_VOCAB_SIZE, tiny_model
from transformer_jax.translation import preparing, slots
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.methods import SearchPlan, constraints_of
from transformer_jax.translation.sentences import Sentence, stacked_jobs
from transformer_jax.translation.side_by_side import side_by_side

EOS, START, MAX_LENGTH, WIDTH = 2, 1, 24, 4
OPTIONS: dict[str, Any] = {
    "min_length": 5,
    "no_repeat_ngram": 2,
    "coverage_penalty": 0.5,
}
NEUTRAL: dict[str, Any] = {
    "min_length": 0,
    "no_repeat_ngram": 0,
    "coverage_penalty": 0.0,
    "ban": (),
}
GREEDY: dict[str, Any] = {"method": "greedy"}
BEAM: dict[str, Any] = {"beam_size": 3, "n_best": 2}
METHODS = pytest.mark.parametrize("method", [GREEDY, BEAM], ids=["greedy", "beam"])
BANNED = ((5, 6), (9, 9, 9), (7, 20))


def make_sentences() -> list[Sentence]:
    draw = np.random.default_rng(5)
    found = []
    for index in range(14):
        length, width = (3, 8)[index % 2], (0, 1, 3, 0, 2)[index % 5]
        inputs = draw.integers(4, TINY_VOCAB_SIZE, length).astype(np.int32)
        prefix = tuple(draw.integers(4, TINY_VOCAB_SIZE, width).tolist())
        found.append(Sentence(index, inputs, 8 + length + width, prefix))
    return found


def make_plan(search: SearchConfig, **rest) -> SearchPlan:
    return SearchPlan(search, MAX_LENGTH, START, EOS, (0, START), **rest)


def make_model():
    sizes: dict[str, Any] = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return tiny_model(0, norm_position="pre", output_bias=True, **sizes)


def search_alone(decoder: Decoder):
    """A function of one sentence that knows nothing of slots."""
    plan = decoder.plan

    @jax.jit
    def run(params, inputs, prefix, limit):
        ids = inputs[None]
        memory = encode_memory(decoder.model, params, ids, jnp.ones_like(ids))
        attends = bool(plan.search.coverage_penalty)
        step_fn = make_step_fn(decoder.model, params, return_attention=attends)
        cache = init_cache(decoder.model.config, 1, MAX_LENGTH, beams=plan.beams)
        options: dict[str, Any] = {
            "prefix": prefix[None],
            "max_length": MAX_LENGTH,
            "max_lengths": limit[None],
            "eos_id": EOS,
            "constraints": constraints_of(plan),
            "coverage_penalty": plan.search.coverage_penalty,
            "source_mask": jnp.ones(ids.shape, bool),
        }
        if plan.search.method == "greedy":
            return greedy_search(step_fn, cache, memory, **options)
        options |= {"beam_size": plan.beams, "n_best": plan.search.n_best}
        return beam_search(step_fn, cache, memory, **options)

    def alone(sentence: Sentence):
        prefix = np.full(WIDTH, FREE)
        prefix[: 1 + len(sentence.prefix)] = (START, *sentence.prefix)
        limit = np.int32(sentence.max_length)
        found = run(decoder.params, sentence.inputs, prefix, limit)
        return jax.tree.map(lambda x: x[0], jax.device_get(found))

    return alone


@METHODS
def test_prefixes_and_constraints_equal_searching_one_sentence_after_the_other(method):
    plan = make_plan(
        SearchConfig(**method, **OPTIONS), prefix_width=WIDTH, banned_sequences=BANNED
    )
    decoder = Decoder(*make_model(), plan, slots=4, length=16)
    sentences = make_sentences()
    together = sorted(
        side_by_side([decoder.run(deque(sentences))]), key=lambda each: each.index
    )
    assert len(together) == len(sentences)
    alone = search_alone(decoder)
    for sentence, found in zip(sentences, together, strict=True):
        one = alone(sentence)
        chex.assert_trees_all_equal(found.result.tokens, one.tokens)
        chex.assert_trees_all_close(found.result, one, atol=1e-4)
        tokens = found.result.tokens[0, : found.result.lengths[0]].tolist()
        forced = len(sentence.prefix)
        assert tuple(tokens[:forced]) == sentence.prefix
        assert 5 < len(tokens) <= sentence.max_length
        pairs = list(itertools.pairwise(tokens))[forced:]
        assert len(set(pairs)) == len(pairs)
        assert not set(pairs) & set(BANNED)


def lowered(plan: SearchPlan) -> str:
    """The program that searches, as text before it is compiled."""
    model, params = make_model()
    made_for: dict[str, Any] = {"model": model, "plan": plan}
    room = {"slots": 2, "length": 16, "cache": 24}
    empty = functools.partial(preparing.empty_slots, **room, **made_for)
    state = jax.eval_shape(empty, params)
    ids, job = np.zeros((2, 16), np.int32), stacked_jobs([], rows=2, plan=plan)
    prepare = functools.partial(preparing.prepare, length=16, **made_for)
    waiting = jax.eval_shape(prepare, params, ids, ids, job)
    places = np.zeros(2, np.int32)
    program = slots.advance.lower(
        params, state, waiting, places, np.int32(0), **made_for
    )
    return program.as_text()


@METHODS
def test_an_option_that_is_off_is_not_in_the_program(method):
    plain = lowered(make_plan(SearchConfig(**method)))
    neutral = make_plan(
        SearchConfig(**method, **NEUTRAL), prefix_width=1, banned_sequences=()
    )
    assert lowered(neutral) == plain
    for name, value in OPTIONS.items():
        with_option = lowered(make_plan(SearchConfig(**method, **{name: value})))
        assert len(with_option) > len(plain)
    for rest in ({"prefix_width": 2}, {"banned_sequences": BANNED}):
        assert len(lowered(make_plan(SearchConfig(**method), **rest))) > len(plain)


@pytest.mark.parametrize("options", [{}, {"coverage_penalty": 0.2}])
def test_nothing_is_spent_on_scores_that_nobody_asks_for(options):
    plan = make_plan(SearchConfig(method="greedy", **options))
    assert "stablehlo.log " in lowered(plan)
    assert "stablehlo.log " not in lowered(plan._replace(scores=False))


PHRASES = (((7, 8, 9),), (), ((20,), (5, 5)), ((11, 4), (4, 11), (21,)), ())


def test_phrases_are_held_beside_neighbours_that_ask_for_none():
    rest: dict[str, Any] = {"prefix_width": WIDTH, "phrases": (4, 4)}
    decoder = Decoder(
        *make_model(), make_plan(SearchConfig(**BEAM), **rest), slots=4, length=16
    )
    sentences = [
        each._replace(phrases=PHRASES[each.index % 5], max_length=MAX_LENGTH)
        for each in make_sentences()
    ]
    found = side_by_side([decoder.run(deque(sentences))])
    found = {each.index: each.result for each in found}
    alone = search_alone(decoder)
    for sentence in sentences:
        result = found[sentence.index]
        if not sentence.phrases:
            one = alone(sentence)
            chex.assert_trees_all_equal(result.tokens, one.tokens)
            chex.assert_trees_all_close(result, one, atol=1e-4)
        assert result.lengths[0]
        for tokens, length in zip(result.tokens, result.lengths, strict=True):
            if not length:
                continue  # fewer than n hold all phrases
            text = " ".join(map(str, tokens[:length]))
            for phrase in sentence.phrases:
                assert f" {' '.join(map(str, phrase))} " in f" {text} "


def test_phrases_that_nobody_asks_for_are_not_in_the_program(monkeypatch):
    plan = make_plan(SearchConfig(**BEAM))
    plain = lowered(plan)
    assert len(lowered(plan._replace(phrases=(1, 1)))) > len(plain)

    def traced(*_: Any) -> None:
        raise AssertionError("in the program")

    for name in ("with_next_tokens", "without_early_end", "shared_out"):
        monkeypatch.setattr(beam, name, traced)
    for name in ("fewest_lacking", "matched_after"):
        monkeypatch.setattr(beam, name, traced)
    jax.clear_caches()
    assert lowered(plan) == plain
    with pytest.raises(AssertionError, match="in the program"):
        lowered(plan._replace(phrases=(1, 1)))
