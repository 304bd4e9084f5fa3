"""Several models as one: the mean of their probabilities, and nothing else."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beam import EOS as TABLE_EOS
from test_beam import (
    START,
    assert_is,
    brute_force,
    empty_cache,
    random_table,
    table_step,
)
from test_engine import BEAM, GREEDY, found_by, make_decoder, make_sentences
from test_translator import LINES, MODEL, make_translator, sizes

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.recipes import config_to_json
from transformer_jax.search.beam import beam_search
from transformer_jax.search.ensemble import EnsembleCache, ensemble_step
from transformer_jax.testing import (
    tiny_config,
    tiny_model,
    tiny_model_config,
    tiny_tokenizer,
)
from transformer_jax.translation import engine
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.ensembles import Ensemble
from transformer_jax.translation.loading import check_fed_alike
from transformer_jax.translation.translator import Translator
from transformer_jax.types import StepOutput


def test_two_tables_with_enough_beams_equal_brute_force_over_their_mean():
    tables = [random_table(seed, sentences=3, length=4, vocab=4) for seed in (1, 2)]

    @jax.jit
    def run(memory):
        return beam_search(
            ensemble_step([table_step, table_step]),
            EnsembleCache((empty_cache(3 * 64), empty_cache(3 * 64))),
            memory,
            prefix=jnp.full((3, 1), START),
            beam_size=64,
            n_best=5,
            max_length=4,
            eos_id=TABLE_EOS,
            stop="bound",
        )

    found = jax.device_get(run(tuple(map(jnp.asarray, tables))))
    mean = np.log((np.exp(tables[0]) + np.exp(tables[1])) / 2)
    for sentence in range(3):
        expected = brute_force(mean[sentence], 4, kind="average", alpha=1.0, n=5)
        assert_is(found, sentence, expected)
        alone = brute_force(tables[0][sentence], 4, kind="average", alpha=1.0, n=5)
        assert expected != alone


def test_attention_is_the_mean_of_those_that_give_it():
    def looking(attention):
        def step(tokens, positions, cache, memory):
            return StepOutput(jnp.zeros((1, 1, 3)), attention), cache

        return step

    parts = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)
    cache = EnsembleCache(((), ()))
    looks = jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 1.0]]])
    both = ensemble_step([looking(each) for each in looks])(*parts, cache, ((), ()))[0]
    assert both.attention is not None
    np.testing.assert_allclose(both.attention, [[[0.5, 0.5]]])
    none = ensemble_step([looking(None)] * 2)(*parts, cache, ((), ()))[0]
    assert none.attention is None


@pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_a_model_twice_is_the_model(search, monkeypatch):
    monkeypatch.setattr(engine, "FIRST_CACHE", 16)  # so that caches move,
    monkeypatch.setattr(engine, "FEWEST_WITH_SIDING", 4)  # and sentences
    sentences, alone = make_sentences(), make_decoder(search)
    model, params = alone.model, alone.params
    twice = Decoder(
        Ensemble((model, model)), (params, params), alone.plan, slots=4, length=16
    )
    found, expected = found_by(twice, sentences, many=True), found_by(alone, sentences)
    assert max(each.lengths[0] for each in expected) > 16
    for one, other in zip(found, expected, strict=True):
        chex.assert_trees_all_equal(one.tokens, other.tokens)
        chex.assert_trees_all_close(one, other, atol=1e-5, rtol=1e-5)


def write_run(path, translator, **sizes_) -> None:
    config = tiny_config(
        model=tiny_model_config(
            **{**MODEL, **sizes_}, source_vocab_size=0, target_vocab_size=0
        ),
        search=translator.search,
    )
    store = CheckpointStore(path)
    store.write_run(config_to_json(config), translator.tokenizer.files())
    store.save(3, {"params": translator.params})


def test_runs_of_different_sizes_translate_as_their_mean(tmp_path):
    """Each token's probability is the mean of what the two give it, read at once."""
    larger: dict[str, Any] = {"num_decoder_layers": 2, "d_model": 24, "num_heads": 3}
    small = make_translator()
    tokenizer = small.tokenizer
    model, params = tiny_model(1, **{**MODEL, **larger}, **sizes(tokenizer))
    large = Translator(model, params, tokenizer, small.search)
    write_run(tmp_path / "small", small)
    write_run(tmp_path / "large", large, **larger)
    both = Translator.load(tmp_path / "small", ensemble=[tmp_path / "large"])
    source = both.source_ids(LINES[0])
    (found,) = both.search_ids([source])
    length = int(found.result.lengths[0])
    targets = found.result.tokens[0, :length]
    assert length > 1

    def probabilities(translator):
        shifted = np.array([tokenizer.bos_id, *targets[:-1]])[None]
        ids, ones = source[None], np.ones((1, len(source)), np.int32)
        logits = translator.model.apply(
            {"params": translator.params},
            ids,
            shifted,
            input_segment_ids=ones,
            target_segment_ids=np.ones_like(shifted),
            input_positions=np.arange(len(source))[None],
            target_positions=np.arange(length)[None],
            deterministic=True,
        )
        return jax.nn.softmax(logits[0])[np.arange(length), targets]

    mean = (probabilities(small) + probabilities(large)) / 2
    of_tokens = found.result.token_log_probabilities[0, :length]
    np.testing.assert_allclose(of_tokens, np.log(mean), atol=1e-4)


def test_another_vocabulary_is_named(tmp_path):
    ours = make_translator()
    write_run(tmp_path / "one", ours)
    other = tiny_tokenizer(vocab_size=90)
    model, params = tiny_model(0, **MODEL, **sizes(other))
    write_run(tmp_path / "two", Translator(model, params, other, ours.search))
    with pytest.raises(ValueError, match="source_vocab_size is 100 and 90"):
        Translator.load(tmp_path / "one", ensemble=[tmp_path / "two"])
    folded = tiny_tokenizer(normalization="nmt_nfkc_cf")
    write_run(tmp_path / "three", Translator(ours.model, ours.params, folded, GREEDY))
    with pytest.raises(ValueError, match=r"three have different .* piece \d+ is '"):
        Translator.load(tmp_path / "one", ensemble=[tmp_path / "three"])


def test_models_that_are_fed_in_different_ways_are_named():
    model = tiny_model()[0]
    with pytest.raises(ValueError, match="differ in source_eos, which is True and Fal"):
        check_fed_alike(["runs/a", "runs/b"], [model, tiny_model(source_eos=False)[0]])
