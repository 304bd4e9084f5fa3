"""Runs whose parameters are bfloat16, which numpy lacks, as files of PyTorch."""

from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config
from transformer_jax.interop.library import export_run, import_run
from transformer_jax.recipes import config_to_json
from transformer_jax.testing import tiny_model, tiny_tokenizer

pytest.importorskip("torch")

OURS: dict[str, dict[str, Any]] = {
    "fairseq": {
        "position_offset": 2,
        "sinusoid_layout": "halves",
        "decoder_start": "eos",
    },
    "opennmt": {"norm_position": "pre", "source_eos": False},
    "sockeye": {
        "norm_eps": 1e-6,
        "attention_bias": False,
        "sinusoid_layout": "halves_paper",
        "output_bias": True,
    },
    "joeynmt": {"norm_eps": 1e-6, "tied_embeddings": "none"},
}
"""Settings of models of ours that a library can express."""


@pytest.mark.parametrize("kind", OURS)
def test_a_run_in_bfloat16_is_exported(kind, tmp_path):
    """And every number of it comes back, in float32."""
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
        param_dtype="bfloat16",
        **OURS[kind],
    )
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}
    config = Config(model=model.config)
    store = CheckpointStore(tmp_path / "run")
    store.write_run(config_to_json(config), tokenizer.files())
    store.save(1, {"params": params})
    export_run(kind, tmp_path / "run", tmp_path / "out")
    import_run(kind, tmp_path / "out", tmp_path / "back")
    back = CheckpointStore(tmp_path / "back").restore_params()
    for name in ("encoder", "decoder"):  # tables may be renumbered
        for one, other in zip(
            jax.tree.leaves(back[name]), jax.tree.leaves(params[name]), strict=True
        ):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, np.asarray(other, np.float32))
