"""Models of other libraries give the numbers that the libraries themselves computed.

The golden files are written by the libraries: tests/parity/goldens/remake.sh.
"""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.interop import opennmt_files
from transformer_jax.interop.files import read_tensors, read_yaml
from transformer_jax.interop.library import export_state, import_state, library
from transformer_jax.interop.rules import Derived
from transformer_jax.models import Transformer

GOLDENS = Path(__file__).parent / "parity" / "goldens"
TOLERANCE = 1e-5
REFUSED = {
    "joeynmt_alpha": ["encoder.alpha is 1.5", "decoder.alpha is 1.5"],
    "joeynmt_norm_unset": ["encoder.layer_norm is 'not set'", "decoder.layer_norm is"],
    "joeynmt_xavier_normal": ["initializer is 'xavier_normal'"],
    "opennmt_no_positions": ["position_encoding is False"],
    "opennmt_rms_rotary": ["layer_norm is 'rms'", "max_relative_positions is -1"],
    "sockeye_length_task": ["config_length_task is {'num_layers': 1, 'weight': 1.0}"],
    "sockeye_n_drn": ["preprocess_sequence is 'n'", "postprocess_sequence is 'drn'"],
    "sockeye_ssru": ["decoder_type is 'ssru_transformer'"],
}
"""Goldens of models that we cannot express, with what the error must name."""


def settings_of_opennmt(about):
    return opennmt_files.settings_in(about["opt"], about["vocab"])


def settings_of_sockeye(about):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config"
        path.write_text(about["config"], encoding="utf-8")
        return read_yaml(path)


def settings_of_joeynmt(about):
    sizes = [len(about[f"{side}_vocab.txt"]) for side in ("src", "trg")]
    names = ("source_vocab_size", "target_vocab_size")
    return {**about["config"], **dict(zip(names, sizes, strict=True))}


SETTINGS = {
    "joeynmt": settings_of_joeynmt,
    "opennmt": settings_of_opennmt,
    "sockeye": settings_of_sockeye,
}
NAMES = sorted(
    path.stem
    for path in GOLDENS.glob("*.safetensors")
    if path.stem.split("_")[0] in SETTINGS
)


def golden(name):
    """Library, what it computed, its state dict, its settings, id of padding."""
    kind = name.split("_")[0]
    tensors = read_tensors(GOLDENS / f"{name}.safetensors")
    about = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    state = {
        key.removeprefix("state/"): array
        for key, array in tensors.items()
        if key.startswith("state/")
    }
    return kind, tensors, state, SETTINGS[kind](about), about["ids"]["pad"]


def ours(config, params, source, decoder_inputs, pad):
    """Encoder output [B, S, D] and logits [B, T, V] on a padded batch."""
    model, rows = Transformer(config), len(source)
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    segments = jnp.asarray(source != pad, jnp.int32)
    positions = jnp.arange(source.shape[1])[None].repeat(rows, 0)
    encoded = model.apply(
        variables, source, segments, positions, deterministic=True, method="encode"
    )
    logits = model.apply(
        variables,
        source,
        decoder_inputs,
        input_segment_ids=segments,
        target_segment_ids=jnp.asarray(decoder_inputs != pad, jnp.int32),
        input_positions=positions,
        target_positions=jnp.arange(decoder_inputs.shape[1])[None].repeat(rows, 0),
        deterministic=True,
    )
    return np.asarray(encoded), np.asarray(logits)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_a_golden_gives_the_same_numbers(name):
    kind, tensors, state, settings, pad = golden(name)
    source, decoder_inputs = tensors["source"], tensors["decoder_inputs"]
    real_source, real_target = source != pad, decoder_inputs != pad
    assert not real_source.all()
    assert not real_target.all()
    config, params = import_state(kind, state, settings)
    encoded, logits = ours(config, params, source, decoder_inputs, pad)
    differences = [
        np.abs(found - tensors[key])[real].max()
        for found, key, real in (
            (encoded, "encoded", real_source),
            (logits, "logits", real_target),
        )
    ]
    print(f"{name}: encoded {differences[0]:.1e}, logits {differences[1]:.1e}")
    assert np.abs(tensors["logits"]).max() > 0.5
    assert max(differences) <= TOLERANCE


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_every_bit_of_a_golden_comes_back(name):
    kind, _, state, settings, _ = golden(name)
    config, params = import_state(kind, state, settings)
    new_settings, exported = export_state(kind, config, params)
    assert exported.keys() == state.keys()
    rows = library(kind).table(config, settings).rows
    computed = {row.theirs for row in rows if isinstance(row, Derived)}
    for key, array in state.items():
        if key in computed:  # stored sinusoids, which golden files keep in part
            part = exported[key][tuple(slice(size) for size in array.shape)]
            np.testing.assert_allclose(part, array, rtol=0, atol=1e-5)
        else:
            assert exported[key].dtype == array.dtype
            assert exported[key].tobytes() == array.tobytes(), key
    assert import_state(kind, exported, new_settings)[0] == config


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_a_golden_comes_back_in_its_own_words_and_shapes(name):
    """What our settings do not say, as the size of a table of sinusoids, is kept."""
    kind, _, state, settings, _ = golden(name)
    config, params = import_state(kind, state, settings)
    shapes = library(kind).table(config, settings).derived_shapes(state)
    imported = {"settings": settings, "shapes": shapes}
    words, exported = export_state(kind, config, params, imported=imported)
    assert {key: x.shape for key, x in exported.items()} == {
        key: x.shape for key, x in state.items()
    }
    for key, array in state.items():
        np.testing.assert_allclose(exported[key], array, rtol=0, atol=1e-5)
    plain = {key: x for key, x in words.items() if not isinstance(x, dict)}
    assert plain == {key: settings.get(key, x) for key, x in plain.items()}


@pytest.mark.parametrize("name", [name for name in NAMES if name in REFUSED])
def test_what_cannot_be_expressed_is_refused_by_name(name):
    kind, _, state, settings, _ = golden(name)
    with pytest.raises(ValueError, match="What differs") as refusal:
        import_state(kind, state, settings)
    for difference in REFUSED[name]:
        assert difference in str(refusal.value)
