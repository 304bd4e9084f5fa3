"""Marian models without Marian: kept logits, a folder, translating, fine-tuning."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.__main__ import main
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config, SearchConfig, TokenizerConfig
from transformer_jax.data.batching import Batch
from transformer_jax.data.vocabulary_tokenizer import Side, VocabularyTokenizer
from transformer_jax.interop import ctranslate2, marian
from transformer_jax.interop.files import read_tensors, write_tensors
from transformer_jax.interop.library import (
    Foreign,
    export_run,
    export_state,
    import_state,
)
from transformer_jax.models import Transformer
from transformer_jax.recipes import config_to_json
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


def test_inspect_says_where_an_imported_run_is_from(tmp_path, capsys):
    write_folder(tmp_path / "hf")
    words = ["import", "--from", "marian", str(tmp_path / "hf")]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["inspect", "--checkpoint", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'hf'} of marian" in said
    assert "decoder_start pad" in said


def own_run(
    folder: Path, seed: int = 0, *, search: SearchConfig | None = None, **settings: Any
) -> Path:
    """A run as training makes it, with random weights and our SentencePiece tokenizer:
    padding first, the decoder started from a symbol of its own unless `settings` say.
    """
    tokenizer = tiny_tokenizer()
    size = tokenizer.source_vocab_size
    rows = {"source_vocab_size": size, "target_vocab_size": size}
    model, params = tiny_model(seed, **{"norm_position": "post", **rows, **settings})
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 4 * x if "embedding" in jax.tree_util.keystr(path) else x,
        params,
    )
    if model.config.output_bias:
        bias = np.array(params["output"]["bias"])
        bias[tokenizer.eos_id] = 5.0
        params["output"]["bias"] = bias
    config = Config(
        model=model.config,
        tokenizer=TokenizerConfig(vocab_size=size),
        search=search or SearchConfig(method="greedy"),
    )
    store = CheckpointStore(folder)
    store.write_run(config_to_json(config), tokenizer.files())
    store.save(0, {"params": params})
    return folder


def exported(run: Path, output: Path, kind: str = "marian") -> dict[str, Any]:
    """Exports a run; the JSON files of the folder by name without ending."""
    words = ["export", "--to", kind, "--checkpoint", str(run), "--output", str(output)]
    assert main(words) == 0
    return {
        file.stem: json.loads(file.read_text("utf-8")) for file in output.glob("*.json")
    }


def change(file: Path, **entries: Any) -> None:
    """Writes entries of a JSON object anew."""
    there = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**there, **entries}))


@pytest.mark.parametrize("start", ["bos", "eos", "pad"])
def test_padding_of_our_own_runs_becomes_the_last_symbol(tmp_path, start):
    """Each symbol keeps its embedding and its bias, whatever its number."""
    run = own_run(tmp_path / "run", decoder_start=start, output_bias=True)
    files = exported(run, tmp_path / "there")
    numbers, config = files["vocab"], files["config"]
    ours = Translator.load(run)
    size = ours.tokenizer.target_vocab_size
    assert sorted(numbers.values()) == list(range(size))
    assert config["pad_token_id"] == numbers["<pad>"] == size - 1
    assert config["eos_token_id"] == numbers["</s>"]
    symbol = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}[start]
    assert config["decoder_start_token_id"] == numbers[symbol]
    assert files["generation_config"]["bad_words_ids"] == [
        [numbers["<pad>"]],
        [numbers["<s>"]],
    ]
    symbols = ours.tokenizer.target_pieces(range(size))
    rows = [numbers[symbol] for symbol in symbols]
    state = read_tensors(tmp_path / "there" / "model.safetensors")
    sines_first = np.arange(16).reshape(-1, 2).T.reshape(-1)
    np.testing.assert_array_equal(
        state["model.shared.weight"][rows],
        np.asarray(ours.params["shared_embedding"]["embedding"])[:, sines_first],
    )
    np.testing.assert_array_equal(
        state["final_logits_bias"][0, rows], ours.params["output"]["bias"]
    )


def test_a_run_of_our_own_comes_back_and_translates_as_before(tmp_path):
    run = own_run(tmp_path / "run")
    exported(run, tmp_path / "there")
    words = ["import", "--from", "marian", str(tmp_path / "there")]
    assert main([*words, "--output", str(tmp_path / "again")]) == 0
    lines = [source for source, _ in SENTENCES]
    before, after = (
        Translator.load(tmp_path / name).translate(lines) for name in ("run", "again")
    )
    for one, other in zip(before, after, strict=True):
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_who_exports_for_marian_is_told_what_ctranslate2_would_do(tmp_path, capsys):
    run = own_run(tmp_path / "run")
    exported(run, tmp_path / "there")
    said = capsys.readouterr().err
    assert "export --to ctranslate2" in said
    assert "starts from the embedding of bos" in said
    exported(run, tmp_path / "for_ct2", "ctranslate2")
    assert not capsys.readouterr().err


def test_a_folder_for_ctranslate2_starts_from_zeros_and_a_first_position(tmp_path):
    """PE(0) + E(<s>) · √16, where PE(0) is 0 for sines and 1 for cosines."""
    run = own_run(tmp_path / "run")
    plain = exported(run, tmp_path / "plain")
    files = exported(run, tmp_path / "there", "ctranslate2")
    bos, pad = plain["vocab"]["<s>"], plain["vocab"]["<pad>"]
    before, state = (
        read_tensors(tmp_path / name / "model.safetensors")
        for name in ("plain", "there")
    )
    assert files["config"]["decoder_start_token_id"] == pad
    shared = state["model.shared.weight"]
    assert not shared[pad].any()
    np.testing.assert_array_equal(shared[:pad], before["model.shared.weight"][:pad])
    first = state["model.decoder.embed_positions.weight"][0]
    np.testing.assert_allclose(first, np.repeat([0, 1], 8) + 4 * shared[bos], rtol=1e-6)
    bias = state["final_logits_bias"][0]
    assert (bias[[bos, pad]] == -1e4).all()
    assert np.count_nonzero(bias) == 2


def test_a_zero_start_needs_no_folder_of_its_own(tmp_path, capsys):
    write_folder(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    state = read_tensors(file)
    state["model.shared.weight"][-1] = 0.0
    write_tensors(file, state)
    words = ["import", "--from", "marian", str(tmp_path / "hf")]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    one = exported(tmp_path / "run", tmp_path / "one")
    other = exported(tmp_path / "run", tmp_path / "other", "ctranslate2")
    assert not capsys.readouterr().err
    assert one == other
    weights = "model.safetensors"
    first = (tmp_path / "one" / weights).read_bytes()
    assert first == (tmp_path / "other" / weights).read_bytes()


def test_two_vocabularies_and_imports_are_no_matter_of_ctranslate2(tmp_path, capsys):
    tokenizer = tiny_tokenizer(joint=False, vocab_size=70)
    model, params = tiny_model(
        norm_position="post",
        tied_embeddings="target_output",
        sinusoid_layout="halves_paper",
        source_vocab_size=70,
        target_vocab_size=70,
    )
    settings, state = export_state("ctranslate2", model.config, params)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="vocabularies of their own, and must share"):
        ctranslate2.write(
            tmp_path / "there", Foreign(settings, state, tokenizer), model.config
        )
    with pytest.raises(ValueError, match="cannot be imported"):
        ctranslate2.read(tmp_path / "there")


def test_rows_without_a_symbol_are_named_and_symbols_without_a_row_refused(tmp_path):
    size = tiny_tokenizer().source_vocab_size
    rows: dict[str, Any] = {"source_vocab_size": size + 8}
    rows["target_vocab_size"] = size + 8
    files = exported(own_run(tmp_path / "run", **rows), tmp_path / "there")
    assert sorted(files["vocab"].values()) == list(range(size + 8))
    assert files["vocab"]["<pad>"] == size + 7
    words = ["import", "--from", "marian", str(tmp_path / "there")]
    assert main([*words, "--output", str(tmp_path / "again")]) == 0

    rows = {"source_vocab_size": size - 1, "target_vocab_size": size - 1}
    run = own_run(tmp_path / "small", **rows)
    with pytest.raises(ValueError, match=f"{size} symbols, but the model {size - 1}"):
        export_run("marian", run, tmp_path / "refused")


def test_special_symbols_of_other_libraries_are_spelled_as_marians(tmp_path):
    inside = tiny_tokenizer()
    pieces = inside.target_pieces(range(4, inside.target_vocab_size))
    symbols = ("<unknown>", "<blank>", "<begin>", "<end>", *pieces)
    side = Side(symbols, "sentencepiece", inside.models[0])
    ids = {"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3}
    tokenizer = VocabularyTokenizer(side, side, **ids)
    sizes = {"source_vocab_size": len(symbols), "target_vocab_size": len(symbols)}
    model, params = tiny_model(
        norm_position="post", sinusoid_layout="halves_paper", **sizes
    )
    settings, state = export_state("marian", model.config, params)
    marian.write(tmp_path, Foreign(settings, state, tokenizer), model.config)
    numbers = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    assert list(numbers)[:4] == ["<unk>", "<s>", "</s>", pieces[0]]
    assert numbers["<pad>"] == len(symbols) - 1


def test_the_number_of_positions_comes_back(tmp_path):
    write_folder(tmp_path / "hf")
    change(tmp_path / "hf" / "config.json", max_position_embeddings=77)
    words = ["import", "--from", "marian", str(tmp_path / "hf")]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    files = exported(tmp_path / "run", tmp_path / "back")
    assert files["config"]["max_position_embeddings"] == 77
    assert files["generation_config"]["max_length"] == 77


def test_generate_is_asked_for_our_search(tmp_path, capsys):
    search = SearchConfig(method="beam", beam_size=3, length_penalty="none")
    files = exported(own_run(tmp_path / "run", search=search), tmp_path / "there")
    asked = files["generation_config"]
    assert (asked["num_beams"], asked["length_penalty"]) == (3, 0.0)
    assert asked["early_stopping"] is True
    exact = dataclasses.replace(search, stop="bound")
    files = exported(own_run(tmp_path / "exact", search=exact), tmp_path / "bound")
    assert files["generation_config"]["early_stopping"] == "never"
    gnmt = dataclasses.replace(search, length_penalty="gnmt")
    exported(own_run(tmp_path / "gnmt", search=gnmt), tmp_path / "other")
    assert "which `generate` cannot do" in capsys.readouterr().err
