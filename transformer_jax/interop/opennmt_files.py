"""OpenNMT-py's files: one checkpoint, which holds all but the codes.

    model_step_100000.pt            model, generator, vocab, opt
    model_step_100000.safetensors   the arrays, if saved with -save_format safetensors;
                                    or in parts: model_step_100000.00.safetensors …

Text is split at white space, as its translate does without transforms, unless codes
are given or lie beside the checkpoint.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig, SearchConfig
from transformer_jax.data.vocabulary_tokenizer import VocabularyTokenizer
from transformer_jax.interop import vocabularies
from transformer_jax.interop.checks import (
    arrays,
    collected,
    given_settings,
    mapping,
    symbol_list,
)
from transformer_jax.interop.files import (
    FileError,
    find_file,
    read_pickle,
    read_tensors,
    write_pickle,
)
from transformer_jax.interop.library import NO_OPTIONS, Foreign, Options

SPECIALS = {"unk_id": "<unk>", "pad_id": "<blank>", "bos_id": "<s>", "eos_id": "</s>"}


def read_checkpoint(path: Path, options: Options = NO_OPTIONS) -> Foreign:
    """A checkpoint (.pt), or a folder with model.pt as `write_checkpoint` leaves it."""
    file = find_file(path, ["model.pt"]) if path.is_dir() else path
    checkpoint = read_pickle(file, classes=["argparse.Namespace"])
    if not isinstance(checkpoint, Mapping) or not {"opt", "vocab"} <= checkpoint.keys():
        raise FileError(
            f"{file} is not a checkpoint of OpenNMT-py: it has no 'opt' and 'vocab'."
        )
    if options.source_vocab or options.target_vocab:
        raise ValueError(
            f"{file} holds its own vocabulary: leave out --source-vocab and "
            "--target-vocab."
        )
    state = _state(file, checkpoint)
    opt, vocab = (
        mapping(checkpoint[name], f"{name!r} in {file}") for name in ("opt", "vocab")
    )
    symbols = [
        symbol_list(vocab.get(side), f"The vocabulary {side!r} in {file}")
        for side in ("src", "tgt")
    ]
    settings = settings_in(opt, vocab) | given_settings(options)
    if any(name.endswith("feed_forward.w_1.bias") for name in state):
        settings["add_ffnbias"] = True  # version 2 had no such option, and had biases
    codes = vocabularies.given_codes(options, _codes_beside(file.parent, settings))
    source, target = (
        vocabularies.splitting_side(side, code)
        for side, code in zip(symbols, codes, strict=True)
    )
    ids = vocabularies.special_ids(source.symbols, SPECIALS)
    if ids != vocabularies.special_ids(target.symbols, SPECIALS):
        raise ValueError("Special symbols have other numbers in source and target.")
    tokenizer = VocabularyTokenizer(source, target, **ids)
    return Foreign(settings, state, tokenizer, SEARCH)


SEARCH = SearchConfig(
    beam_size=5, length_penalty="average", max_length_factor=1.25, max_length_offset=5
)
"""What its translate does when it is told nothing; but it counts the start token into
the length that it divides by, and so prefers shorter translations a little."""


def settings_in(opt: Mapping[str, Any], vocab: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with what the vocabulary says."""
    return {
        **opt,
        "decoder_start_token": vocab.get("decoder_start_token", "<s>"),
        "src_feats": bool(vocab.get("src_feats")),
        "source_vocab_size": len(vocab["src"]),
        "target_vocab_size": len(vocab["tgt"]),
    }


def _state(file: Path, checkpoint: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by the names that version 3 gives them."""
    found: list[tuple[str, str, np.ndarray]] = []
    for start in ("model", "generator"):
        part = arrays(checkpoint.get(start) or {}, f"{start!r} in {file}")
        found += [(f"{start}.{key}", f"{start}.{key}", x) for key, x in part.items()]
    if "model" not in checkpoint:
        for path in _weights_beside(file):
            for key, x in read_tensors(path).items():
                name = key if key.startswith("generator.") else f"model.{key}"
                found.append((name, f"{key} of {path.name}", x))
    return collected(((_renamed(key), old, x) for key, old, x in found), "The weights")


def _weights_beside(file: Path) -> list[Path]:
    """The file of arrays of this very step, or its numbered parts."""
    name = re.compile(rf"{re.escape(file.stem)}(\.\d+)?\.safetensors")
    found = sorted(path for path in file.parent.iterdir() if name.fullmatch(path.name))
    if not found:
        raise FileError(
            f"{file} holds no weights, and there is no {file.stem}.safetensors "
            "beside it: copy it there."
        )
    return found


def _renamed(key: str) -> str:
    """What was `a_2`, `b_2` and `generator.0` before version 3."""
    for old, new in ((".a_2", ".weight"), (".b_2", ".bias")):
        key = key.removesuffix(old) + new if key.endswith(old) else key
    old = "generator.0."
    return f"generator.{key.removeprefix(old)}" if key.startswith(old) else key


def _codes_beside(folder: Path, opt: Mapping[str, Any]) -> list[Path | None]:
    """Files that the options name, if they lie beside the checkpoint; else ours."""
    found: list[Path | None] = []
    for side, ours in zip(("src", "tgt"), vocabularies.CODES, strict=True):
        named = opt.get(f"{side}_subword_model")
        there = folder / Path(str(named)).name if named else folder / ours
        found.append(there if there.is_file() else folder / ours)
    return found


def write_checkpoint(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """model.pt, which its translate loads; codes beside it."""
    sides = vocabularies.sides_for(foreign.tokenizer, SPECIALS, config)
    opt = {
        name: value
        for name, value in foreign.settings.items()
        if name not in ("source_vocab_size", "target_vocab_size", "src_feats")
    }
    vocab = {
        "src": list(sides[0].symbols),
        "tgt": list(sides[1].symbols),
        "data_task": "seq2seq",
        "decoder_start_token": opt["decoder_start_token"],
    }
    model, generator = (
        {
            key.removeprefix(start): x
            for key, x in foreign.state.items()
            if key.startswith(start)
        }
        for start in ("model.", "generator.")
    )
    checkpoint = {
        "model": model,
        "generator": generator,
        "vocab": vocab,
        "opt": argparse.Namespace(**opt),
    }
    write_pickle(path / "model.pt", checkpoint)
    vocabularies.write_codes(path, sides)
