"""Files of models whose libraries have no format of their own.

    model.safetensors, model.pt              the state dict, arrays by name
    config.json                              the settings
    source_vocab.json, target_vocab.json     symbols in the order of their ids
    source.codes, target.codes               BPE codes or SentencePiece models

Only the first two are needed. Without symbols, text is token ids, with spaces between.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.data.vocabulary_tokenizer import (
    VocabularyTokenizer,
    numbers_tokenizer,
)
from transformer_jax.interop import vocabularies
from transformer_jax.interop.checks import arrays, mapping, symbol_list
from transformer_jax.interop.files import (
    PICKLES,
    FileError,
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
SYMBOLS = ("source_vocab.json", "target_vocab.json")
SPECIAL_IDS = ("pad_id", "bos_id", "eos_id", "unk_id")
NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the state dict beside other things."""


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a file, or of a folder that has one."""
    file = find_file(path, WEIGHTS) if path.is_dir() else path
    if file.suffix not in PICKLES:
        return read_tensors(file)
    state = read_pickle(file)
    for name in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    return arrays(state, str(file))


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
    return mapping(read_json(file), str(file))


def tokenizer_from(
    path: Path, options: Options, sizes: tuple[int, int], ids: Mapping[str, int]
) -> Tokenizer:
    """The tokenizer that the options or the model's folder describe.

    `sizes` are the rows of the source and of the target table, `ids` the special ones.
    """
    folder = path if path.is_dir() else path.parent
    vocabs = vocabularies.given_vocabs(options, [folder / name for name in SYMBOLS])
    beside = [folder / name for name in vocabularies.CODES]
    codes = vocabularies.given_codes(options, beside)
    if not any(vocabs):
        if options.source_codes or options.target_codes:
            raise ValueError(
                "There are codes to split text with, but no list of symbols: give "
                "--source-vocab and --target-vocab too."
            )
        return numbers_tokenizer(*sizes, **ids)
    sides = []
    for name, vocab, code in zip(("source", "target"), vocabs, codes, strict=True):
        if vocab is None:
            raise ValueError(f"The {name} vocabulary is missing: give --{name}-vocab.")
        sides.append(vocabularies.splitting_side(_symbols(vocab), code))
    vocabularies.check_sizes((sides[0], sides[1]), *sizes, spare_rows=True)
    return VocabularyTokenizer(*sides, **ids)


def write_folder(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """State dict, settings with the special ids, symbols and codes."""
    sides = vocabularies.sides_of(foreign.tokenizer)
    sizes = config.source_vocab_size, config.target_vocab_size
    vocabularies.check_sizes(sides, *sizes, spare_rows=True)
    ids = {name: getattr(foreign.tokenizer, name) for name in SPECIAL_IDS}
    _write_json(path / SETTINGS, {**foreign.settings, **ids})
    write_tensors(path / "model.safetensors", foreign.state)
    for name, side in zip(SYMBOLS, sides, strict=True):
        _write_json(path / name, side.symbols)
    vocabularies.write_codes(path, sides)


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


def _symbols(path: Path) -> Sequence[str]:
    """Of a JSON list, or of a text file with one symbol on each line."""
    if path.suffix == ".json":
        return symbol_list(read_json(path), str(path))
    return vocabularies.read_lines(path)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")
