"""Continuous batching changes no result, and compiles little."""

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
from transformer_jax.search.beam import beam_search
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.greedy import greedy_search
from transformer_jax.search.result import SearchResult
from transformer_jax.testing import TINY_VOCAB_SIZE, tiny_model
from transformer_jax.translation import engine, preparing, siding, slots
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.offers import whole_offer
from transformer_jax.translation.planning import GROUP_LENGTHS, plan_groups
from transformer_jax.translation.sentences import Sentence
from transformer_jax.translation.side_by_side import side_by_side

LENGTHS = (3, 9, 1, 12, 5, 7, 2, 11, 4, 8, 6, 10, 3, 5, 9, 2, 7)
GREEDY = SearchConfig(method="greedy")
BEAM = SearchConfig(beam_size=3, n_best=2)
METHODS = pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
MAX_LENGTH, EOS, START = 40, 2, 1
MODEL: dict[str, Any] = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "norm_position": "pre",
    "output_bias": True,
}


def make_sentences(lengths=LENGTHS) -> list[Sentence]:
    draw = np.random.default_rng(5)
    return [
        Sentence(
            i,
            draw.integers(4, TINY_VOCAB_SIZE, length).astype(np.int32),
            2 * length + 9,
        )
        for i, length in enumerate(lengths)
    ]


def make_decoder(
    search: SearchConfig, *, width=4, seed=0, device=None, **rest: Any
) -> Decoder:
    model, params = tiny_model(seed, **MODEL)
    params["output"]["bias"] = params["output"]["bias"].at[EOS].add(-1.0)
    plan = SearchPlan(search, MAX_LENGTH, START, EOS, banned=(0, START), **rest)
    params = jax.device_put(params, device) if device else params
    return Decoder(model, params, plan, slots=width, length=16)


def found_by(decoder, sentences, *, many=False) -> list[SearchResult]:
    """Results by the sentences' own numbers."""
    found = list(side_by_side([decoder.run(deque(sentences), many=many)]))
    assert sorted(each.index for each in found) == sorted(s.index for s in sentences)
    for each in found:
        assert np.isfinite(each.result.scores[0]) == decoder.plan.scores
    return [each.result for each in sorted(found, key=lambda each: each.index)]


def assert_same_bits(found, expected) -> None:
    """Equal results; NaN would equal NaN, so that there may be none."""
    chex.assert_tree_all_finite([each.token_log_probabilities for each in found])
    chex.assert_trees_all_equal(found, expected)


@METHODS
def test_equals_searching_one_sentence_after_the_other(search):
    sentences, decoder = make_sentences(), make_decoder(search)

    @jax.jit
    def alone(params, inputs, limit):
        ids = inputs[None]
        memory = encode_memory(decoder.model, params, ids, (ids > 0).astype(int))
        step_fn = make_step_fn(decoder.model, params)
        beams = decoder.plan.beams
        cache = init_cache(decoder.model.config, 1, MAX_LENGTH, beams=beams)
        options: dict[str, Any] = {
            "prefix": jnp.array([[START]]),
            "max_length": MAX_LENGTH,
            "max_lengths": limit[None],
            "eos_id": EOS,
            "constraints": (banned_tokens(decoder.plan.banned),),
        }
        if search.method == "greedy":
            return greedy_search(step_fn, cache, memory, **options)
        options |= {"beam_size": 3, "n_best": 2}
        return beam_search(step_fn, cache, memory, **options)

    together = found_by(decoder, sentences)
    assert max(found.lengths[0] for found in together) > 12
    for sentence, found in zip(sentences, together, strict=True):
        inputs = np.pad(sentence.inputs, (0, max(LENGTHS) - len(sentence.inputs)))
        limit = np.int32(sentence.max_length)
        one = jax.device_get(alone(decoder.params, inputs, limit))
        one = jax.tree.map(lambda x: x[0], one)
        chex.assert_trees_all_equal(found.tokens, one.tokens)
        chex.assert_trees_all_close(found, one, atol=1e-4)


@METHODS
@pytest.mark.parametrize("scores", [True, False])
def test_a_single_sentence_takes_no_slot_and_is_searched_the_same(
    search, scores, monkeypatch
):
    caches = set()

    def search_alone(*parts, cache, **rest):
        caches.add(cache)
        return slots.search_alone(*parts, cache=cache, **rest)

    monkeypatch.setattr(engine, "search_alone", search_alone)
    monkeypatch.setattr(engine, "FIRST_CACHE", 2)
    scores = scores or search is BEAM
    sentences, decoder = make_sentences(), make_decoder(search)
    expected = found_by(decoder, sentences)
    one = make_decoder(search, width=1)
    one.plan = one.plan._replace(scores=scores)
    for sentence, other in zip(sentences, expected, strict=True):
        (found,) = side_by_side([one.run(deque([sentence]))])
        assert found.index == sentence.index
        chex.assert_trees_all_equal(found.result.tokens, other.tokens)
        assert (found.result.lengths == other.lengths).all()
        if scores:
            chex.assert_trees_all_close(found.result, other, atol=1e-5)
        else:
            assert np.isnan(found.result.token_log_probabilities).all()
    assert one.sentences == []
    assert caches == {16, 32, MAX_LENGTH}


def test_sources_are_padded_less_where_many_come(monkeypatch):
    shapes = []

    def prepare(params, inputs, *parts, **rest):
        shapes.append(inputs.shape)
        return preparing.prepare(params, inputs, *parts, **rest)

    monkeypatch.setattr(engine, "prepare", prepare)
    decoder = make_decoder(GREEDY)
    decoder.on_cpu = True  # also on a GPU
    few, many, again = (
        found_by(decoder, make_sentences([10, 10]), many=many)
        for many in (False, True, False)
    )
    assert shapes == [(4, 16), (2, 12), (4, 16)]
    assert_same_bits(again, few)
    for one, other in zip(many, few, strict=True):
        chex.assert_trees_all_equal(one.tokens, other.tokens)
        chex.assert_trees_all_close(one, other, atol=1e-5)


@METHODS
def test_neighbours_and_places_change_no_bit_in_one_shape(search):
    sentences = make_sentences([min(length, 7) for length in LENGTHS])
    straight = found_by(make_decoder(search), sentences)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(sentences))
        shuffled = found_by(make_decoder(search), [sentences[i] for i in order])
        assert_same_bits(shuffled, straight)


@METHODS
def test_neighbours_of_other_lengths_change_no_token(search):
    sentences = make_sentences()
    straight = found_by(make_decoder(search), sentences)
    order = np.random.default_rng(0).permutation(len(sentences))
    shuffled = found_by(make_decoder(search), [sentences[i] for i in order])
    for one, other in zip(shuffled, straight, strict=True):
        chex.assert_trees_all_equal(one.tokens, other.tokens)
        chex.assert_trees_all_close(one, other, atol=1e-4)


def test_the_cache_grows_with_its_sentences(monkeypatch):
    short = found_by(make_decoder(GREEDY), make_sentences())
    lengths = [16]

    def resize(cache, *, length):
        lengths.append(length)
        return slots.resize(cache, length=length)

    monkeypatch.setattr(engine, "resize", resize)
    monkeypatch.setattr(engine, "FIRST_CACHE", 2)
    decoder = make_decoder(SearchConfig(method="greedy", alpha=0.5))
    grown = found_by(decoder, make_sentences())
    assert max(lengths) == MAX_LENGTH
    assert min(np.diff(lengths)) < 0 < max(np.diff(lengths))
    for one, other in zip(grown, short, strict=True):
        chex.assert_trees_all_equal(one.tokens, other.tokens)


def compiled(function: Any) -> int:
    """Programs that a jitted function has had compiled."""
    return function._cache_size()


@METHODS
def test_each_shape_is_compiled_once(search):
    search = SearchConfig(**{**vars(search), "alpha": 0.77})  # not compiled before
    before = compiled(slots.advance), compiled(preparing.prepare)
    found_by(make_decoder(search), make_sentences())
    # Another model of the same kind, as at the next evaluation of a training.
    found_by(make_decoder(search, seed=1), make_sentences())
    caches, sources = 3, 2
    assert compiled(slots.advance) - before[0] <= caches
    assert compiled(preparing.prepare) - before[1] <= sources


@METHODS
def test_devices_share_a_queue(search):
    sentences = make_sentences([min(length, 7) for length in LENGTHS] * 3)
    alone = found_by(make_decoder(search), sentences)
    decoders = [make_decoder(search, device=each) for each in jax.devices()[:3]]
    queue = deque(sentences)
    found = sorted(side_by_side([each.run(queue, sharing=3) for each in decoders]))
    chex.assert_trees_all_equal([each.result for each in found], alone)


def test_the_error_of_a_device_is_raised_and_ends_the_others():
    class Broken(Decoder):
        def run(self, queue, *, sharing=1, many=False):
            raise RuntimeError("no such device")
            yield

    queue = deque(make_sentences(LENGTHS * 3))
    whole = make_decoder(GREEDY)
    broken = Broken(whole.model, whole.params, whole.plan, slots=4, length=16)
    with pytest.raises(RuntimeError, match="no such device"):
        list(side_by_side([whole.run(queue), broken.run(queue)]))


def test_results_come_while_others_are_waiting():
    queue = deque(make_sentences(LENGTHS * 3))
    found = side_by_side([make_decoder(GREEDY).run(queue)])
    found = list(itertools.islice(found, 4))
    assert len(found) == 4
    assert len(queue) > len(LENGTHS)


@pytest.mark.parametrize("width", [1, 4])
def test_a_decoder_starts_anew_where_a_run_was_left(width):
    decoder, sentences = make_decoder(GREEDY, width=width), make_sentences()
    straight = found_by(decoder, sentences)
    next(side_by_side([decoder.run(deque(sentences[::-1]))]))
    chex.assert_trees_all_equal(found_by(decoder, sentences), straight)


def test_plans_hold_every_sentence_once_in_few_shapes():
    lengths = np.random.default_rng(0).integers(1, 100, size=500).tolist()
    groups = list(plan_groups(lengths, positions=1000, longest=1024))
    indices = np.concatenate([group.indices for group in groups])
    assert sorted(indices) == list(range(500))
    for group in groups:
        assert max(lengths[i] for i in group.indices) <= group.length
        assert group.slots * group.length <= 1000 or group.slots == 1
    assert {group.length for group in groups} <= set(GROUP_LENGTHS)
    assert len(groups) <= len(GROUP_LENGTHS)


def test_a_plan_is_no_longer_and_no_wider_than_it_may_be():
    (group,) = plan_groups([9], positions=100, longest=10)
    assert (group.slots, group.length) == (1, 10)
    groups = plan_groups([5] * 30 + [40], positions=256, longest=64)
    assert [(len(group.indices), group.slots) for group in groups] == [(4, 4), (27, 8)]
    # No more slots for the short ones: they follow the long one in its own.
    four = {"positions": 4096, "allowed_slots": lambda slots: min(slots, 4)}
    groups = plan_groups([5] * 30 + [40], longest=64, **four)
    assert [(len(group.indices), group.slots) for group in groups] == [(31, 4)]

    # But an outlier does not make all histories as long as its own.
    groups = plan_groups([5] * 30 + [200], longest=256, **four)
    assert [(len(group.indices), group.length) for group in groups] == [
        (4, 256),
        (27, 32),
    ]


@pytest.mark.parametrize("longest_first", [False, True])
def test_slots_are_as_long_as_their_sources(longest_first, monkeypatch):
    lengths = sorted(LENGTHS, reverse=longest_first)
    search = SearchConfig(beam_size=2, coverage_penalty=0.2)
    expected = found_by(make_decoder(search), make_sentences(lengths))
    rooms = []

    def refit(*parts, length, **rest):
        rooms.append(length)
        return preparing.refit(*parts, length=length, **rest)

    monkeypatch.setattr(engine, "refit", refit)
    monkeypatch.setattr(engine, "GROUP_LENGTHS", (4, 8, 16))
    decoder = make_decoder(search)
    before = compiled(preparing.prepare)
    for _ in range(2):
        found = found_by(decoder, make_sentences(lengths))
        for one, other in zip(found, expected, strict=True):
            chex.assert_trees_all_equal(one.tokens, other.tokens)
            chex.assert_trees_all_close(one, other, atol=1e-4)
    assert set(rooms) >= {8, 16}
    assert decoder.room == (4 if longest_first else 16)
    assert compiled(preparing.prepare) - before <= 2  # sources are padded to 8 or 16


def test_devices_share_a_queue_whose_sources_become_short(monkeypatch):
    lengths = sorted(LENGTHS * 2, reverse=True)
    expected = found_by(make_decoder(GREEDY), make_sentences(lengths))
    monkeypatch.setattr(engine, "GROUP_LENGTHS", (4, 8, 16))
    decoders = [make_decoder(GREEDY, device=each) for each in jax.devices()[:2]]
    queue = deque(make_sentences(lengths))
    found = sorted(side_by_side([each.run(queue, sharing=2) for each in decoders]))
    for each, other in zip(found, expected, strict=True):
        chex.assert_trees_all_equal(each.result.tokens, other.tokens)


def test_tokens_are_the_same_without_scores():
    sentences, decoder = make_sentences(), make_decoder(GREEDY)
    expected = found_by(decoder, sentences)
    decoder.plan = decoder.plan._replace(scores=False)
    found = side_by_side([decoder.run(deque(sentences))])
    found = sorted(found, key=lambda each: each.index)
    for each, other in zip(found, expected, strict=True):
        chex.assert_trees_all_equal(each.result.tokens, other.tokens)
        assert each.result.lengths == other.lengths
        assert np.isnan(each.result.scores).all()
        assert np.isnan(each.result.log_probabilities).all()
        assert np.isnan(each.result.token_log_probabilities).all()


SIDING_OPTIONS = {
    "beam": BEAM,
    "coverage": SearchConfig(beam_size=2, coverage_penalty=0.2),
    "sampling": SearchConfig(method="sampling", beam_size=2, seed=3),
    "shortlist": SearchConfig(method="greedy", alpha=0.9),
    "prefixes": BEAM,
    "phrases": SearchConfig(beam_size=4),
    "rough": GREEDY,
}
SIDING_PLANS: dict[str, dict[str, Any]] = {
    "prefixes": {"prefix_width": 4},
    "phrases": {"phrases": (2, 2)},
    "rough": {"scores": False},
}
PREFIXES = ((), (5,), (7, 8, 9))
PHRASES = ((), ((5, 6),), ((20,), (7, 4)))


@pytest.mark.parametrize("name", SIDING_OPTIONS)
def test_laggards_and_the_last_ones_go_on_in_a_siding(name, monkeypatch):
    search, sentences = SIDING_OPTIONS[name], make_sentences(LENGTHS * 3)
    if name == "sampling":
        sentences = [each._replace(draw=(3, each.index)) for each in sentences]
    if name == "shortlist":
        some = np.delete(np.arange(TINY_VOCAB_SIZE), [5, 7])
        sentences = [each._replace(candidates=some) for each in sentences]
    if name == "prefixes":
        sentences = [s._replace(prefix=PREFIXES[s.index % 3]) for s in sentences]
    if name == "phrases":
        sentences = [s._replace(phrases=PHRASES[s.index % 3]) for s in sentences]
    rest = SIDING_PLANS.get(name, {})
    expected = found_by(make_decoder(search, **rest), sentences)
    aside, grown = [], []

    def put_aside(apart, state, places, into):
        aside.append((len(into), int((places < len(state.beams.lengths)).sum())))
        return siding.put_aside(apart, state, places, into)

    def resize(cache, *, length):
        grown.append((cache.ancestors.shape[0], length))
        return slots.resize(cache, length=length)

    monkeypatch.setattr(engine, "put_aside", put_aside)
    monkeypatch.setattr(engine, "resize", resize)
    monkeypatch.setattr(engine, "GROUP_LENGTHS", (4, 8, 16))
    monkeypatch.setattr(engine, "FIRST_CACHE", 16)
    monkeypatch.setattr(engine, "SIDING_CACHE", 16)
    monkeypatch.setattr(engine, "FEWEST_WITH_SIDING", 4)
    decoder = make_decoder(search, width=16, **rest)
    if name == "rough":
        params, model = decoder.params, decoder.model
        decoder.whole = whole_offer(params, model=model, rough=True)
    # … and left where it is.
    next(side_by_side([decoder.run(deque(sentences), many=True)]))
    aside.clear()
    grown.clear()
    found = found_by(decoder, sentences, many=True)
    assert {slots_apart for slots_apart, _ in aside} <= {4, 1}
    assert len([count for slots_apart, count in aside if slots_apart == 4]) > 1
    assert 4 * decoder.plan.beams in {rows for rows, _ in grown}, "of the siding"
    for one, other in zip(found, expected, strict=True):
        chex.assert_trees_all_equal(one.tokens, other.tokens)
        chex.assert_trees_all_close(one, other, atol=1e-4)


@METHODS
def test_a_run_is_left_while_its_siding_is_searched(search, monkeypatch):
    monkeypatch.setattr(engine, "FIRST_CACHE", 16)
    sentences, decoder = make_sentences(LENGTHS * 2), make_decoder(search, width=16)
    expected = found_by(decoder, sentences)
    for _ in decoder.run(deque(sentences), many=True):
        assert decoder.siding is not None
        if not any(decoder.sentences) and any(decoder.siding.sentences):
            break
    else:
        pytest.fail("the siding was never searched alone")
    again = found_by(decoder, sentences, many=True)
    for one, other in zip(again, expected, strict=True):
        chex.assert_trees_all_equal(one.tokens, other.tokens)
