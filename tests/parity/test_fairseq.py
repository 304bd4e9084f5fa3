"""fairseq's transformer: our logits against its definition; what has no counterpart."""

import functools

import jax
import numpy as np
import pytest
from fairseq_reference import (
    EOS,
    LEARNED,
    PAD,
    PRE,
    TINY,
    VARIANTS,
    D,
    Reference,
    random_state,
)

from transformer_jax.config import ModelConfig
from transformer_jax.interop import fairseq
from transformer_jax.interop.library import export_state, import_state
from transformer_jax.interop.rules import TableError
from transformer_jax.models import Transformer
from transformer_jax.models.functions import row_positions


def padded_pair():
    """Three pairs: sources that end with eos, targets that begin with it."""
    source = [[7, 4, 9, 5, EOS, PAD, PAD], [6, EOS, *[PAD] * 5], [*range(4, 10), EOS]]
    fed = [[EOS, 5, 8, PAD, PAD], [EOS, 4, 5, 6, 7], [EOS, 10, PAD, PAD, PAD]]
    return np.array(source, np.int32), np.array(fed, np.int32)


def our_logits(config, params, source, fed):
    segments = [(ids != PAD).astype(np.int32) for ids in (source, fed)]
    apply = jax.jit(functools.partial(Transformer(config).apply, deterministic=True))
    logits = apply(
        {"params": params},
        source,
        fed,
        input_segment_ids=segments[0],
        target_segment_ids=segments[1],
        input_positions=row_positions(segments[0]),
        target_positions=row_positions(segments[1]),
    )
    return np.asarray(logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_definition(variant):
    args = {**TINY, **VARIANTS[variant]}
    state = random_state(args)
    source, fed = padded_pair()
    ours = our_logits(*import_state("fairseq", state, args), source, fed)
    reference = Reference(args, state)
    worst = largest = 0.0
    for row in range(len(source)):
        real = fed[row] != PAD
        theirs = reference.logits(source[row], fed[row])[real]
        worst = max(worst, float(np.abs(ours[row][real] - theirs).max()))
        largest = max(largest, float(np.abs(theirs).max()))
    print(f"fairseq {variant}: logits up to {largest:.1f} differ by {worst:.1e}")
    assert largest > 1
    assert worst < 1e-5 * largest


@pytest.mark.parametrize("variant", VARIANTS)
def test_exporting_what_was_imported_gives_every_bit_back(variant):
    args = {**TINY, **VARIANTS[variant]}
    state = random_state(args)
    settings, back = export_state("fairseq", *import_state("fairseq", state, args))
    assert fairseq.model_config(settings) == fairseq.model_config(args)
    assert back.keys() == state.keys()
    for name in state:
        if not name.endswith("_float_tensor"):
            np.testing.assert_array_equal(back[name], state[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layernorm_embedding": True}, "layernorm_embedding is True, and must be off"),
        ({"adaptive_softmax_cutoff": "10,20"}, "adaptive_softmax_cutoff"),
        ({"no_token_positional_embeddings": True}, "no_token_positional_embeddings"),
        ({"quant_noise_pq": 0.1}, "quant_noise_pq"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads is 2"),
        ({"encoder_normalize_before": True}, "encoder_normalize_before"),
        ({"activation_fn": "gelu_accurate"}, "gelu_accurate"),
        ({"decoder_output_dim": 8}, "decoder_output_dim"),
        ({**PRE, "no_decoder_final_norm": True}, "only one has a final norm"),
        ({"task": "multilingual_translation"}, "task is 'multilingual"),
        ({"arch": "transformer_lm_big"}, "arch is 'transformer_lm_big'"),
        ({"encoder_layers_to_keep": "0,1"}, "encoder_layers_to_keep"),
        ({"encoder_langtok": "tgt"}, "encoder_langtok is 'tgt', which is not known"),
        ({**LEARNED, "max_target_positions": 9}, "max_source_positions is not"),
    ],
)
def test_arguments_that_we_cannot_express(change, message):
    with pytest.raises(ValueError, match=message):
        fairseq.model_config({**TINY, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sinusoid_layout": "interleaved"}, "sinusoid_layout is 'interleaved'"),
        ({"position_offset": 0}, "position_offset is 0, and must be 2"),
        ({"decoder_start": "bos"}, "decoder_start"),
        ({"tied_embeddings": "source_target"}, "tied_embeddings"),
        ({"attention_bias": False}, "attention_bias"),
        ({"final_norm": True}, "final_norm is True"),
    ],
)
def test_settings_that_fairseq_cannot_express(change, message):
    ours = vars(fairseq.model_config(TINY))
    with pytest.raises(ValueError, match=message):
        fairseq.settings_of(ModelConfig(**{**ours, **change}))


def test_weights_that_do_not_belong_are_named():
    state = random_state(TINY)
    del state["decoder.layers.1.fc1.bias"]
    state["encoder.layernorm_embedding.bias"] = np.zeros(D, np.float32)
    with pytest.raises(TableError, match=r"layers\.1\.fc1\.bias.*layernorm_embedding"):
        import_state("fairseq", state, TINY)
