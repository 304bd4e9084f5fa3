"""The folder of a Hugging Face Marian model, and its vocabulary.

config.json, generation_config.json        settings of the model and of `generate`
model.safetensors or pytorch_model.bin     weights
vocab.json                                 the number of each symbol
target_vocab.json                          the same of the target, if it is another one
source.spm, target.spm                     SentencePiece models
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.data.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    sentencepiece_processor,
)
from transformer_jax.data.vocabulary_tokenizer import Side, VocabularyTokenizer
from transformer_jax.interop.files import (
    FileError,
    check_file,
    find_file,
    read_json,
    write_tensors,
)
from transformer_jax.interop.folder import read_state
from transformer_jax.interop.library import Foreign
from transformer_jax.interop.marian_settings import (
    generation_of,
    search_of,
    special_ids,
    with_defaults,
    with_generation,
)
from transformer_jax.interop.rules import StateDict

UNK, EOS, PAD, BOS = "<unk>", "</s>", "<pad>", "<s>"
"""As MarianTokenizer spells them; it knows no symbol for the beginning."""
UNUSED = "<unused_{}>"
"""Symbol of a row of the embedding tables that the vocabulary does not name."""
BIAS = "final_logits_bias"
SOURCE_TABLES = ("model.shared.weight", "model.encoder.embed_tokens.weight")
TARGET_TABLES = (
    "model.shared.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)


def read_folder(path: Path) -> Foreign:
    """A folder as `save_pretrained` writes it."""
    settings = _read_object(find_file(path, ["config.json"]))
    file = path / "generation_config.json"
    generation = _read_object(file) if file.is_file() else {}
    settings = with_generation(settings, generation)
    there = with_defaults(settings)
    search = search_of({**settings, **there}, generation)
    weights = find_file(path, ["model.safetensors", "pytorch_model.bin"])
    state = read_state(weights)
    tokenizer = read_tokenizer(path, there)
    if BIAS not in state:  # zeros, which HF need not write
        state[BIAS] = np.zeros((1, tokenizer.target_vocab_size), np.float32)
    return Foreign(settings, state, tokenizer, search)


def read_tokenizer(path: Path, settings: Mapping[str, Any]) -> VocabularyTokenizer:
    """vocab.json numbers the pieces of source.spm and target.spm.

    `settings` are whole, and so is the tokenizer: rows without a symbol get one.
    """
    vocab, target_vocab = find_file(path, ["vocab.json"]), path / "target_vocab.json"
    size = settings["vocab_size"]
    files = {
        "source": (vocab, size),
        "target": (
            target_vocab if target_vocab.is_file() else vocab,
            (settings["decoder_vocab_size"] or size),
        ),
    }
    sides = []
    for name, (file, rows) in files.items():
        symbols = _numbered(file, rows, settings)
        codes = find_file(path, [f"{name}.spm"])
        check_file(codes)
        content = codes.read_bytes()
        try:
            sentencepiece_processor(content)
        except ValueError:
            raise FileError(
                f"{codes} is no SentencePiece model, or a damaged one: copy or "
                "download it again."
            ) from None
        sides.append(Side(symbols, "sentencepiece", content))
    pad, bos = settings["pad_token_id"], settings["bos_token_id"]
    return VocabularyTokenizer(
        *sides,
        pad_id=pad,
        bos_id=pad if bos is None else bos,
        eos_id=settings["eos_token_id"],
        unk_id=sides[1].symbols.index(UNK),
    )


def _read_object(file: Path) -> dict[str, Any]:
    found = read_json(file)
    if not isinstance(found, dict):
        raise FileError(
            f"{file} holds a JSON {type(found).__name__}, but must hold an object "
            "({...}): copy or download it again."
        )
    return found


def _numbered(file: Path, rows: int, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The symbols of a vocabulary in the order of their numbers."""
    numbers = _read_object(file)
    symbols: list[str | None] = [None] * rows
    for symbol, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise FileError(
                f"{file} numbers {symbol!r} as {number!r}, which is no whole number: "
                "copy or download it again."
            )
        if not 0 <= number < rows:
            raise FileError(
                f"{file} numbers {symbol!r} as {number}, but config.json says that "
                f"there are {rows} symbols: the two do not belong together."
            )
        if symbols[number] is not None:
            raise FileError(
                f"{file} gives the number {number} to both {symbols[number]!r} and "
                f"{symbol!r}: each symbol must have one of its own."
            )
        symbols[number] = symbol
    for symbol, wanted in (
        (UNK, None),
        (EOS, settings["eos_token_id"]),
        (PAD, settings["pad_token_id"]),
    ):
        number = numbers.get(symbol)
        if number is None or wanted not in (None, number):
            expected = "" if wanted is None else f", and config.json says {wanted}"
            raise FileError(
                f"{file} gives {symbol} the number {json.dumps(number)}{expected}: a "
                "Marian model needs that symbol, with the same number in both."
            )
    return tuple(
        UNUSED.format(number) if symbol is None else symbol
        for number, symbol in enumerate(symbols)
    )


def write_folder(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """What `MarianMTModel.from_pretrained` and `MarianTokenizer` read."""
    source, target, ids = _vocabularies(foreign.tokenizer, config)
    separate = source.symbols != target.symbols
    texts: dict[str, Any] = {
        "config.json": {**foreign.settings, **ids},
        "generation_config.json": generation_of(config, foreign.search, ids),
        "tokenizer_config.json": {
            "separate_vocabs": separate,
            "tokenizer_class": "MarianTokenizer",
        },
        "vocab.json": {symbol: i for i, symbol in enumerate(source.symbols)},
    }
    if separate:
        texts["target_vocab.json"] = {s: i for i, s in enumerate(target.symbols)}
    for name, value in texts.items():
        text = json.dumps(value, ensure_ascii=False, indent=2)
        (path / name).write_text(text + "\n", encoding="utf-8")
    (path / "source.spm").write_bytes(source.codes)
    (path / "target.spm").write_bytes(target.codes)
    write_tensors(path / "model.safetensors", foreign.state)


def numbered_as_marian(foreign: Foreign, config: ModelConfig) -> Foreign:
    """The same model with a symbol for each row, special ones spelled as Marian's, and
    padding last, where CTranslate2's converter takes it for granted.

    Two vocabularies keep their numbers: padding has one for both, and they may end at
    different ones.
    """
    source, target, ids = _vocabularies(foreign.tokenizer, config)
    state, numbers = foreign.state, list(range(len(source.symbols)))
    if source.symbols == target.symbols:
        pad = ids["pad_token_id"]
        order = [i for i in numbers if i != pad] + [pad]
        numbers = np.argsort(order).tolist()
        state = with_rows(state, order)
        source, target = (
            side._replace(symbols=tuple(side.symbols[i] for i in order))
            for side in (source, target)
        )
    special = ("pad_id", "bos_id", "eos_id", "unk_id")
    ours = {name: numbers[getattr(foreign.tokenizer, name)] for name in special}
    return foreign._replace(
        state=state, tokenizer=VocabularyTokenizer(source, target, **ours)
    )


def with_rows(state: StateDict, order: Sequence[int]) -> dict[str, np.ndarray]:
    """The same arrays, their rows of symbols in another order."""
    rows, tables = np.asarray(order), {*SOURCE_TABLES, *TARGET_TABLES}
    if np.array_equal(rows, np.arange(len(rows))):
        return dict(state)
    return {
        name: array[rows]
        if name in tables
        else np.ascontiguousarray(array[:, rows])
        if name == BIAS
        else array
        for name, array in state.items()
    }


def decoder_table(state: StateDict) -> str:
    """The name of the embeddings that the decoder reads."""
    return next(name for name in TARGET_TABLES if name in state)


def start_embedding(foreign: Foreign, config: ModelConfig) -> np.ndarray:
    """What the decoder is fed first, before it is scaled: [D]."""
    start = getattr(foreign.tokenizer, f"{config.decoder_start}_id")
    return foreign.state[decoder_table(foreign.state)][start]


def unlike_ctranslate2(foreign: Foreign, config: ModelConfig) -> str:
    """Why CTranslate2 would translate otherwise with such a folder, if it would."""
    if two_vocabularies(foreign.tokenizer):
        return (
            "CTranslate2's converter takes the source vocabulary of a Marian model for "
            "the target's too, but this one has two: do not convert it."
        )
    if np.any(start_embedding(foreign, config)):
        return (
            "CTranslate2's converter lets a Marian decoder start from zeros, but this "
            f"one starts from the embedding of {config.decoder_start}: converted, it "
            "would translate otherwise, and nothing would say so. For CTranslate2 "
            "export --to ctranslate2."
        )
    return ""


def two_vocabularies(tokenizer: Tokenizer) -> bool:
    """Whether source and target number their symbols differently."""
    sides = spm_sides(tokenizer)
    return sides[0].symbols != sides[1].symbols


def _vocabularies(
    tokenizer: Tokenizer, config: ModelConfig
) -> tuple[Side, Side, dict[str, Any]]:
    """Both sides with a symbol for each row, and the special ids of config.json."""
    special = {"pad": tokenizer.pad_id, "eos": tokenizer.eos_id}
    special["unk"] = tokenizer.unk_id
    if len(set(special.values())) < len(special):
        raise ValueError(
            "Marian needs three numbers for padding, end and unknown symbols, and this "
            f"run's tokenizer has {special}: it cannot be exported as a Marian model."
        )
    spelled = {special["pad"]: PAD, special["eos"]: EOS, special["unk"]: UNK}
    bos = tokenizer.bos_id if tokenizer.bos_id != special["pad"] else None
    spelled = {**({} if bos is None else {bos: BOS}), **spelled}
    sizes = config.source_vocab_size, config.target_vocab_size
    sides = []
    for name, side, rows in zip(
        ("source", "target"), spm_sides(tokenizer), sizes, strict=True
    ):
        if len(side.symbols) > rows:
            raise ValueError(
                f"The {name} vocabulary has {len(side.symbols)} symbols, but the model "
                f"{rows} {name} embeddings: the two do not belong together."
            )
        symbols = list(side.symbols)
        symbols += map(UNUSED.format, range(len(symbols), rows))
        for number, symbol in spelled.items():
            symbols[number] = symbol
        if twice := [symbol for symbol, n in Counter(symbols).items() if n > 1]:
            raise ValueError(
                f"The {name} vocabulary has {', '.join(twice[:8])} twice, which "
                "vocab.json cannot hold: this run cannot be exported as a Marian model."
            )
        sides.append(side._replace(symbols=tuple(symbols)))
    numbers = special_ids(config, pad=special["pad"], bos=bos, eos=special["eos"])
    return sides[0], sides[1], numbers


def spm_sides(tokenizer: Tokenizer) -> tuple[Side, Side]:
    """Symbols and SentencePiece models of both languages."""
    if isinstance(tokenizer, VocabularyTokenizer):
        sides = (tokenizer.source, tokenizer.target)
        if all(side.splitter == "sentencepiece" for side in sides):
            return sides
    if isinstance(tokenizer, SentencePieceTokenizer):
        source = tokenizer.source_pieces(range(tokenizer.source_vocab_size))
        target = tokenizer.target_pieces(range(tokenizer.target_vocab_size))
        models = tokenizer.models
        return (
            Side(tuple(source), "sentencepiece", models[0]),
            Side(tuple(target), "sentencepiece", models[1]),
        )
    raise ValueError(
        "Marian splits text with SentencePiece, and this run's tokenizer does not: it "
        "cannot be exported as a Marian model."
    )
