"""Which target pieces a source piece may become, learnt from parallel text.

IBM model 1 (Brown et al., 1993, section 4.1): every target piece comes from one source
piece, or from none. p(target | source) is learnt by expectation maximisation.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.data.tokenizer import Tokenizer

FORMAT = 1
"""Of the files; another is not read."""
SMALLEST = 1024
"""Tokens that a step gives logits of, at least; twice as many when they do not fit."""
NONE = -1
"""Ends a list of candidates."""


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """The target tokens that sentences may use."""

    candidates: np.ndarray
    """[V, best] int32: of each source token, the likeliest first; `NONE` behind."""
    frequent: np.ndarray
    """[F] int32: what every sentence may use."""
    target_vocab_size: int

    def of_sentence(self, inputs: np.ndarray, *more: int) -> np.ndarray:
        """What a sentence of these source ids may use, and `more`: sorted ids."""
        found = self.candidates[inputs].ravel()
        return np.union1d(found[found != NONE], [*self.frequent, *more]).astype(int)

    def without(self, banned: Sequence[int]) -> "Shortlist":
        """The same, and none of these tokens."""
        candidates = np.where(np.isin(self.candidates, banned), NONE, self.candidates)
        frequent = self.frequent[~np.isin(self.frequent, banned)]
        return dataclasses.replace(self, candidates=candidates, frequent=frequent)

    def check_fits(self, tokenizer: Tokenizer) -> None:
        """Raises if it was made for other vocabularies."""
        ours = len(self.candidates), self.target_vocab_size
        theirs = tokenizer.source_vocab_size, tokenizer.target_vocab_size
        if ours != theirs:
            raise ValueError(
                f"The shortlist is for {ours[0]} source and {ours[1]} target pieces, "
                f"but the run has {theirs[0]} and {theirs[1]}: make one from this run "
                "with `transformer-jax shortlist`."
            )

    def save(self, path: Path) -> None:
        """Writes one file, which appears when it is whole."""
        unfinished = path.with_name(f".{path.name}.unfinished")
        with unfinished.open("wb") as file:
            np.savez_compressed(
                file,
                format=FORMAT,
                candidates=self.candidates,
                frequent=self.frequent,
                target_vocab_size=self.target_vocab_size,
            )
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Shortlist":
        """Reads what `save` wrote."""
        if not path.is_file():
            raise ValueError(f"There is no shortlist {path}: make one, or check it.")
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                version = int(file["format"])
                fields: Any = {
                    "candidates": file["candidates"],
                    "frequent": file["frequent"],
                    "target_vocab_size": int(file["target_vocab_size"]),
                }
        except Exception as error:  # numpy raises many kinds for a damaged file
            raise ValueError(
                f"{path} cannot be read as a shortlist ({error}): it is damaged, or no "
                "such file. Make it anew with `transformer-jax shortlist`."
            ) from None
        if version != FORMAT:
            raise ValueError(
                f"{path} is a shortlist of format {version}; this version reads "
                f"{FORMAT}. Make it anew with `transformer-jax shortlist`."
            )
        return cls(**fields)


class Texts(NamedTuple):
    """Parallel sentences as ids, one behind the other."""

    source: np.ndarray
    target: np.ndarray
    source_lengths: np.ndarray
    target_lengths: np.ndarray

    @classmethod
    def of(cls, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> "Texts":
        """From pairs of ids."""
        sources, targets = [], []
        for source, target in pairs:
            sources.append(np.array(source, np.int32))
            targets.append(np.array(target, np.int32))
        empty = np.zeros(0, np.int32)
        return cls(
            np.concatenate([empty, *sources]),
            np.concatenate([empty, *targets]),
            np.array([len(each) for each in sources], np.int64),
            np.array([len(each) for each in targets], np.int64),
        )


class Lexicon(NamedTuple):
    """p(target | source) of all pairs that share a sentence."""

    keys: np.ndarray
    """[n] int64, growing: source id · V + target id; the empty word comes last."""
    probabilities: np.ndarray
    """[n]"""


def build_shortlist(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    best: int = 50,
    frequent: int = 100,
    passes: int = 5,
) -> Shortlist:
    """For each source piece the `best` target pieces by IBM model 1, and the target
    piece of the same spelling, so that names can be copied; for every sentence the most
    `frequent` target pieces."""
    sizes = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    lexicon = learn_lexicon(texts, *sizes, passes=passes)
    candidates = np.full((sizes[0], best + 1), NONE, np.int32)
    candidates[:, 1:] = likeliest(lexicon, *sizes, best=best)
    special = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id)
    pieces = tokenizer.target_pieces(range(sizes[1]))
    same = {piece: i for i, piece in enumerate(pieces) if i not in special}
    for i, piece in enumerate(tokenizer.source_pieces(range(sizes[0]))):
        candidates[i, 0] = same.get(piece, NONE) if i not in special else NONE
    counts = np.bincount(texts.target, minlength=sizes[1])
    order = np.argsort(-counts, kind="stable")[:frequent]
    return Shortlist(candidates, order[counts[order] > 0].astype(np.int32), sizes[1])


def learn_lexicon(
    texts: Texts,
    source_size: int,
    target_size: int,
    *,
    passes: int,
) -> Lexicon:
    """p(t | s) by `passes` of expectation maximisation, from equal probabilities.

    A target piece at a place comes from source piece s with p(t | s) / Σ p(t | s'), s'
    over the sentence's pieces and the empty word. The expected counts of a pass,
    divided by their sum over t, are the probabilities of the next.
    """
    keys = np.zeros(0, np.int64)
    for pairs, _ in _cooccurrences(texts, source_size, target_size):
        keys = np.union1d(keys, pairs)
    sources = keys // target_size
    probabilities = np.full(len(keys), 1.0 / target_size)
    for _ in range(passes):
        counts = np.zeros(len(keys))
        for pairs, begins in _cooccurrences(texts, source_size, target_size):
            index = np.searchsorted(keys, pairs)
            share = probabilities[index]
            total = np.add.reduceat(share, begins)
            share /= np.repeat(total, np.diff([*begins, len(pairs)]))
            counts += np.bincount(index, weights=share, minlength=len(keys))
        sums = np.bincount(sources, weights=counts, minlength=source_size + 1)
        probabilities = counts / sums[sources]
    return Lexicon(keys, probabilities)


def likeliest(
    lexicon: Lexicon, source_size: int, target_size: int, *, best: int
) -> np.ndarray:
    """[V, best]: the targets of each source by falling probability, `NONE` behind; the
    smaller id first among equals."""
    sources, targets = np.divmod(lexicon.keys, target_size)
    order = np.lexsort((targets, -lexicon.probabilities, sources))
    sources, targets = sources[order], targets[order]
    rank = np.arange(len(sources)) - np.searchsorted(sources, sources)
    kept = (rank < best) & (sources < source_size)
    found = np.full((source_size, best), NONE, np.int32)
    found[sources[kept], rank[kept]] = targets[kept]
    return found


def _cooccurrences(
    texts: Texts, source_size: int, target_size: int, *, at_once: int = 1 << 22
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys of (source, target) for each target place and each source piece of its
    sentence, the empty word last; and where each target place begins. About `at_once`
    keys at a time."""
    source_ends = np.cumsum(texts.source_lengths)
    target_ends = np.cumsum(texts.target_lengths)
    sizes = (texts.source_lengths + 1) * texts.target_lengths
    groups = np.cumsum(sizes) // at_once
    for group in np.unique(groups):
        first, last = np.searchsorted(groups, [group, group + 1])
        lengths = texts.source_lengths[first:last] + 1
        times = texts.target_lengths[first:last]
        if not times.sum():
            continue
        ends = source_ends[first:last]
        begin = target_ends[first] - texts.target_lengths[first]
        targets = texts.target[begin : target_ends[last - 1]].astype(np.int64)
        widths = np.repeat(lengths, times)  # of each target place
        begins = np.cumsum(widths) - widths
        inside = np.arange(widths.sum()) - np.repeat(begins, widths)
        starts = np.repeat(ends - lengths + 1, times)
        place = np.repeat(starts, widths) + inside
        empty = inside == np.repeat(widths - 1, widths)
        words = np.append(texts.source, 0)[np.where(empty, 0, place)]
        words = np.where(empty, source_size, words).astype(np.int64)
        yield words * target_size + np.repeat(targets, widths), begins


def joint_choice(
    lists: Sequence[np.ndarray | None], vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [U] that any of the B sorted lists holds, and who may use which [B, U].

    U is one of a few sizes, at most V; behind the last id comes V. None, for a slot
    without a sentence, may use everything.
    """
    used = np.zeros(vocab_size, bool)
    for each in lists:
        if each is not None:
            used[each] = True
    union = np.flatnonzero(used)
    size = SMALLEST
    while size < len(union):
        size *= 2
    if size >= vocab_size:
        union, size = np.arange(vocab_size), vocab_size
    ids = np.full(size, vocab_size, np.int32)
    ids[: len(union)] = union
    where = np.zeros(vocab_size, np.int64)
    where[union] = np.arange(len(union))
    allowed = np.zeros((len(lists), size), bool)
    for row, each in enumerate(lists):
        if each is None:
            allowed[row] = True
        else:
            allowed[row, where[each]] = True
    return ids, allowed
