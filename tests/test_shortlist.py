"""Shortlists: what they learn and restrict, and that neighbours do not matter."""

import functools
from collections import deque
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import SearchConfig
from transformer_jax.recipes import config_to_json
from transformer_jax.search.beam import advance_beams
from transformer_jax.search.beams import (
    FREE,
    alive,
    first_beams,
    make_job,
    search_while,
)
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.result import penalty_table
from transformer_jax.search.shortlist import Choice, of_all_tokens, within
from transformer_jax.testing import (
    SENTENCES,
    TINY_VOCAB_SIZE,
    NumberTokenizer,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)
from transformer_jax.translation import shortlist as shortlists
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.offers import whole_offer
from transformer_jax.translation.sentences import Sentence
from transformer_jax.translation.shortlist import (
    NONE,
    Shortlist,
    Texts,
    build_shortlist,
    joint_choice,
    learn_lexicon,
    likeliest,
)
from transformer_jax.translation.side_by_side import side_by_side
from transformer_jax.translation.translator import Translator
from transformer_jax.types import StepOutput

PAIRS = [([0, 1], [0, 2]), ([0, 3], [0]), ([], [1]), ([3, 3, 1], [2, 1, 1]), ([2], [])]
V, T, EOS = 7, 4, 2


def plain_model_one(pairs, targets: int, passes: int) -> dict[tuple[Any, int], float]:
    """Brown et al. (1993), model 1, with dictionaries; the empty word is None."""
    t: dict[Any, float] = {}
    for source, target in pairs:
        t |= {(s, e): 1 / targets for s in (*source, None) for e in target}
    for _ in range(passes):
        count, total = dict.fromkeys(t, 0.0), {}
        for source, target in pairs:
            for e in target:
                norm = sum(t[s, e] for s in (*source, None))
                for s in (*source, None):
                    count[s, e] += t[s, e] / norm
                    total[s] = total.get(s, 0) + t[s, e] / norm
        t = {(s, e): value / total[s] for (s, e), value in count.items()}
    return t


@pytest.mark.parametrize("passes", [0, 1, 6])
@pytest.mark.parametrize("at_once", [1 << 22, 3])
def test_the_lexicon_is_that_of_model_one(passes, at_once, monkeypatch):
    small = functools.partial(shortlists._cooccurrences, at_once=at_once)
    monkeypatch.setattr(shortlists, "_cooccurrences", small)
    found = learn_lexicon(Texts.of(PAIRS), 4, 3, passes=passes)
    expected = plain_model_one(PAIRS, 3, passes)
    keys = [(None if key // 3 == 4 else key // 3, key % 3) for key in found.keys]
    assert set(keys) == set(expected)
    np.testing.assert_allclose(found.probabilities, [expected[key] for key in keys])
    best = likeliest(found, 4, 3, best=2)
    for source in range(4):
        seen = {e: p for (s, e), p in expected.items() if s == source}
        order = sorted(seen, key=lambda e: (-round(seen[e], 12), e))[:2]
        if passes != 6:  # after more, equals differ by rounding
            assert best[source].tolist() == [*order, NONE, NONE][:2]


def test_pieces_that_share_lines_become_candidates():
    tokenizer = tiny_tokenizer(vocab_size=90, algorithm="bpe")
    texts = Texts.of(
        (tokenizer.encode_source(s), tokenizer.encode_target(t)) for s, t in SENTENCES
    )
    found = build_shortlist(texts, tokenizer, best=100, frequent=3)
    counts = np.bincount(texts.target, minlength=90)
    assert sorted(counts[found.frequent]) == sorted(counts)[-3:]
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    for source, target in SENTENCES:
        inputs = np.array(tokenizer.encode_source(source))
        allowed = set(found.of_sentence(inputs, tokenizer.eos_id).tolist())
        assert allowed >= {*tokenizer.encode_target(target), tokenizer.eos_id}
        assert allowed >= set(inputs.tolist()) - {tokenizer.unk_id}  # same spelling
        assert not allowed & special - {tokenizer.eos_id}
    few = build_shortlist(texts, tokenizer, best=1, frequent=1)
    assert few.candidates.shape[1] == 2
    assert len(few.without(few.frequent.tolist()).frequent) == 0


def test_the_joint_choice_holds_all_lists_in_few_sizes(monkeypatch):
    monkeypatch.setattr(shortlists, "SMALLEST", 4)
    lists = [np.array([2, 5]), None, np.array([2, 9, 11])]
    ids, allowed = joint_choice(lists, 20)
    assert ids.tolist() == [2, 5, 9, 11]
    assert allowed.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1]]
    ids, allowed = joint_choice([np.array([1, 2, 3, 4, 19])], 20)
    assert ids.tolist() == [1, 2, 3, 4, 19, 20, 20, 20]
    assert allowed.sum() == 5
    ids, allowed = joint_choice([np.array([1, 2, 3, 4, 6])], 7)
    assert ids.tolist() == list(range(7))
    assert allowed[0].astype(int).tolist() == [0, 1, 1, 1, 1, 0, 1]


LISTS = [[2, 4, 5], [2, 3], [0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("constraints", [(), (banned_tokens([4]),)])
def test_a_search_on_places_is_that_with_all_others_impossible(constraints):
    table = jnp.asarray(np.random.default_rng(3).normal(size=(T, V, V)), jnp.float32)
    beams, sentences = 2, len(LISTS)
    prefix = jnp.array([[1, FREE], [1, 3], [1, 6]])
    ids, allowed = jnp.array([0, 1, 2, 3, 4, 5, 6, 7]), np.zeros((sentences, 8), bool)
    for row, each in enumerate(LISTS):
        allowed[row, each] = True
    choice = Choice(ids, jnp.asarray(allowed))
    whole_mask = jnp.repeat(choice.allowed[:, None, :V], beams, axis=0)

    def search(step_fn, advance):
        job = make_job(prefix, max_length=T)
        start = first_beams(job, None, beam_size=beams, n_best=2, max_length=T)
        going_on = lambda beams: jnp.any(alive(beams))  # noqa: E731
        return jax.jit(
            lambda start: search_while(going_on, step_fn, None, start, advance).finished
        )(start)

    options = {"penalties": penalty_table("average", 1.0, T), "stop": "bound"}

    def whole(tokens, positions, cache, memory):
        logits = table[positions, tokens[:, 0]][:, None]
        return StepOutput(jnp.where(whole_mask, logits, -jnp.inf)), cache

    def places(tokens, positions, cache, memory):
        logits = table[positions, tokens[:, 0]][:, None]
        rows = logits.at[..., ids].get(mode="fill", fill_value=99.0)
        return StepOutput(rows), cache

    expected = search(
        whole,
        functools.partial(
            advance_beams, eos_id=EOS, constraints=constraints, **options
        ),
    )
    inside = functools.partial(
        advance_beams,
        eos_id=choice.place(jnp.int32(EOS)),
        constraints=[of_all_tokens(c, choice, vocab_size=V) for c in constraints],
        **options,
    )
    found = search(places, within(choice, inside))
    chex.assert_trees_all_equal(found.tokens, expected.tokens)
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    assert found.tokens[1:, 0, 0].tolist() == [3, 6]
    for row, each in enumerate(LISTS):
        for n, length in enumerate(found.lengths[row].tolist()):
            assert set(found.tokens[row, n, :length].tolist()) <= set(each)


BEAM = SearchConfig(beam_size=3, n_best=2)
GREEDY = SearchConfig(method="greedy")


def make_decoder(search: SearchConfig, slots: int = 4) -> Decoder:
    model, params = tiny_model(0, num_encoder_layers=1, num_decoder_layers=1)
    plan = SearchPlan(search, 12, 1, EOS, banned=())
    return Decoder(model, params, plan, slots=slots, length=8)


def make_sentences(lists) -> list[Sentence]:
    draw = np.random.default_rng(5)
    return [
        Sentence(i, draw.integers(4, TINY_VOCAB_SIZE, 6), 12, candidates=each)
        for i, each in enumerate(lists)
    ]


def found_by(decoder, sentences):
    found = side_by_side([decoder.run(deque(sentences))])
    found = sorted(found, key=lambda each: each.index)
    return [each.result for each in found]


@pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_a_list_of_everything_is_no_list(search):
    everything = np.arange(TINY_VOCAB_SIZE)
    decoder = make_decoder(search)
    free = found_by(decoder, make_sentences([None] * 6))
    listed = found_by(decoder, make_sentences([everything] * 6))
    for one, other in zip(listed, free, strict=True):
        chex.assert_trees_all_equal(one.tokens, other.tokens)
        chex.assert_trees_all_close(one, other, atol=1e-5)


@pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_table_that_is_turned_beforehand_changes_nothing(search, slots):
    plain, turned = (make_decoder(search, slots) for _ in range(2))
    turned.whole = whole_offer(turned.params, model=turned.model)
    columns = turned.whole.output.columns
    chex.assert_trees_all_equal(
        columns.T, turned.params["shared_embedding"]["embedding"]
    )
    sentences = make_sentences([None] * 6)
    for part in [sentences] if slots > 1 else [[each] for each in sentences]:
        for one, other in zip(
            found_by(turned, part), found_by(plain, part), strict=True
        ):
            chex.assert_trees_all_equal(one.tokens, other.tokens)
            chex.assert_trees_all_close(one, other, atol=1e-5)
    # It is what is read: another table, other targets.
    output = turned.whole.output._replace(columns=-columns)
    turned.whole = turned.whole._replace(output=output)
    changed, before = found_by(turned, sentences[:1]), found_by(plain, sentences[:1])
    assert changed[0].tokens.tolist() != before[0].tokens.tolist()


def test_each_sentence_keeps_to_its_own_list_whoever_its_neighbours_are(monkeypatch):
    monkeypatch.setattr(shortlists, "SMALLEST", 16)
    draw = np.random.default_rng(1)
    lists = [np.unique([EOS, *draw.integers(4, TINY_VOCAB_SIZE, 4)]) for _ in range(7)]
    sentences, decoder = make_sentences(lists), make_decoder(GREEDY)
    together = found_by(decoder, sentences)
    single = make_decoder(GREEDY, slots=1)
    alone = [found_by(single, [each])[0] for each in sentences]
    inputs = jnp.asarray(np.stack([each.inputs for each in sentences]), jnp.int32)
    targets = jnp.asarray(np.stack([each.tokens[0] for each in together]))
    fed = jnp.concatenate([jnp.ones((7, 1), jnp.int32), targets[:, :-1]], axis=1)
    ones, places = jnp.ones_like(inputs), jnp.arange(fed.shape[1])[None]
    logits = jax.jit(functools.partial(decoder.model.apply, deterministic=True))(
        {"params": decoder.params},
        inputs,
        fed,
        input_segment_ids=ones,
        target_segment_ids=jnp.ones_like(fed),
        input_positions=ones * jnp.arange(6)[None],
        target_positions=jnp.broadcast_to(places, fed.shape),
    )
    for row, (one, other, each) in enumerate(zip(together, alone, lists, strict=True)):
        chex.assert_trees_all_equal(one.tokens, other.tokens)
        chex.assert_trees_all_close(one, other, atol=1e-4)
        length = int(one.lengths[0])
        rows = np.asarray(logits)[row, :length][:, each]
        chosen = np.asarray(one.tokens)[0, :length]
        of_list = jax.nn.log_softmax(rows, axis=-1)
        np.testing.assert_allclose(
            one.token_log_probabilities[0, :length],
            of_list[np.arange(length), np.searchsorted(each, chosen)],
            atol=1e-4,
        )
        # At the last place the end is forced.
        free = min(length, 11)
        np.testing.assert_array_equal(each[rows[:free].argmax(-1)], chosen[:free])


def test_from_text_to_a_file_to_translations(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    config = tiny_config()
    CheckpointStore(tmp_path).write_run(config_to_json(config), tokenizer.files())
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("ein Hund\nein Mann\n")
    target.write_text("a dog\na man\n")
    words = ["--checkpoint", str(tmp_path), "--source", str(source), "--no-progress"]
    output = tmp_path / "list.npz"
    words += ["--target", str(target), "--output", str(output), "--frequent", "2"]
    assert main(["shortlist", *words]) == 0, capsys.readouterr().err
    assert "2 pairs" in capsys.readouterr().out
    loaded = Shortlist.load(output)
    loaded.check_fits(tokenizer)
    assert len(loaded.frequent) == 2
    with pytest.raises(ValueError, match="but the run has 24 and 24"):
        loaded.check_fits(NumberTokenizer())
    output.write_bytes(output.read_bytes()[:99])
    with pytest.raises(ValueError, match="cannot be read as a shortlist"):
        Shortlist.load(output)
    with pytest.raises(ValueError, match="There is no shortlist"):
        Shortlist.load(tmp_path / "other")


def test_translations_use_only_what_the_lines_pieces_may_become():
    model, params = tiny_model(0, num_encoder_layers=1, num_decoder_layers=1)
    ours = Translator(model, params, NumberTokenizer(), GREEDY)
    candidates = np.full((TINY_VOCAB_SIZE, 2), NONE, np.int32)
    candidates[:, 0] = np.arange(TINY_VOCAB_SIZE)
    candidates[5, 1] = 9
    names = Shortlist(candidates, np.array([0, 7], np.int32), TINY_VOCAB_SIZE)
    lines = ["5 8", "11 12 13"]
    found = ours.translate(lines, shortlist=names)
    for one, allowed in zip(found, ({5, 9, 8, 7, 2}, {11, 12, 13, 7, 2}), strict=True):
        assert set(one.ids) <= allowed
    assert found != ours.translate(lines)
