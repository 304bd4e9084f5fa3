"""Reordering the residual stream changes nothing that a model computes."""

import chex
import numpy as np
import pytest

from transformer_jax.interop.layout import with_layout
from transformer_jax.interop.library import export_state, import_state
from transformer_jax.models import Transformer
from transformer_jax.testing import tiny_batch, tiny_model


def logits(config, params):
    batch = tiny_batch()
    found = Transformer(config).apply(
        {"params": params},
        batch.inputs,
        batch.decoder_inputs,
        input_segment_ids=batch.input_segment_ids,
        target_segment_ids=batch.target_segment_ids,
        input_positions=batch.input_positions,
        target_positions=batch.target_positions,
        deterministic=True,
    )
    return np.asarray(found)


@pytest.mark.parametrize(
    "settings",
    [{}, {"norm_position": "pre", "gated": True, "tied_embeddings": "none"}],
)
def test_another_layout_computes_the_same_and_comes_back(settings):
    model, params = tiny_model(output_bias=True, **settings)
    config, moved = with_layout(model.config, params, "halves_paper")
    assert config.sinusoid_layout == "halves_paper"
    chex.assert_trees_all_close(
        logits(config, moved), logits(model.config, params), atol=1e-4
    )
    as_it_was = logits(config, params)
    assert np.abs(as_it_was - logits(model.config, params)).max() > 0.1
    back, returned = with_layout(config, moved, "interleaved")
    assert back == model.config
    chex.assert_trees_all_equal(returned, params)


def test_other_wavelengths_cannot_be_had_by_reordering():
    model, params = tiny_model()
    with pytest.raises(ValueError, match="other wavelengths than 'halves'"):
        with_layout(model.config, params, "halves")


THEIRS = {
    "marian": ("halves_paper", {"decoder_start": "pad"}),
    "sockeye": ("halves_paper", {"norm_eps": 1e-6, "attention_bias": False}),
    "joeynmt": (
        "interleaved",
        {"norm_eps": 1e-6, "norm_position": "pre", "output_bias": False},
    ),
    "annotated": (
        "interleaved",
        {
            "norm": "std",
            "norm_eps": 1e-6,
            "norm_position": "pre",
            "source_bos": True,
            "tied_embeddings": "none",
        },
    ),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_an_export_reorders_what_the_other_library_has_in_another_order(kind):
    theirs, settings = THEIRS[kind]
    ours = {"halves_paper": "interleaved", "interleaved": "halves_paper"}[theirs]
    settings = {"output_bias": True, **settings}
    model, params = tiny_model(sinusoid_layout=ours, **settings)
    described, state = export_state(kind, model.config, params)
    config, again = import_state(kind, state, described)
    assert config.sinusoid_layout == theirs
    chex.assert_trees_all_close(
        logits(config, again), logits(model.config, params), atol=1e-4
    )
