"""Logits that torch.nn.Transformer computed, kept in files: torch is not needed."""

import json
from pathlib import Path

import pytest
from comparing import TOLERANCE, largest_difference, our_logits, padded_batch

from transformer_jax.interop.files import read_tensors
from transformer_jax.interop.library import export_state, import_state

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("variant", ["post", "pre"])
def test_kept_logits_are_computed_again(variant):
    tensors = read_tensors(GOLDENS / f"torch_{variant}.safetensors")
    about = json.loads((GOLDENS / f"torch_{variant}.json").read_text("utf-8"))
    state = {
        name.removeprefix("state/"): x
        for name, x in tensors.items()
        if name.startswith("state/")
    }
    config, params = import_state("torch", state, about["config"])
    pad_id = about["ids"]["pad_id"]
    batch = padded_batch(tensors["source"], tensors["decoder_inputs"], pad_id)
    assert (batch.input_segment_ids == 0).any()
    assert (batch.target_segment_ids == 0).any()
    ours = our_logits(config, params, batch)
    assert largest_difference(ours, tensors["logits"], batch) <= TOLERANCE

    _, exported = export_state("torch", config, params)
    for name, shape in about["cut_tables"].items():
        assert list(exported.pop(name).shape) == shape
        del state[name]
    assert exported.keys() == state.keys()
    for name, array in state.items():
        assert exported[name].tobytes() == array.tobytes()
