"""Marian models without Marian: kept logits, a folder, translating, fine-tuning."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.data.batching import Batch
from transformer_jax.data.vocabulary_tokenizer import Side, VocabularyTokenizer
from transformer_jax.interop import marian
from transformer_jax.interop.files import read_tensors
from transformer_jax.interop.library import Foreign, export_state, import_state
from transformer_jax.models import Transformer
from transformer_jax.testing import SENTENCES, tiny_model, tiny_tokenizer
from transformer_jax.translation.translator import Translator

GOLDENS = Path(__file__).parent / "parity" / "goldens"


@pytest.mark.parametrize("variant", ["shared", "separate"])
def test_kept_logits_are_computed_again_and_every_bit_comes_back(variant):
    tensors = read_tensors(GOLDENS / f"marian_{variant}.safetensors")
    about = json.loads((GOLDENS / f"marian_{variant}.json").read_text("utf-8"))
    state = {
        name.removeprefix("state/"): x
        for name, x in tensors.items()
        if name.startswith("state/")
    }
    config, params = import_state("marian", state, about["settings"])
    pad = about["settings"]["pad_token_id"]
    sources = (tensors["source"] != pad).astype(np.int32)
    targets = tensors["inside"]
    assert not sources.all()
    assert not targets.all()
    batch = Batch(
        inputs=tensors["source"],
        input_segment_ids=sources,
        input_positions=np.arange(sources.shape[1], dtype=np.int32) * sources,
        decoder_inputs=tensors["decoder_inputs"],
        targets=tensors["decoder_inputs"],
        target_segment_ids=targets,
        target_positions=np.arange(targets.shape[1], dtype=np.int32) * targets,
    )
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
    real = targets > 0
    np.testing.assert_allclose(
        np.asarray(logits)[real], tensors["logits"][real], atol=1e-5
    )
    _, exported = export_state("marian", config, params)
    assert exported.keys() == state.keys()
    for name, x in exported.items():
        assert x.tobytes() == state[name].tobytes(), name


def write_folder(folder: Path) -> VocabularyTokenizer:
    """A Marian model with random weights; its list numbers pieces from behind."""
    inside = tiny_tokenizer()
    pieces = inside.target_pieces(range(4, inside.target_vocab_size))
    symbols = ("</s>", "<unk>", *reversed(pieces), "<pad>")
    side = Side(symbols, "sentencepiece", inside.models[0])
    pad = len(symbols) - 1
    tokenizer = VocabularyTokenizer(
        side, side, pad_id=pad, bos_id=pad, eos_id=0, unk_id=1
    )
    model, params = tiny_model(
        sinusoid_layout="halves_paper",
        decoder_start="pad",
        output_bias=True,
        source_vocab_size=len(symbols),
        target_vocab_size=len(symbols),
    )
    settings, state = export_state("marian", model.config, params)
    folder.mkdir()
    marian.write(folder, Foreign(settings, state, tokenizer), model.config)
    return tokenizer


def test_an_imported_run_translates_and_is_fine_tuned(tmp_path):
    tokenizer = write_folder(tmp_path / "hf")
    words = ["import", "--from", "marian", str(tmp_path / "hf")]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    translator = Translator.load(tmp_path / "run")
    assert translator.tokenizer.files() == tokenizer.files()
    found = translator.translate([SENTENCES[0][0], ""])
    assert found[0].tokens[-1] == "</s>"
    assert "<pad>" not in found[0].tokens

    for side, lines in zip(
        ("source", "target"), zip(*SENTENCES, strict=True), strict=True
    ):
        (tmp_path / side).write_text("\n".join(lines) + "\n")
    files = {"train": "source", "dev": "source"}
    options = [
        f"--data.{split}-{side}={tmp_path / side}"
        for split in files
        for side in ("source", "target")
    ]
    settings = {
        "train.steps": 2,
        "train.evaluate-every": 2,
        "data.batch-tokens": 512,
        "data.pack-length": 64,
        "data.max-length": 64,
        "optimizer.warmup-steps": 1,
    }
    options += [f"--{name}={value}" for name, value in settings.items()]
    options.append("--train.no-curves")
    places = ["--workdir", str(tmp_path / "tuned")]
    places += ["--init-from", str(tmp_path / "run")]
    assert main(["train", "--config", "parallel_text", *places, *options]) == 0
    tuned = CheckpointStore(tmp_path / "tuned")
    assert tuned.tokenizer_files() == tokenizer.files()
    before = jax.tree.leaves(translator.params)
    after = jax.tree.leaves(tuned.restore_params())
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    back = ["--checkpoint", str(tmp_path / "tuned"), "--output", str(tmp_path / "back")]
    assert main(["export", "--to", "marian", *back]) == 0


def test_our_own_run_never_gives_its_start_token_there_either(tmp_path):
    tokenizer = tiny_tokenizer()
    size = tokenizer.target_vocab_size
    model, params = tiny_model(source_vocab_size=size, target_vocab_size=size)
    settings, state = export_state("marian", model.config, params)
    marian.write(tmp_path, Foreign(settings, state, tokenizer), model.config)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["bad_words_ids"] == [[tokenizer.pad_id], [tokenizer.bos_id]]
    assert generation["decoder_start_token_id"] == tokenizer.bos_id


def test_inspect_says_where_an_imported_run_is_from(tmp_path, capsys):
    write_folder(tmp_path / "hf")
    words = ["import", "--from", "marian", str(tmp_path / "hf")]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["inspect", "--checkpoint", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'hf'} of marian" in said
    assert "decoder_start pad" in said


def test_damaged_folders_are_named(tmp_path, capsys):
    write_folder(tmp_path / "hf")
    words = ["import", "--from", "marian", str(tmp_path / "hf")]
    words += ["--output", str(tmp_path / "run")]
    vocab = tmp_path / "hf" / "vocab.json"
    text = vocab.read_text()
    vocab.write_text(text[:-9])
    assert main(words) == 1
    assert "vocab.json is not valid JSON" in capsys.readouterr().err
    vocab.unlink()
    assert main(words) == 1
    assert "has none of vocab.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
