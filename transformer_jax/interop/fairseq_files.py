"""fairseq's files: checkpoints of all its ages, dictionaries, codes.

    model.pt                            or checkpoint_best.pt, checkpoint_last.pt
    dict.de.txt, dict.en.txt            a symbol and its count on each line
    bpecodes, sentencepiece.bpe.model   what splits words, where text is not split yet;
                                        if the two languages differ in it, with .source
                                        and .target at the end

A checkpoint keeps its arguments as an `argparse.Namespace` (`args`, up to 0.10), as an
omegaconf object (`cfg`, 0.10), or as plain dicts with a Namespace inside (since).
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.data.vocabulary_tokenizer import (
    Side,
    VocabularyTokenizer,
    numbers_tokenizer,
)
from transformer_jax.interop import vocabularies
from transformer_jax.interop.checks import arrays, collected, given_settings, mapping
from transformer_jax.interop.files import (
    PICKLES,
    FileError,
    find_file,
    read_pickle,
    read_tensors,
    write_pickle,
)
from transformer_jax.interop.library import Foreign, Options
from transformer_jax.interop.rules import StateDict

CHECKPOINTS = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")
"""Looked for in a folder, in this order."""
CODES = ("bpecodes", "code", "sentencepiece.bpe.model")
CLASSES = (
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")),
    "collections.defaultdict",
    "fairseq.*",
    "numpy.*",
    "omegaconf.*",
    "operator.getitem",
    "_operator.getitem",
    "typing.*",
)
"""What fairseq's checkpoints hold besides arrays; all of it is kept as fields only."""
SPECIALS = {"bos_id": "<s>", "pad_id": "<pad>", "eos_id": "</s>", "unk_id": "<unk>"}
SPARE = "madeupword"
"""What fairseq calls rows without a symbol, with a number; their count is 0."""
OVERWRITE = "#fairseq:overwrite"
NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": (
        "self_attn_layer_norm",
        "encoder_attn_layer_norm",
        "final_layer_norm",
    ),
}
"""Names of what were `layer_norms.0`, `layer_norms.1` …"""
EMBEDDED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
OUTPUT = "decoder.output_projection.weight"


def checkpoint_file(path: Path) -> Path:
    """The checkpoint at a path, or in the folder there."""
    return find_file(path, CHECKPOINTS) if path.is_dir() else path


def read_checkpoint(
    file: Path, options: Options
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """State dict and flat settings; settings given by JSON come before those inside."""
    checkpoint: Any = {}
    if file.suffix in PICKLES:
        checkpoint = read_pickle(file, classes=CLASSES)
        if not isinstance(checkpoint, Mapping) or "model" not in checkpoint:
            raise FileError(
                f"{file} is not a checkpoint of fairseq: there is no 'model' in it."
            )
        state = arrays(checkpoint["model"], f"'model' in {file}")
    else:
        state = read_tensors(file)
    settings = settings_in(checkpoint) | given_settings(options)
    if not settings:
        raise FileError(
            f"{file} holds no settings (neither 'args' nor 'cfg'): give them as "
            "--settings FILE, a JSON object with fairseq's arguments."
        )
    missing = [name for name in EMBEDDED if name not in state]
    if missing:
        raise FileError(f"{file} has no {' and no '.join(missing)}: not such a model.")
    for side, name in zip(("source", "target"), EMBEDDED, strict=True):
        settings[f"{side}_vocab_size"] = len(np.atleast_1d(state[name]))
    return upgraded(state, settings), settings


def settings_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """fairseq's arguments, flat and without those that are None."""
    args = _plain(checkpoint.get("args"))
    whole = mapping(_plain(checkpoint.get("cfg")) or {}, "'cfg' in the checkpoint")
    if args is None:
        task, model = (
            mapping(whole.get(name) or {}, f"'cfg.{name}' in the checkpoint")
            for name in ("task", "model")
        )
        names = {
            "task": model.get("task") or task.get("_name"),
            "arch": model.get("arch") or model.get("_name"),
        }
        args = {**task, **model, **names}
    flat = {}
    for name, value in mapping(args, "'args' in the checkpoint").items():
        if isinstance(value, Mapping):
            flat |= {f"{name}_{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    flat = {name: _resolved(value, whole) for name, value in flat.items()}
    return {name: value for name, value in flat.items() if value is not None}


def upgraded(state: StateDict, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """A state dict of any age as version 0.12 has it; notes versions in the settings.

    Older ones fuse query, key and value in one array, number their norms, and do not
    repeat the output projection; newer ones keep fewer buffers.
    """
    found = (
        (name, key, part)
        for key, array in state.items()
        for name, part in _renamed(key, array)
    )
    now = collected(found, "The weights")
    if OUTPUT not in now:
        tied = settings.get("share_all_embeddings") or settings.get(
            "share_decoder_input_output_embed"
        )
        if tied:
            now[OUTPUT] = now[EMBEDDED[1]]
    for side in ("encoder", "decoder"):
        version = now.setdefault(f"{side}.version", np.ones(1, np.float32))
        if version.size != 1 or not np.isfinite(version).all():
            raise FileError(
                f"{side}.version is {version.tolist()}, and must be one number: is the "
                "file whole?"
            )
        settings[f"{side}_version"] = int(version.reshape(-1)[0])
        if f"{side}.embed_positions.weight" not in now:
            unread = f"{side}.embed_positions._float_tensor"
            now.setdefault(unread, np.zeros(1, np.float32))
    return now


def read_dictionary(path: Path) -> tuple[str, ...]:
    """Symbols in the order of their ids, the four special ones first.

    Of a symbol that is there twice, fairseq looks up the later one; the earlier one is
    marked, so that it is not found.
    """
    symbols = list(SPECIALS.values())
    ids = {symbol: number for number, symbol in enumerate(symbols)}
    for number, line in enumerate(vocabularies.read_lines(path), start=1):
        kept = line.rstrip().removesuffix(f" {OVERWRITE}")
        symbol, space, count = kept.rpartition(" ")
        if not space or not count.lstrip("-").isdigit():
            raise FileError(
                f"{path}, line {number} is {line!r}, but a symbol, a space and a count "
                "are expected."
            )
        if symbol in ids:
            if OVERWRITE not in line:
                raise FileError(f"{path}, line {number}: {symbol!r} is there before.")
            if ids[symbol] >= len(SPECIALS):
                symbols[ids[symbol]] = f"{symbol} (overwritten)"
        ids[symbol] = len(symbols)
        symbols.append(symbol)
    return tuple(symbols)


def read_tokenizer(
    folder: Path, settings: Mapping[str, Any], options: Options
) -> Tokenizer:
    """Dictionaries and codes as given, or as found in the folder; without any, text is
    token ids."""
    sizes = settings["source_vocab_size"], settings["target_vocab_size"]
    ids = vocabularies.first_ids(SPECIALS)
    vocabs = vocabularies.given_vocabs(options, _dictionaries(folder, settings))
    if not any(vocabs):
        return numbers_tokenizer(*sizes, **ids)
    beside = [
        _first(folder, [f"{name}.{side}" for name in CODES] + [*CODES])
        for side in ("source", "target")
    ]
    codes = vocabularies.given_codes(options, beside)
    sides = []
    for name, vocab, code in zip(("source", "target"), vocabs, codes, strict=True):
        if vocab is None:
            raise ValueError(f"The {name} dictionary is missing: give --{name}-vocab.")
        sides.append(vocabularies.splitting_side(read_dictionary(vocab), code))
    vocabularies.check_sizes((sides[0], sides[1]), *sizes)
    return VocabularyTokenizer(*sides, **ids)


def write_folder(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """A checkpoint with arguments, both dictionaries, and what splits words.

    Rows of the tables that have no symbol get those that fairseq makes up for them.
    """
    sizes = config.source_vocab_size, config.target_vocab_size
    sides = vocabularies.sides_of(foreign.tokenizer, SPECIALS)
    vocabularies.check_sizes(sides, *sizes, spare_rows=True)
    sides = _filled(sides[0], sizes[0]), _filled(sides[1], sizes[1])
    orders = vocabularies.specials_first(foreign.tokenizer, SPECIALS, sides)
    tables = (EMBEDDED[:1], (EMBEDDED[1], OUTPUT))
    same_codes = sides[0].codes == sides[1].codes
    state = foreign.state
    for name, side, order, names in zip(
        ("source", "target"), sides, orders, tables, strict=True
    ):
        state = vocabularies.reordered(state, order, names)
        symbols = [side.symbols[i] for i in order[len(SPECIALS) :]]
        _write_dictionary(path / f"dict.{name}.txt", symbols)
        if side.codes:
            own = CODES[2] if side.splitter == "sentencepiece" else CODES[0]
            file = path / (own if same_codes else f"{own}.{name}")
            file.write_bytes(side.codes)
    write_pickle(path / "model.pt", _checkpoint(foreign.settings, state))


def _filled(side: Side, rows: int) -> Side:
    """With a symbol for each row of the table."""
    spare = (f"{SPARE}{number:04d}" for number in itertools.count())
    unused = (symbol for symbol in spare if symbol not in side.symbols)
    more = itertools.islice(unused, rows - len(side.symbols))
    return side._replace(symbols=(*side.symbols, *more))


def _checkpoint(settings: Mapping[str, Any], state: StateDict) -> dict[str, Any]:
    """As fairseq's loader wants it; without the state of an optimizer."""
    names = {"source_lang": "source", "target_lang": "target", "data": "."}
    elsewhere = [f"{side}_vocab_size" for side in ("source", "target")]
    elsewhere += ["encoder_version", "decoder_version"]
    args = {k: x for k, x in settings.items() if k not in elsewhere}
    history = {
        "criterion_name": "LabelSmoothedCrossEntropyCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    return {
        "args": argparse.Namespace(**{**args, **names}),
        "model": state,
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }


def _write_dictionary(path: Path, symbols: list[str]) -> None:
    lines = [f"{each} {0 if each.startswith(SPARE) else 1}\n" for each in symbols]
    path.write_text("".join(lines), encoding="utf-8")


def _renamed(key: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """One array of any age under its name, or names, of now."""
    place, _, last = key.rpartition(".")
    layer, numbered, number = place.rpartition(".layer_norms.")
    norms = dict(enumerate(NORMS.get(key.split(".")[0], ())))
    if last in ("in_proj_weight", "in_proj_bias"):
        if array.ndim == 0 or len(array) % 3:
            raise FileError(
                f"{key} is {list(array.shape)}, and must be query, key and value one "
                "below the other: three parts of one size."
            )
        kind = last.removeprefix("in_proj_")
        for name, part in zip("qkv", np.split(array, 3), strict=True):
            yield f"{place}.{name}_proj.{kind}", part
    elif numbered and number.isdecimal() and int(number) in norms:
        yield f"{layer}.{norms[int(number)]}.{last}", array
    elif key == "decoder.embed_out":
        yield OUTPUT, array
    else:
        yield key, array


def _dictionaries(folder: Path, settings: Mapping[str, Any]) -> list[Path | None]:
    languages = [settings.get(f"{side}_lang") for side in ("source", "target")]
    return [folder / f"dict.{name}.txt" if name else None for name in languages]


def _first(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _plain(value: Any) -> Any:
    """The content of Namespaces and of omegaconf's containers and nodes."""
    if isinstance(value, Mapping):
        kind = str(value.get("class", ""))
        if kind.startswith("omegaconf.nodes."):
            return _plain(value.get("_val"))
        if kind.startswith("omegaconf."):
            return _plain(value.get("_content"))
        return {k: _plain(each) for k, each in value.items() if k != "class"}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def _resolved(value: Any, whole: Mapping[str, Any]) -> Any:
    """What omegaconf's `${model.encoder.embed_dim}` stands for."""
    if not (isinstance(value, str) and value.startswith("${") and value[-1] == "}"):
        return value
    found: Any = whole
    for name in value[2:-1].split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
