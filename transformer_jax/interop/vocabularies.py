"""Symbols and codes that other libraries keep beside the weights, read and written.

OpenNMT-py, Sockeye and JoeyNMT each number their special symbols in their own way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.data.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    sentencepiece_processor,
)
from transformer_jax.data.vocabulary_tokenizer import Side, Splitter
from transformer_jax.interop.files import FileError, check_file
from transformer_jax.interop.library import Options
from transformer_jax.interop.rules import StateDict

SENTENCEPIECE_START = b"\n"
"""First byte of a SentencePiece model (a protobuf field); codes are lines of text."""
SPLITTERS: Mapping[Splitter, str] = {
    "words": "words between white space",
    "bpe": "BPE codes",
    "sentencepiece": "SentencePiece",
}
CODES = ("source.codes", "target.codes")
"""BPE codes or SentencePiece models as we put them beside exported weights."""
Specials = Mapping[str, str]
"""The special symbols of a library by our names of their ids, in its order."""


Paths = tuple[Path | None, Path | None]
"""A file of the source and one of the target."""


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, however they end."""
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text: {error}.") from None
    return [line.rstrip("\r") for line in lines]


def read_symbols(path: Path) -> list[str]:
    """One symbol a line; what follows a tab may be a count."""
    return [line.partition("\t")[0] for line in read_lines(path)]


def splitting_side(symbols: Sequence[str], codes: Path | None) -> Side:
    """Symbols, with the SentencePiece model or the BPE codes that split text."""
    if codes is None:
        return Side(tuple(symbols))
    check_file(codes)
    content = codes.read_bytes()
    if not content.startswith(SENTENCEPIECE_START):
        return Side(tuple(symbols), "bpe", _subword_nmt_codes(codes))
    try:
        sentencepiece_processor(content)
    except ValueError:
        raise FileError(
            f"{codes} is no SentencePiece model, or a damaged one: copy or download it "
            "again."
        ) from None
    return Side(tuple(symbols), "sentencepiece", content)


def given_codes(options: Options, beside: Sequence[Path | None]) -> Paths:
    """Files with codes: the options' (the target's are by default the source's), or
    those of `beside` that are there."""
    return _given(options.source_codes, options.target_codes, beside)


def given_vocabs(options: Options, beside: Sequence[Path | None]) -> Paths:
    """Files with symbols, chosen as those with codes are."""
    return _given(options.source_vocab, options.target_vocab, beside)


def check_sizes(
    sides: tuple[Side, Side],
    source_vocab_size: int,
    target_vocab_size: int,
    *,
    spare_rows: bool = False,
) -> None:
    """Raises unless each side has a symbol for every row of its table.

    With `spare_rows` the table may have more of them, but never less.
    """
    for name, side, rows in (
        ("source", sides[0], source_vocab_size),
        ("target", sides[1], target_vocab_size),
    ):
        symbols = len(side.symbols)
        if symbols > rows or (symbols < rows and not spare_rows):
            raise ValueError(
                f"The {name} vocabulary has {symbols} symbols, but the model {rows} "
                f"{name} embeddings: the two do not belong together."
            )


def first_ids(specials: Specials) -> dict[str, int]:
    """Special ids of a library that numbers its special symbols before all others.

    >>> first_ids({"unk_id": "<unk>", "pad_id": "<blank>"})
    {'unk_id': 0, 'pad_id': 1}
    """
    return {name: number for number, name in enumerate(specials)}


def special_ids(symbols: Sequence[str], specials: Specials) -> dict[str, int]:
    """The numbers of the special symbols, looked up by name.

    >>> special_ids(["<blank>", "<unk>"], {"unk_id": "<unk>", "pad_id": "<blank>"})
    {'unk_id': 1, 'pad_id': 0}
    """
    missing = [symbol for symbol in specials.values() if symbol not in symbols]
    if missing:
        raise ValueError(
            f"The vocabulary lacks {', '.join(missing)}, which the library needs."
        )
    return {name: symbols.index(symbol) for name, symbol in specials.items()}


def sides_of(
    tokenizer: Tokenizer, specials: Specials | None = None
) -> tuple[Side, Side]:
    """Both sides of any tokenizer.

    With `specials`, its special symbols are spelled as a library does; such libraries
    look symbols up by name, so no name may be there twice.
    """
    codes: list[tuple[Splitter, bytes]]
    if isinstance(tokenizer, SentencePieceTokenizer):
        codes = [("sentencepiece", model) for model in tokenizer.models]
    else:
        own = [getattr(tokenizer, name, None) for name in ("source", "target")]
        codes = [
            (side.splitter, side.codes) if isinstance(side, Side) else ("words", b"")
            for side in own
        ]
    sizes = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    pieces = (tokenizer.source_pieces, tokenizer.target_pieces)
    sides = []
    for size, names, (splitter, content) in zip(sizes, pieces, codes, strict=True):
        symbols = list(names(range(size)))
        if specials:
            for name, symbol in specials.items():
                symbols[getattr(tokenizer, name)] = symbol
            _check_symbols(symbols)
        sides.append(Side(tuple(symbols), splitter, content))
    return sides[0], sides[1]


def sides_for(
    tokenizer: Tokenizer, specials: Specials, config: ModelConfig
) -> tuple[Side, Side]:
    """The same, for a model with a row for each symbol."""
    sides = sides_of(tokenizer, specials)
    check_sizes(sides, config.source_vocab_size, config.target_vocab_size)
    return sides


def specials_first(
    tokenizer: Tokenizer, specials: Specials, sides: tuple[Side, Side]
) -> tuple[list[int], list[int]]:
    """Our ids in the order of a library whose special ones have the first numbers."""
    first = [getattr(tokenizer, name) for name in specials]
    orders = [
        first + [i for i in range(len(side.symbols)) if i not in first]
        for side in sides
    ]
    return orders[0], orders[1]


def reordered(
    state: StateDict, order: Sequence[int], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The same state, with the rows of these arrays in another order."""
    rows = np.asarray(order)
    return {
        name: array[rows] if name in names else array for name, array in state.items()
    }


def write_codes(folder: Path, sides: tuple[Side, Side]) -> None:
    """What splits text into symbols, under the names of `CODES`."""
    for name, side in zip(CODES, sides, strict=True):
        if side.codes:
            (folder / name).write_bytes(side.codes)


def described(tokenizer: Tokenizer) -> str:
    """In a few words, how text becomes symbols and how many there are.

    >>> from transformer_jax.data.vocabulary_tokenizer import VocabularyTokenizer
    >>> words = Side(("<unk>", "<pad>", "<s>", "</s>", "Bier"))
    >>> ids = first_ids(dict.fromkeys(("unk_id", "pad_id", "bos_id", "eos_id"), ""))
    >>> described(VocabularyTokenizer(words, words, **ids))
    'words between white space, 5 symbols, shared'
    """
    sides = sides_of(tokenizer)
    if all(side.symbols == _numbers(len(side.symbols)) for side in sides):
        return (
            "none, so that text is token ids with spaces between; with --source-vocab "
            "it is symbols"
        )
    source, target = (f"{SPLITTERS[s.splitter]}, {len(s.symbols):,}" for s in sides)
    nouns = ["pieces" if s.splitter == "sentencepiece" else "symbols" for s in sides]
    if sides[0] == sides[1]:
        return f"{source} {nouns[0]}, shared"
    return f"source: {source} {nouns[0]}; target: {target} {nouns[1]}"


def _numbers(size: int) -> tuple[str, ...]:
    """The symbols where text is token ids."""
    return tuple(map(str, range(size)))


def _given(
    source: Path | None, target: Path | None, beside: Sequence[Path | None]
) -> Paths:
    there = [path if path and path.is_file() else None for path in beside]
    return source or there[0], target or source or there[1]


def _subword_nmt_codes(path: Path) -> bytes:
    """The codes of subword-nmt, or of fastBPE without its count of each merge."""
    merges = [line.rstrip(" ").split(" ") for line in read_lines(path)]
    header = merges.pop(0) if merges[0][0] == "#version:" else []
    counted = not header and len(merges[0]) == 3
    for number, merge in enumerate(merges, start=1 + bool(header)):
        if len(merge) != 2 + counted:
            raise FileError(
                f"{path}, line {number} is {' '.join(merge)[:60]!r}, but two symbols "
                "to merge are expected: is it a file of BPE codes?"
            )
    return path.read_bytes() if not counted else _without_counts(merges)


def _without_counts(merges: Sequence[Sequence[str]]) -> bytes:
    lines = ["#version: 0.2", *(" ".join(merge[:2]) for merge in merges), ""]
    return "\n".join(lines).encode()


def _check_symbols(symbols: Sequence[str]) -> None:
    seen: set[str] = set()
    for symbol in symbols:
        if symbol in seen:
            raise ValueError(
                f"The symbol {symbol!r} is twice in the vocabulary, which this library "
                "cannot tell apart: it cannot be exported."
            )
        if not symbol or symbol != symbol.strip() or "\n" in symbol:
            raise ValueError(
                f"The symbol {symbol!r} is empty or has white space at its ends, which "
                "this library's vocabularies cannot hold: it cannot be exported."
            )
        seen.add(symbol)
