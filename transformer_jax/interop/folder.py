"""Files of models whose libraries have no format of their own.

    model.safetensors, model.pt              the state dict, arrays by name
    config.json                              the settings
    source_vocab.json, target_vocab.json     symbols in the order of their ids
    source.codes, target.codes               BPE codes or SentencePiece models

Only the first two are needed. Without symbols, text is token ids, with spaces between.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.data.vocabulary_tokenizer import (
    Side,
    VocabularyTokenizer,
    numbers_tokenizer,
)
from transformer_jax.interop.files import (
    PICKLES,
    FileError,
    check_file,
    find_file,
    read_json,
    read_pickle,
    read_tensors,
    write_tensors,
)
from transformer_jax.interop.library import Foreign, Options
from transformer_jax.interop.rules import StateDict

WEIGHTS = ("model.safetensors", "model.pt", "pytorch_model.bin", "model.pth")
"""Looked for in a folder, in this order."""
SETTINGS = "config.json"
SPECIAL_IDS = ("pad_id", "bos_id", "eos_id", "unk_id")
NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the state dict beside other things."""
SENTENCEPIECE_START = b"\n"
"""First byte of a SentencePiece model (a protobuf field); BPE codes are lines."""


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a file, or of a folder that has one."""
    file = find_file(path, WEIGHTS) if path.is_dir() else path
    if file.suffix not in PICKLES:
        return read_tensors(file)
    state = read_pickle(file)
    for name in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray)
        for name, array in state.items()
    ):
        raise FileError(
            f"{file} holds no state dict (arrays by name): save model.state_dict()."
        )
    return dict(state)


def read_settings(path: Path, options: Options) -> dict[str, Any]:
    """The settings of a model: those given, or those in its folder."""
    file = options.settings
    if file is None:
        folder = path if path.is_dir() else path.parent
        if not (folder / SETTINGS).is_file():
            raise FileError(
                f"There is no {SETTINGS} beside the weights in {folder}: give the "
                "model's settings as --settings FILE."
            )
        file = folder / SETTINGS
    found = read_json(file)
    if not isinstance(found, dict):
        raise FileError(f"{file} must hold one JSON object with the model's settings.")
    return found


def tokenizer_from(
    path: Path, options: Options, sizes: tuple[int, int], ids: Mapping[str, int]
) -> Tokenizer:
    """The tokenizer that the options or the model's folder describe.

    `sizes` are the rows of the source and of the target table, `ids` the special ones.
    """
    folder = path if path.is_dir() else path.parent
    vocabs = (options.source_vocab, options.target_vocab)
    codes = (options.source_codes, options.target_codes)
    if not any(vocabs):
        names = ("source_vocab.json", "target_vocab.json")
        vocabs = tuple(_if_there(folder / name) for name in names)
        beside = tuple(
            _if_there(folder / name) for name in ("source.codes", "target.codes")
        )
        codes = tuple(
            given or there for given, there in zip(codes, beside, strict=True)
        )
    if not any(vocabs):
        if any(codes):
            raise ValueError(
                "There are codes to split text with, but no list of symbols: give "
                "--source-vocab and --target-vocab too."
            )
        return numbers_tokenizer(*sizes, **ids)
    sides = []
    for name, vocab, code, size in zip(
        ("source", "target"), vocabs, codes, sizes, strict=True
    ):
        if vocab is None:
            raise ValueError(f"The {name} vocabulary is missing: give --{name}-vocab.")
        sides.append(_side(vocab, code))
        if len(sides[-1].symbols) > size:
            raise ValueError(
                f"{vocab} has {len(sides[-1].symbols)} symbols, but the {name} table "
                f"of the model has {size} rows: the two do not belong together."
            )
    return VocabularyTokenizer(*sides, **ids)


def write_folder(path: Path, foreign: Foreign) -> None:
    """State dict, settings with the special ids, symbols and codes."""
    tokenizer = foreign.tokenizer
    ids = {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
    _write_json(path / SETTINGS, {**foreign.settings, **ids})
    write_tensors(path / "model.safetensors", foreign.state)
    kept = tokenizer.files()
    for side, pieces, size in (
        ("source", tokenizer.source_pieces, tokenizer.source_vocab_size),
        ("target", tokenizer.target_pieces, tokenizer.target_vocab_size),
    ):
        _write_json(path / f"{side}_vocab.json", pieces(range(size)))
        for name in (f"{side}.codes", f"{side}.model", "joint.model"):
            if name in kept:
                (path / f"{side}.codes").write_bytes(kept[name])


def rows_and_width(state: StateDict, key: str) -> tuple[int, int]:
    """The shape of a matrix that such a model must have."""
    if key not in state or state[key].ndim != 2:
        there = ", ".join(sorted(state)[:4])
        raise FileError(
            f"There is no matrix {key} among the weights, so these are not of such a "
            f"model. They begin with {there}."
        )
    rows, width = state[key].shape
    return rows, width


def count_layers(state: StateDict, prefix: str) -> int:
    """How many layers have keys that begin with `prefix` and a number.

    >>> count_layers({"layers.0.a": 0, "layers.11.a": 0, "other": 0}, "layers.")
    12
    """
    numbers = (re.match(re.escape(prefix) + r"(\d{1,4})\.", key) for key in state)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def found_tying(state: StateDict, source: str, target: str, output: str) -> str:
    """Which of these three arrays are one, as `ModelConfig.tied_embeddings` says it."""

    def same(one: str, other: str) -> bool:
        return np.array_equal(state[one], state[other])

    if not {source, target, output} <= state.keys():
        return "none"
    if same(target, output):
        return "all" if same(source, target) else "target_output"
    return "source_target" if same(source, target) else "none"


def with_tied(
    state: Mapping[str, np.ndarray], tying: str, source: str, target: str, output: str
) -> dict[str, np.ndarray]:
    """Gives tied arrays that a file holds only once their other names too."""
    groups = {
        "all": (source, target, output),
        "source_target": (source, target),
        "target_output": (target, output),
    }
    names = groups.get(str(tying), ())
    held = [name for name in names if name in state]
    copies = dict.fromkeys(names, state[held[0]]) if held else {}
    return {**copies, **state}


def _side(vocab: Path, codes: Path | None) -> Side:
    symbols = _symbols(vocab)
    if codes is None:
        return Side(symbols)
    check_file(codes)
    content = codes.read_bytes()
    sentencepiece = content.startswith(SENTENCEPIECE_START)
    return Side(symbols, "sentencepiece" if sentencepiece else "bpe", content)


def _symbols(path: Path) -> tuple[str, ...]:
    """Of a JSON list, or of a text file with one symbol on each line."""
    if path.suffix == ".json":
        symbols = read_json(path)
        if not isinstance(symbols, list) or not all(
            isinstance(symbol, str) for symbol in symbols
        ):
            raise FileError(f"{path} must hold one JSON list of symbols.")
        return tuple(symbols)
    check_file(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text: {error}.") from None
    return tuple(text.removesuffix("\n").split("\n"))


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")
