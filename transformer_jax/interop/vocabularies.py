"""Symbols and codes that other libraries keep beside the weights, read and written.

OpenNMT-py, Sockeye and JoeyNMT each number their special symbols in their own way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transformer_jax.data.tokenizer import SentencePieceTokenizer, Tokenizer
from transformer_jax.data.vocabulary_tokenizer import Side, Splitter
from transformer_jax.interop.files import FileError, check_file
from transformer_jax.interop.library import Options
from transformer_jax.interop.rules import StateDict

SENTENCEPIECE_START = b"\n"
"""First byte of a SentencePiece model (a protobuf field); codes are lines of text."""
CODES = ("source.codes", "target.codes")
"""BPE codes or SentencePiece models as we put them beside exported weights."""
Specials = Mapping[str, str]
"""The special symbols of a library by our names of their ids, in its order."""


def read_symbols(path: Path, *, counted: bool = True) -> list[str]:
    """One symbol a line; what follows a tab may be a count."""
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text: {error}.") from None
    lines = [line.rstrip("\r") for line in lines]
    return [line.partition("\t")[0] for line in lines] if counted else lines


def splitting_side(symbols: Sequence[str], codes: Path | None) -> Side:
    """Symbols, with the SentencePiece model or the BPE codes that split text."""
    if codes is None:
        return Side(tuple(symbols))
    check_file(codes)
    content = codes.read_bytes()
    sentencepiece = content.startswith(SENTENCEPIECE_START)
    return Side(tuple(symbols), "sentencepiece" if sentencepiece else "bpe", content)


def given_codes(
    options: Options, beside: Sequence[Path | None]
) -> tuple[Path | None, Path | None]:
    """Files with codes: the options' (the target's are by default the source's), or
    those of `beside` that are there."""
    if options.source_codes or options.target_codes:
        return options.source_codes, options.target_codes or options.source_codes
    source, target = (
        path if path is not None and path.is_file() else None for path in beside
    )
    return source, target


def check_sizes(
    sides: tuple[Side, Side], source_vocab_size: int, target_vocab_size: int
) -> None:
    """Raises unless each side has a symbol for every row of its table."""
    for name, side, rows in (
        ("source", sides[0], source_vocab_size),
        ("target", sides[1], target_vocab_size),
    ):
        if len(side.symbols) != rows:
            raise ValueError(
                f"The {name} vocabulary has {len(side.symbols)} symbols, but the model "
                f"{rows} {name} embeddings: the two do not belong together."
            )


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


def sides_of(tokenizer: Tokenizer, specials: Specials) -> tuple[Side, Side]:
    """Both sides of any tokenizer, its special symbols spelled as a library does.

    Libraries look symbols up by name, so no name may be there twice.
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
        for name, symbol in specials.items():
            symbols[getattr(tokenizer, name)] = symbol
        _check_symbols(symbols)
        sides.append(Side(tuple(symbols), splitter, content))
    return sides[0], sides[1]


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
