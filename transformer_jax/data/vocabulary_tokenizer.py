"""Tokenizers of other libraries: numbered symbols, and a way to split text into them.

fairseq, OpenNMT-py, Joey NMT and Sockeye keep a list of symbols beside BPE codes or a
SentencePiece model; Marian numbers the pieces of two SentencePiece models in one list.
"""

import functools
import importlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from transformer_jax.data.tokenizer import DESCRIPTION, sentencepiece_processor

Splitter = Literal["words", "bpe", "sentencepiece"]
CONTINUED = "@@"
"""Ends a piece that is not the last of its word (subword-nmt)."""
_LANGUAGE = re.compile(r"(>>.*?<<)")


class Side(NamedTuple):
    """The symbols of one language, and how its text becomes symbols."""

    symbols: tuple[str, ...]
    """In the order of their ids."""
    splitter: Splitter = "words"
    """words: at white space. bpe: also by subword-nmt's codes. sentencepiece: by a
    model, after a symbol like >>fra<< if the text begins with one (Marian)."""
    codes: bytes = b""
    """The codes or the model; for words nothing."""


class VocabularyTokenizer:
    """Looks pieces up in a list; those that are not there are unknown.

    >>> side = Side(("<pad>", "<s>", "</s>", "<unk>", "ein", "Bier"))
    >>> words = VocabularyTokenizer(side, side, pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    >>> words.encode_source("ein Bier bitte")
    [4, 5, 3]
    """

    def __init__(
        self,
        source: Side,
        target: Side,
        *,
        pad_id: int,
        bos_id: int,
        eos_id: int,
        unk_id: int,
    ) -> None:
        self.source, self.target = source, target
        self.pad_id, self.bos_id = pad_id, bos_id
        self.eos_id, self.unk_id = eos_id, unk_id
        self.source_vocab_size = len(source.symbols)
        self.target_vocab_size = len(target.symbols)
        for name, side in (("source", source), ("target", target)):
            last = max(self._special())
            if last >= len(side.symbols):
                raise ValueError(
                    f"The {name} vocabulary has {len(side.symbols)} symbols, but a "
                    f"special one has number {last}: the two do not belong together."
                )

    def encode_source(self, text: str, *, seed: int | None = None) -> list[int]:
        """Ids of a source text, without special ones; nothing is sampled."""
        return self._encode(text, self._split_source, self._source_ids)

    def encode_target(self, text: str, *, seed: int | None = None) -> list[int]:
        """Ids of a target text, without special ones; nothing is sampled."""
        return self._encode(text, self._split_target, self._target_ids)

    def decode_target(self, ids: Sequence[int]) -> str:
        """The text of target ids; pad, bos and eos are dropped."""
        dropped = (self.pad_id, self.bos_id, self.eos_id)
        pieces = self.target_pieces([i for i in ids if i not in dropped])
        if self.target.splitter == "sentencepiece":
            return self._target_model.decode_pieces(pieces)
        text = " ".join(pieces)
        if self.target.splitter == "bpe":
            text = f"{text} ".replace(f"{CONTINUED} ", "").rstrip(" ")
        return text

    def source_pieces(self, ids: Sequence[int]) -> list[str]:
        """The symbol of each source id, special ones included."""
        return self._pieces(self.source, ids)

    def target_pieces(self, ids: Sequence[int]) -> list[str]:
        """The symbol of each target id, special ones included."""
        return self._pieces(self.target, ids)

    def files(self) -> dict[str, bytes]:
        """tokenizer.json, and the symbols and codes of each side."""
        names = ("pad_id", "bos_id", "eos_id", "unk_id")
        about: dict[str, Any] = {name: getattr(self, name) for name in names}
        about |= {"kind": "vocabulary", "splitters": {}}
        files: dict[str, bytes] = {}
        for name, side in (("source", self.source), ("target", self.target)):
            about["splitters"][name] = side.splitter
            symbols = json.dumps(side.symbols, ensure_ascii=False, indent=0)
            files[f"{name}.symbols.json"] = symbols.encode()
            if side.codes:
                files[f"{name}.codes"] = side.codes
        return {DESCRIPTION: json.dumps(about, indent=2).encode() + b"\n", **files}

    def _special(self) -> tuple[int, int, int, int]:
        return self.pad_id, self.bos_id, self.eos_id, self.unk_id

    def _encode(
        self,
        text: str,
        split: Callable[[str], list[str]],
        numbers: Mapping[str, int],
    ) -> list[int]:
        return [numbers.get(piece, self.unk_id) for piece in split(text)]

    def _pieces(self, side: Side, ids: Sequence[int]) -> list[str]:
        size = len(side.symbols)
        return [side.symbols[i if 0 <= i < size else self.unk_id] for i in ids]

    @functools.cached_property
    def _source_ids(self) -> dict[str, int]:
        return _numbered(self.source)

    @functools.cached_property
    def _target_ids(self) -> dict[str, int]:
        return _numbered(self.target)

    @functools.cached_property
    def _target_model(self) -> Any:
        return sentencepiece_processor(self.target.codes)

    @functools.cached_property
    def _split_source(self) -> Callable[[str], list[str]]:
        return _splitter(self.source)

    @functools.cached_property
    def _split_target(self) -> Callable[[str], list[str]]:
        return _splitter(self.target)

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.files(),)


def load(files: Mapping[str, bytes]) -> VocabularyTokenizer:
    """The tokenizer whose `files()` these are."""
    about = json.loads(files[DESCRIPTION])
    sides = [
        Side(
            symbols=tuple(json.loads(files[f"{name}.symbols.json"])),
            splitter=about["splitters"][name],
            codes=files.get(f"{name}.codes", b""),
        )
        for name in ("source", "target")
    ]
    ids = {name: about[name] for name in ("pad_id", "bos_id", "eos_id", "unk_id")}
    return VocabularyTokenizer(*sides, **ids)


def numbers_tokenizer(
    source_size: int, target_size: int, **special_ids: int
) -> VocabularyTokenizer:
    """For a model whose vocabulary is not known: text is token ids, with spaces.

    >>> ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    >>> numbers_tokenizer(9, 9, **ids).encode_source("7 8 5")
    [7, 8, 5]
    """
    sides = (Side(tuple(map(str, range(size)))) for size in (source_size, target_size))
    return VocabularyTokenizer(*sides, **special_ids)


def _numbered(side: Side) -> dict[str, int]:
    # Of a symbol that is there twice, the first number counts.
    pairs = reversed(list(enumerate(side.symbols)))
    return {symbol: number for number, symbol in pairs}


def _splitter(side: Side) -> Callable[[str], list[str]]:
    if side.splitter == "words":
        return str.split
    if side.splitter == "bpe":
        return _bpe_splitter(side.codes)
    model = sentencepiece_processor(side.codes)

    def split(text: str) -> list[str]:
        language = _LANGUAGE.match(text)
        if language is None:
            return model.encode(text, out_type=str)
        rest = model.encode(text[language.end() :], out_type=str)
        return [language[1], *rest]

    return split


def _bpe_splitter(codes: bytes) -> Callable[[str], list[str]]:
    try:
        apply_bpe = importlib.import_module("subword_nmt.apply_bpe")
    except ImportError:
        raise ValueError(
            "This model splits words by BPE codes, for which subword-nmt is needed: "
            "pip install 'transformer_jax[bpe]'."
        ) from None
    bpe = apply_bpe.BPE(io.StringIO(codes.decode("utf-8")))
    return lambda text: bpe.segment_tokens(text.split())
