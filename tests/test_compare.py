"""`transformer-jax compare`: the first layer in which two models differ."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.analysis.compare import (
    Difference,
    Ids,
    activations,
    differences,
    first_beyond,
    ids_with_padding,
    places_of,
)
from transformer_jax.cli.compare import in_words
from transformer_jax.config import SearchConfig
from transformer_jax.interop.files import read_tensors, write_tensors
from transformer_jax.models import Transformer
from transformer_jax.testing import SENTENCES, tiny_batch, tiny_model, tiny_tokenizer
from transformer_jax.translation.translator import Translator
from transformer_jax.trees import leaves_by_path

PLACES = [
    *("source_embedding", "encoder_layer_0", "encoder_layer_1", "encoder_final"),
    *("target_embedding", "decoder_layer_0", "decoder_layer_1", "decoder_final"),
    "logits",
]


def with_change(params, *path, by=0.5):
    """The same parameters, but for one array."""
    name, *rest = path
    changed = with_change(params[name], *rest, by=by) if rest else params[name] + by
    return {**params, name: changed}


def ids_of(batch):
    return Ids(
        batch.inputs,
        batch.decoder_inputs,
        batch.input_segment_ids,
        batch.target_segment_ids,
    )


@pytest.fixture(scope="module")
def tiny():
    model, params = tiny_model(norm_position="pre")
    ids = ids_of(tiny_batch())
    return model.config, params, ids, activations(model.config, params, ids)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("encoder", "layer_1", "feed_forward", "up", "kernel"), "encoder_layer_1"),
        (("encoder", "final_norm", "bias"), "encoder_final"),
        (
            ("decoder", "layer_0", "cross_attention", "value", "kernel"),
            "decoder_layer_0",
        ),
        (("decoder", "final_norm", "scale"), "decoder_final"),
    ],
)
def test_the_first_place_that_differs_is_the_one_that_was_changed(tiny, path, place):
    config, params, ids, ours = tiny
    theirs = activations(config, with_change(params, *path), ids)
    found = differences(ours, theirs, ids)
    assert [each.place for each in found] == PLACES == places_of(config)
    assert first_beyond(found, 1e-4) == place
    later = [each for each in found if each.place == "logits"]
    assert later[0].max_abs > 1e-4
    assert first_beyond(differences(ours, ours, ids), 0.0) is None


def test_watching_does_not_change_what_is_computed(tiny):
    config, params, ids, ours = tiny
    batch = tiny_batch()
    logits = Transformer(config).apply(
        {"params": params},
        batch.inputs,
        batch.decoder_inputs,
        input_segment_ids=batch.input_segment_ids,
        target_segment_ids=batch.target_segment_ids,
        input_positions=batch.input_positions,
        target_positions=batch.target_positions,
        deterministic=True,
    )
    real = ids.target_segment_ids > 0
    np.testing.assert_allclose(ours["logits"][real], logits[real], atol=1e-5)


def test_padding_is_left_out_and_nan_is_not(tiny):
    _, _, ids, ours = tiny
    row, place = np.argwhere(ids.target_segment_ids == 0)[0]
    theirs = {"logits": ours["logits"].copy()}
    theirs["logits"][row, place] = 9.0
    assert first_beyond(differences(ours, theirs, ids), 0.0) is None
    theirs["logits"][0, 0, 0] = np.nan
    assert first_beyond(differences(ours, theirs, ids), 1e9) == "logits"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the verb on two runs, of which `other` differs in its last layer."""
    tokenizer = tiny_tokenizer()
    sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    model, params = tiny_model(source_vocab_size=sizes[0], target_vocab_size=sizes[1])
    path = ("decoder", "layer_1", "self_attention", "value", "kernel")
    runs = {
        "one": params,
        "same": params,
        "other": with_change(params, *path, by=jnp.float32(0.1)),
    }
    assert len(leaves_by_path(runs["other"])) == len(leaves_by_path(params))

    def load(run, **_):
        search = SearchConfig(method="greedy")
        return Translator(model, runs[str(run)], tokenizer, search)

    monkeypatch.setattr(Translator, "load", load)
    for name, lines in zip(
        ("source", "target"), zip(*SENTENCES, strict=True), strict=True
    ):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))

    def run_verb(*words: str, sentences: bool = True) -> int:
        files = [f"--{n}={tmp_path / n}" for n in ("source", "target")]
        text = files if sentences else []
        return main(["compare", "--checkpoint", "one", *text, *words])

    return run_verb


def test_equal_runs_agree(run, capsys):
    assert run("--other", "same") == 0
    assert "all of these agree within 0.0001" in capsys.readouterr().out


def test_the_first_run_translates_where_no_target_is_given(run, tmp_path, capsys):
    words = ["--input", str(tmp_path / "source"), "--lines", "2", "--json"]
    assert run("--other", "same", *words, sentences=False) == 0
    assert json.loads(capsys.readouterr().out)["agree"]


def test_runs_that_differ_in_one_layer(run, capsys):
    assert run("--other", "other", "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["first"] == "decoder_layer_1"
    assert not facts["agree"]
    assert [each["place"] for each in facts["places"]] == PLACES
    assert run("--other", "other", "--tolerance", "100") == 0


def test_activations_of_another_library(run, tmp_path, capsys):
    file = tmp_path / "ours.safetensors"
    assert run("--write", str(file), "--lines", "3") == 0
    arrays = read_tensors(file)
    assert arrays["inputs"].shape[0] == arrays["logits"].shape[0] == 3
    assert run("--activations", str(file), sentences=False) == 0
    theirs = {name: x for name, x in arrays.items() if name != "encoder_layer_0"}
    theirs["encoder_layer_1"] = theirs["encoder_layer_1"] + np.float32(0.01)
    write_tensors(file, theirs)
    capsys.readouterr()
    assert run("--activations", str(file), sentences=False) == 1
    printed = capsys.readouterr().out
    assert "first to differ by more than 0.0001: encoder_layer_1" in printed
    assert "encoder_layer_0" not in printed


@pytest.mark.parametrize(
    ("words", "sentences", "message"),
    [
        ([], True, "nothing to compare with"),
        (["--other", "same"], False, "Give --source and --target, or --input"),
        (["--activations", "x", "--other", "same"], False, "both given"),
        (["--activations", "x"], True, "has its own ids"),
        (["--other", "same", "--lines", "0"], True, "--lines is 0"),
    ],
)
def test_wrong_usage(run, capsys, words, sentences, message):
    assert run(*words, sentences=sentences) == 1
    assert message in capsys.readouterr().err


def test_a_file_without_ids_or_with_unknown_places(run, tmp_path, capsys):
    file = tmp_path / "theirs.safetensors"
    write_tensors(file, {"logits": np.zeros((1, 2, 3), np.float32)})
    assert run("--activations", str(file), sentences=False) == 1
    assert "has no inputs and no decoder_inputs" in capsys.readouterr().err
    ids = {name: np.array([[4, 2]]) for name in ("inputs", "decoder_inputs")}
    write_tensors(file, {**ids, "encoder_layer_9": np.zeros((1, 2, 16), np.float32)})
    assert run("--activations", str(file), sentences=False) == 1
    assert "has no encoder_layer_9" in capsys.readouterr().err


WHOLE = np.array([[4, 2, 0]])


@pytest.mark.parametrize(
    ("inputs", "decoder_inputs", "message"),
    [
        (WHOLE * 0, WHOLE, "inputs holds nothing but 0, which is padding"),
        (WHOLE[0], WHOLE, r"inputs is of shape \[3\]"),
        (WHOLE, WHOLE[:, :0], r"decoder_inputs is of shape \[1, 0\]"),
        (WHOLE, WHOLE[None], r"decoder_inputs is of shape \[1, 1, 3\]"),
        (WHOLE, WHOLE.repeat(2, 0), "inputs has 1 rows and decoder_inputs 2"),
        (WHOLE + 0.5, WHOLE, "inputs is of type float64"),
        (WHOLE > 0, WHOLE, "inputs is of type bool"),
        (WHOLE, WHOLE + 2**32, "decoder_inputs goes from 4294967296"),
        (WHOLE - 1, WHOLE, "inputs goes from -1"),
    ],
)
def test_ids_that_are_none_give_one_clear_error(inputs, decoder_inputs, message):
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        ids_with_padding(inputs, decoder_inputs, 0)
    assert "\n" not in str(refusal.value)


def test_places_that_only_one_has_are_a_difference():
    facts = {"lacking": ["decoder_layer_2"], "first": None, "tolerance": 1e-4}
    said = in_words([Difference("logits", 0.0, 0.0)], facts)
    assert "the two differ: only one of them has decoder_layer_2" in said
    assert "all of these agree" not in said
    assert "the places of both agree within 0.0001" in said
