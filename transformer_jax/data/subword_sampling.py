"""Subword regularisation that is a function of the text and a seed alone.

SentencePiece samples too, but from generators that differ from process to process
whatever their seed: a training could not be resumed exactly, and two hosts would form
different batches. Here the pieces of a SentencePiece model are combined by our own
code, and every random number is a hash of what it is for.
"""

import functools
import hashlib
import heapq
import itertools
import math
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

SPACE = "▁"
"""How SentencePiece writes a space; a word begins with it."""

MAX_REMEMBERED = 2**17
"""Samples of words that are kept, about 40 MB."""
MAX_LENGTH = 24
"""Characters of the longest word of which samples are kept."""

_UNIT = 2**32
"""Random numbers are integers below this."""

_UNKNOWN_PENALTY = 10.0
"""How far SentencePiece's unigram score of an unknown character is below the worst."""

# Numbers in sentencepiece_model.proto.
_MODEL_PIECES, _MODEL_TRAINER, _TRAINER_ALGORITHM = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_ALGORITHMS = {1: "unigram", 2: "bpe"}
_NORMAL, _UNKNOWN, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 4, 5, 6


class Pieces(NamedTuple):
    """What a SentencePiece model says of its pieces."""

    algorithm: str
    ids: Mapping[str, int]
    """Of every piece that text can contain."""
    scores: Mapping[str, float]
    """Of the pieces that are found by merging (bpe) or by their probability."""
    user_defined: frozenset[str]
    """Pieces that are cut out of the text before anything else."""
    unused: frozenset[str]
    """Pieces that others are merged from, and that may not be the outcome."""
    longest: int
    """Characters of the longest piece."""
    unknown_score: float
    """Of a character without a piece of its own (unigram)."""
    byte_ids: tuple[int, ...]
    """Ids of the 256 bytes that spell unknown characters, or none."""
    unk_id: int


class SubwordSampler:
    """Samples the pieces of a text.

    bpe: each possible merge is dropped with probability `strength`, anew after each
    merge (Provilkov et al., 2020, algorithm 1; SentencePiece drops for good, which
    splits more). A merge comes back more often in a longer word: where sentences are
    written without spaces, take a larger `strength`. unigram: a segmentation is drawn
    with a probability proportional to P(pieces)^`strength` (Kudo, 2018, with l = ∞).

    For speed a word has 256 samples, each drawn when first needed; which of them stands
    at a place in a text follows from the text, the place and the seed. Longer words,
    such as sentences in a script without spaces, are drawn anew each time.
    """

    def __init__(
        self, model: bytes, *, normalize: Callable[[str], str], strength: float
    ) -> None:
        self._normalize = normalize
        self._pieces = read_pieces(model)
        self._strength = strength
        self._words = _word_pattern(self._pieces.scores, self._pieces.user_defined)
        self._lattice = functools.lru_cache(MAX_REMEMBERED // 32)(self._make_lattice)
        self._variant = functools.lru_cache(MAX_REMEMBERED)(
            lambda word, choice: tuple(self._draw(f"{choice}\n{word}", word))
        )

    def sample(self, text: str, seed: int) -> list[int]:
        """Ids of one segmentation of the text; any integer is a seed."""
        words = self._words(self._normalize(text))
        name = f"{seed}\n{text}".encode(errors="surrogatepass")
        choices = hashlib.shake_128(name).digest(len(words))
        ids: list[int] = []
        for place, (word, choice) in enumerate(zip(words, choices, strict=True)):
            if len(word) <= MAX_LENGTH:
                ids.extend(self._variant(word, choice))
            else:
                ids.extend(self._draw(f"{seed}\n{place}\n{text}", word))
        unknown = self._pieces.unk_id
        if unknown not in ids:
            return ids
        # Like SentencePiece, one id for all unknown characters in a row.
        before = [-1, *ids[:-1]]
        return [
            id_
            for id_, last in zip(ids, before, strict=True)
            if not id_ == last == unknown
        ]

    def _draw(self, name: str, word: str) -> list[int]:
        """Ids of the sample of a word that follows from a name."""
        pieces = self._pieces
        if word in pieces.user_defined:
            return [pieces.ids[word]]
        ids: list[int] = []
        for piece in self._cut(word, name):
            if piece in pieces.ids:
                ids.append(pieces.ids[piece])
            elif pieces.byte_ids:
                ids.extend(pieces.byte_ids[byte] for byte in piece.encode())
            else:
                ids.append(pieces.unk_id)
        return ids

    def _cut(self, word: str, name: str) -> list[str]:
        draws = _random_numbers(name)
        if self._pieces.algorithm == "bpe":
            return merge(self._pieces, word, draws, dropout=self._strength)
        if len(word) <= MAX_LENGTH:
            return self._lattice(word).draw(draws)
        return self._make_lattice(word).draw(draws)

    def _make_lattice(self, word: str) -> "Lattice":
        return Lattice(self._pieces, word, smoothing=self._strength)


def merge(
    pieces: Pieces, word: str, draws: Iterator[int], *, dropout: float
) -> list[str]:
    """BPE: the best pair of neighbours becomes one piece, until none can.

    Before each merge every possible one is dropped with probability `dropout`; with 0
    this is SentencePiece's own encoding. The best is that of the highest score, then
    the leftmost.
    """
    scores, threshold = pieces.scores, round(dropout * _UNIT)
    symbols = list(word)  # what was merged into its left neighbour is ""
    following, preceding = list(range(1, len(word) + 1)), list(range(-1, len(word)))
    waiting: list[tuple[float, int, int, str]] = []
    halves: dict[str, tuple[str, str]] = {}

    def consider(left: int, right: int) -> None:
        if left < 0 or right == len(symbols):
            return
        merged = symbols[left] + symbols[right]
        if (score := scores.get(merged)) is not None:
            heapq.heappush(waiting, (-score, left, right, merged))
            if merged in pieces.unused:
                halves[merged] = symbols[left], symbols[right]

    for left in range(len(word) - 1):
        consider(left, left + 1)
    dropped = []
    while waiting:
        candidate = _, left, right, merged = heapq.heappop(waiting)
        parts = symbols[left], symbols[right]
        if not all(parts) or len(parts[0]) + len(parts[1]) != len(merged):
            continue  # one of the two has been merged with another neighbour
        if threshold and next(draws) < threshold:
            dropped.append(candidate)
            continue
        symbols[left], symbols[right] = merged, ""
        following[left] = following[right]
        preceding[following[right]] = left
        consider(preceding[left], left)
        consider(left, following[left])
        for candidate in dropped:
            heapq.heappush(waiting, candidate)
        dropped.clear()
    found = [symbol for symbol in symbols if symbol]
    return _split_unused(found, halves) if halves else found


def _split_unused(found: list[str], halves: Mapping[str, tuple[str, str]]) -> list[str]:
    parts: list[str] = []
    for piece in found:
        if piece in halves:
            parts.extend(_split_unused(list(halves[piece]), halves))
        else:
            parts.append(piece)
    return parts


class Lattice:
    """Every way to cut a word into unigram pieces, with its probability.

    `forward[j]` is the log of Σ P(pieces)^smoothing over the ways to cut the first j
    characters. Pieces are drawn from the back, each in proportion to
    exp(forward[its beginning]) · P(it)^smoothing.
    """

    def __init__(self, pieces: Pieces, word: str, *, smoothing: float) -> None:
        scores, forward = pieces.scores, [0.0]
        self._word = word
        self._arcs: list[tuple[list[int], list[float]]] = [([], [])]
        for end in range(1, len(word) + 1):
            begins, logs = [], []
            for begin in range(max(0, end - pieces.longest), end):
                score = scores.get(word[begin:end])
                if score is None and begin == end - 1:
                    score = pieces.unknown_score
                if score is not None:
                    begins.append(begin)
                    logs.append(forward[begin] + smoothing * score)
            highest = max(logs)
            cumulative = list(itertools.accumulate(math.exp(x - highest) for x in logs))
            forward.append(highest + math.log(cumulative[-1]))
            self._arcs.append((begins, cumulative))

    def draw(self, draws: Iterator[int]) -> list[str]:
        """One of the ways, drawn by its probability."""
        found, end = [], len(self._word)
        while end:
            begins, cumulative = self._arcs[end]
            place = (next(draws) + 0.5) / _UNIT * cumulative[-1]
            begin = begins[min(bisect_right(cumulative, place), len(begins) - 1)]
            found.append(self._word[begin:end])
            end = begin
        return found[::-1]


def _random_numbers(name: str) -> Iterator[int]:
    """Endless integers below 2^32 that follow from a name alone."""
    name_hash = hashlib.shake_128(name.encode(errors="surrogatepass"))
    known, size = 0, 128
    while True:
        # A longer digest begins with the shorter one.
        digest = name_hash.digest(size)
        for (number,) in struct.iter_unpack("<I", digest[known:]):
            yield number
        known, size = size, 4 * size


def _word_pattern(
    scores: Mapping[str, float], user_defined: frozenset[str]
) -> Callable[[str], list[Any]]:
    """Cuts normalised text where no piece can reach across.

    >>> find = _word_pattern(scores={"▁a": -1.0}, user_defined=frozenset({"<b>"}))
    >>> find("▁a▁▁ab<b>a")
    ['▁a', '▁', '▁ab', '<b>', 'a']
    """
    within_words = all(SPACE not in piece[1:] for piece in scores)
    letter = f"[^{SPACE}]" if within_words else "."
    word = f"{SPACE}?{letter}+|{SPACE}"
    if user_defined:
        by_length = sorted(user_defined, key=lambda piece: (-len(piece), piece))
        symbol = "|".join(map(re.escape, by_length))
        word = f"{symbol}|{SPACE}?(?:(?!{symbol}){letter})+|{SPACE}"
    return re.compile(word, re.DOTALL).findall


def read_pieces(model: bytes) -> Pieces:
    """The pieces of a SentencePiece model file (a protocol buffer)."""
    algorithm, unk_id, number = 1, 0, 0
    ids: dict[str, int] = {}
    scores: dict[str, float] = {}
    byte_ids: list[int] = []
    special: dict[int, set[str]] = {_USER_DEFINED: set(), _UNUSED: set()}
    for field, content in _fields(model):
        if field == _MODEL_TRAINER:
            algorithm = dict(_fields(content)).get(_TRAINER_ALGORITHM, 1)
        if field != _MODEL_PIECES:
            continue
        piece = dict(_fields(content))
        text, kind = piece[_PIECE_TEXT].decode(), piece.get(_PIECE_KIND, _NORMAL)
        if kind == _UNKNOWN:
            unk_id = number
        elif kind == _BYTE:
            byte_ids.append(number)
        elif kind in (_NORMAL, _USER_DEFINED, _UNUSED):
            ids[text] = number
            special.get(kind, set()).add(text)
            if kind != _USER_DEFINED:
                (scores[text],) = struct.unpack("<f", piece.get(_PIECE_SCORE, bytes(4)))
        number += 1
    if algorithm not in _ALGORITHMS:
        raise ValueError(
            "Subword sampling needs a SentencePiece model of type unigram or bpe, and "
            f"this one is of type number {algorithm}. Set tokenizer.sampling to 0."
        )
    unused = frozenset(special[_UNUSED])
    if _ALGORITHMS[algorithm] == "unigram":
        for piece in unused:
            del ids[piece], scores[piece]
    return Pieces(
        algorithm=_ALGORITHMS[algorithm],
        ids=ids,
        scores=scores,
        user_defined=frozenset(special[_USER_DEFINED]),
        unused=unused,
        longest=max(map(len, scores), default=1),
        unknown_score=min(scores.values(), default=0.0) - _UNKNOWN_PENALTY,
        byte_ids=tuple(byte_ids),
        unk_id=unk_id,
    )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and content of each field: an integer where it is one, or else bytes."""
    place = 0

    def integer() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = integer()
        if key & 7 == 0:
            yield key >> 3, integer()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or integer()
        yield key >> 3, message[place : place + size]
        place += size
