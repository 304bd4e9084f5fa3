"""fairseq's files: checkpoints of all its ages, dictionaries, codes.

    model.pt                            or checkpoint_best.pt, checkpoint_last.pt
    dict.de.txt, dict.en.txt            a symbol and its count on each line
    bpecodes, sentencepiece.bpe.model   what splits words, where text is not split yet

A checkpoint keeps its arguments as an `argparse.Namespace` (`args`, up to 0.10), as an
omegaconf object (`cfg`, 0.10), or as plain dicts with a Namespace inside (since).
"""

import argparse
from collections.abc import Iterator, Mapping
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
    write_pickle,
)
from transformer_jax.interop.library import Foreign, Options
from transformer_jax.interop.rules import StateDict

CHECKPOINTS = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")
"""Looked for in a folder, in this order."""
CODES = ("bpecodes", "code", "sentencepiece.bpe.model")
SENTENCEPIECE_START = b"\n"
"""First byte of a SentencePiece model (a protobuf field); codes are lines of text."""
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
SPECIAL_IDS = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
SPECIAL_SYMBOLS: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>")
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
        state = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
        if not isinstance(state, Mapping):
            raise FileError(
                f"{file} is not a checkpoint of fairseq: there is no 'model' in it."
            )
    else:
        state = read_tensors(file)
    settings = settings_in(checkpoint)
    if options.settings:
        settings |= read_json(options.settings)
    if not settings:
        raise FileError(
            f"{file} holds no settings (neither 'args' nor 'cfg'): give them as "
            "--settings FILE, a JSON object with fairseq's arguments."
        )
    missing = [name for name in EMBEDDED if name not in state]
    if missing:
        raise FileError(f"{file} has no {' and no '.join(missing)}: not such a model.")
    for side, name in zip(("source", "target"), EMBEDDED, strict=True):
        settings[f"{side}_vocab_size"] = state[name].shape[0]
    return upgraded(state, settings), settings


def settings_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """fairseq's arguments, flat and without those that are None."""
    args = _plain(checkpoint.get("args"))
    whole = _plain(checkpoint.get("cfg")) or {}
    if args is None:
        task, model = whole.get("task") or {}, whole.get("model") or {}
        names = {
            "task": model.get("task") or task.get("_name"),
            "arch": model.get("arch") or model.get("_name"),
        }
        args = {**task, **model, **names}
    flat = {}
    for name, value in args.items():
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
    now: dict[str, np.ndarray] = {}
    for key, array in state.items():
        now |= _renamed(key, array)
    if OUTPUT not in now:
        tied = settings.get("share_all_embeddings") or settings.get(
            "share_decoder_input_output_embed"
        )
        if tied:
            now[OUTPUT] = now[EMBEDDED[1]]
    for side in ("encoder", "decoder"):
        version = now.setdefault(f"{side}.version", np.ones(1, np.float32))
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
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text: {error}.") from None
    symbols = list(SPECIAL_SYMBOLS)
    ids = {symbol: number for number, symbol in enumerate(symbols)}
    for number, line in enumerate(lines, start=1):
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
            if ids[symbol] >= len(SPECIAL_SYMBOLS):
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
    given = (options.source_vocab, options.target_vocab)
    if not any(given):
        given = tuple(_dictionaries(folder, settings))
    if not any(given):
        return numbers_tokenizer(*sizes, **SPECIAL_IDS)
    codes = (options.source_codes, options.target_codes)
    if not any(codes):
        codes = (_first(folder, CODES),) * 2
    sides = []
    for name, vocab, code, size in zip(
        ("source", "target"), given, codes, sizes, strict=True
    ):
        if vocab is None:
            raise ValueError(f"The {name} dictionary is missing: give --{name}-vocab.")
        symbols = read_dictionary(vocab)
        if len(symbols) != size:
            raise ValueError(
                f"{vocab} has {len(symbols)} symbols with the special ones, but the "
                f"{name} table of the model {size} rows: they do not belong together."
            )
        sides.append(_side(symbols, code))
    return VocabularyTokenizer(*sides, **SPECIAL_IDS)


def write_folder(path: Path, foreign: Foreign) -> None:
    """A checkpoint with arguments, both dictionaries, and what splits words."""
    tokenizer, state = foreign.tokenizer, dict(foreign.state)
    kept = tokenizer.files()
    sides = (
        ("source", tokenizer.source_vocab_size, tokenizer.source_pieces, EMBEDDED[:1]),
        (
            "target",
            tokenizer.target_vocab_size,
            tokenizer.target_pieces,
            (EMBEDDED[1], OUTPUT),
        ),
    )
    for side, size, pieces, names in sides:
        order = _special_first(tokenizer, size)
        state |= {name: state[name][order] for name in names}
        _write_dictionary(path / f"dict.{side}.txt", pieces(order)[4:])
        for name in (f"{side}.codes", f"{side}.model", "joint.model"):
            if name in kept:
                both = _same_codes(kept)
                (path / _codes_name(kept[name], "" if both else side)).write_bytes(
                    kept[name]
                )
    write_pickle(path / "model.pt", _checkpoint(foreign.settings, state))


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


def _special_first(tokenizer: Tokenizer, size: int) -> list[int]:
    """Our ids in the order of fairseq's, whose special ones have fixed numbers."""
    special = [getattr(tokenizer, name) for name in SPECIAL_IDS]
    return special + [i for i in range(size) if i not in special]


def _write_dictionary(path: Path, symbols: list[str]) -> None:
    lines = []
    seen = set(SPECIAL_SYMBOLS)
    for symbol in symbols:
        if any(end in symbol for end in "\n\r") or symbol.strip() != symbol:
            raise ValueError(
                f"The symbol {symbol!r} has white space at its ends, which fairseq's "
                "dictionaries cannot hold."
            )
        lines.append(f"{symbol} 1{f' {OVERWRITE}' if symbol in seen else ''}\n")
        seen.add(symbol)
    path.write_text("".join(lines), encoding="utf-8")


def _codes_name(codes: bytes, side: str) -> str:
    sentencepiece = codes.startswith(SENTENCEPIECE_START)
    name = "sentencepiece.bpe.model" if sentencepiece else "bpecodes"
    return f"{name}.{side}" if side else name


def _same_codes(kept: Mapping[str, bytes]) -> bool:
    pairs = [("source.codes", "target.codes"), ("source.model", "target.model")]
    return all(kept.get(one) == kept.get(other) for one, other in pairs)


def _renamed(key: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """One array of any age under its name, or names, of now."""
    place, _, last = key.rpartition(".")
    if last in ("in_proj_weight", "in_proj_bias"):
        kind = last.removeprefix("in_proj_")
        for name, part in zip("qkv", np.split(array, 3), strict=True):
            yield f"{place}.{name}_proj.{kind}", part
    elif ".layer_norms." in key:
        layer, _, number = place.rpartition(".layer_norms.")
        name = NORMS[key.split(".")[0]][int(number)]
        yield f"{layer}.{name}.{last}", array
    elif key == "decoder.embed_out":
        yield OUTPUT, array
    else:
        yield key, array


def _dictionaries(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path | None]:
    for side in ("source", "target"):
        language = settings.get(f"{side}_lang")
        yield _first(folder, [f"dict.{language}.txt"] if language else [])


def _first(folder: Path, names: tuple[str, ...] | list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _side(symbols: tuple[str, ...], codes: Path | None) -> Side:
    if codes is None:
        return Side(symbols)
    check_file(codes)
    content = codes.read_bytes()
    if content.startswith(SENTENCEPIECE_START):
        return Side(symbols, "sentencepiece", content)
    return Side(symbols, "bpe", _subword_nmt_codes(content))


def _subword_nmt_codes(codes: bytes) -> bytes:
    """fastBPE's codes, which count each merge, without the counts.

    >>> _subword_nmt_codes(b"e n</w> 12\\n")
    b'#version: 0.2\\ne n</w>\\n'
    """
    lines = codes.splitlines()
    if not lines or len(lines[0].split(b" ")) != 3:
        return codes
    pairs = [b" ".join(line.split(b" ")[:2]) for line in lines]
    return b"\n".join([b"#version: 0.2", *pairs, b""])


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
