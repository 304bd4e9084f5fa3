"""Text ↔ token ids, and what a run keeps of it: a set of named files."""

import functools
import io
import itertools
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece

from transformer_jax.config import TokenizerConfig
from transformer_jax.data.subword_sampling import SubwordSampler

DESCRIPTION = "tokenizer.json"
"""The file that names the kind of a saved tokenizer."""


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer."""

    pad_id: int
    """Id in the empty places of a batch."""
    bos_id: int
    """Id that begins a sentence."""
    eos_id: int
    """Id that ends a sentence."""
    unk_id: int
    """Id of everything that has none of its own."""
    source_vocab_size: int
    """Ids of the source side, special ones included."""
    target_vocab_size: int
    """Ids of the target side, special ones included."""

    def encode_source(self, text: str, *, seed: int | None = None) -> list[int]:
        """Ids of a source text, without special ones; `seed` samples its pieces."""
        ...

    def encode_target(self, text: str, *, seed: int | None = None) -> list[int]:
        """Ids of a target text, without special ones; `seed` samples its pieces."""
        ...

    def decode_target(self, ids: Sequence[int]) -> str:
        """The text of target ids, whatever they are; special ids are dropped."""
        ...

    def source_pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each source id, special ones included."""
        ...

    def target_pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each target id, special ones included."""
        ...

    def files(self) -> dict[str, bytes]:
        """Everything `load_tokenizer` needs: names and contents."""
        ...


class SentencePieceTokenizer:
    """One SentencePiece model for both sides, or one for each.

    `sampling` is the share of BPE merges dropped (Provilkov et al., 2020), or the
    smoothing of unigram sampling (Kudo, 2018), wherever a seed is given.
    """

    def __init__(
        self, source_model: bytes, target_model: bytes, *, sampling: float = 0.0
    ) -> None:
        self._source_model, self._target_model = source_model, target_model
        self._source = sentencepiece_processor(source_model)
        self._target = (
            self._source if self.joint else sentencepiece_processor(target_model)
        )
        self._sampling = sampling
        if _special_ids(self._source) != _special_ids(self._target):
            raise ValueError(
                "The source and target models number their special tokens (pad, bos, "
                f"eos, unk) as {_special_ids(self._source)} and "
                f"{_special_ids(self._target)}: they must agree."
            )
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = _special_ids(self._source)
        self.source_vocab_size: int = self._source.get_piece_size()
        self.target_vocab_size: int = self._target.get_piece_size()

    @property
    def joint(self) -> bool:
        """Whether both sides share one vocabulary."""
        return self._source_model == self._target_model

    @property
    def models(self) -> tuple[bytes, bytes]:
        """The SentencePiece models of source and target."""
        return self._source_model, self._target_model

    def encode_source(self, text: str, *, seed: int | None = None) -> list[int]:
        """Ids of a source text, without special ones; `seed` samples its pieces."""
        if seed is None or not self._sampling:
            return self._source.encode(text)
        return self._source_sampler.sample(text, seed)

    def encode_target(self, text: str, *, seed: int | None = None) -> list[int]:
        """Ids of a target text, without special ones; `seed` samples its pieces."""
        if seed is None or not self._sampling:
            return self._target.encode(text)
        return self._target_sampler.sample(text, seed)

    def decode_target(self, ids: Sequence[int]) -> str:
        """The text of target ids; pad, bos and eos are dropped, unknown ids are ⁇."""
        dropped = (self.pad_id, self.bos_id, self.eos_id)
        size = self.target_vocab_size
        known = (int(i) if 0 <= i < size else self.unk_id for i in ids)
        return self._target.decode([i for i in known if i not in dropped])

    def source_pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each source id, special ones included."""
        return self._pieces(self._source, ids)

    def target_pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each target id, special ones included."""
        return self._pieces(self._target, ids)

    def files(self) -> dict[str, bytes]:
        """tokenizer.json, and one model or two."""
        about = {
            "kind": "sentencepiece",
            "joint": self.joint,
            "sampling": self._sampling,
        }
        source_name, target_name = _model_names(joint=self.joint)
        return {
            DESCRIPTION: json.dumps(about, indent=2).encode() + b"\n",
            source_name: self._source_model,
            target_name: self._target_model,
        }

    @functools.cached_property
    def _source_sampler(self) -> SubwordSampler:
        return SubwordSampler(
            self._source_model,
            normalize=self._source.normalize,
            strength=self._sampling,
        )

    @functools.cached_property
    def _target_sampler(self) -> SubwordSampler:
        if self.joint:
            return self._source_sampler
        return SubwordSampler(
            self._target_model,
            normalize=self._target.normalize,
            strength=self._sampling,
        )

    def _pieces(self, model: Any, ids: Sequence[int]) -> list[str]:
        size = model.get_piece_size()
        return [
            model.id_to_piece(int(i) if 0 <= i < size else self.unk_id) for i in ids
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return load_tokenizer, (self.files(),)


def load_tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer whose `files()` these are."""
    try:
        about = json.loads(files[DESCRIPTION])
        kind = about["kind"]
        if kind == "vocabulary":
            from transformer_jax.data import vocabulary_tokenizer

            return vocabulary_tokenizer.load(files)
        if kind != "sentencepiece":
            raise ValueError(
                f"{DESCRIPTION} names a tokenizer of kind {kind!r}; this version knows "
                "sentencepiece and vocabulary."
            )
        source_name, target_name = _model_names(joint=about["joint"])
        source, target = files[source_name], files[target_name]
        sampling = float(about["sampling"])
    except KeyError as error:
        raise ValueError(
            f"The tokenizer's files lack {error}; there are {sorted(files)}. Restore "
            "them from the run that made them."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(
            f"{DESCRIPTION} is damaged ({error}). Restore it from the run that made it."
        ) from None
    return SentencePieceTokenizer(source, target, sampling=sampling)


def train_sentencepiece(
    config: TokenizerConfig,
    sources: Iterable[str],
    targets: Iterable[str],
    *,
    seed: int,
) -> SentencePieceTokenizer:
    """A tokenizer trained on text; the same text and seed give the same model.

    >>> text = ["ein Bier", "ein Wein", "zwei Bier"]
    >>> config = TokenizerConfig(vocab_size=20)
    >>> tokenizer = train_sentencepiece(config, text, ["a beer"], seed=0)
    >>> tokenizer.decode_target(tokenizer.encode_source("zwei Wein"))
    'zwei Wein'
    """
    if config.joint:
        model = _train(config, itertools.chain(sources, targets), seed, side="joint")
        return SentencePieceTokenizer(model, model, sampling=config.sampling)
    return SentencePieceTokenizer(
        _train(config, sources, seed, side="source"),
        _train(config, targets, seed, side="target"),
        sampling=config.sampling,
    )


def _train(
    config: TokenizerConfig, lines: Iterable[str], seed: int, *, side: str
) -> bytes:
    written = io.BytesIO()
    identity = config.normalization == "identity"
    text = draw_sentences(lines, config.max_training_sentences, seed)
    if not any(text):
        raise ValueError(
            f"There is no text to train the {side} vocabulary on: the training split "
            "has no sentences, or only empty ones."
        )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=written,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            normalization_rule_name=config.normalization,
            # Untouched text keeps its double spaces too, and so round-trips.
            remove_extra_whitespaces=not identity,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            unk_surface="⁇",
            max_sentence_length=2**16,
            # Partial sums are added thread by thread: a fixed number, so that every
            # machine finds the same pieces.
            num_threads=8,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), config, side)) from None
    return written.getvalue()


def draw_sentences(lines: Iterable[str], count: int, seed: int) -> list[str]:
    """At most `count` of the lines, each equally likely, holding no more than that.

    >>> draw_sentences("abc", 5, seed=0), len(draw_sentences("abcdefg", 5, seed=0))
    (['a', 'b', 'c'], 5)
    """
    draw = random.Random(seed)
    kept: list[str] = []
    for number, line in enumerate(lines):
        if number < count:
            kept.append(line)
        elif (place := draw.randrange(number + 1)) < count:
            kept[place] = line
    return kept


def _explain(message: str, config: TokenizerConfig, side: str) -> str:
    """SentencePiece's complaint about a vocabulary in this project's words."""
    asked = f"tokenizer.vocab_size is {config.vocab_size}, but the {side} training text"
    if found := re.search(r"too high.*<= (\d+)", message):
        return (
            f"{asked} supports at most {found[1]} pieces. Set tokenizer.vocab_size to "
            f"{found[1]} or less, or train on more text."
        )
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            f"{asked} has so many different characters that it needs at least "
            f"{found[1]}. Raise tokenizer.vocab_size, or lower "
            "tokenizer.character_coverage."
        )
    return f"SentencePiece cannot train the {side} vocabulary: {message}"


def _model_names(*, joint: bool) -> tuple[str, str]:
    if joint:
        return "joint.model", "joint.model"
    return "source.model", "target.model"


def sentencepiece_processor(model: bytes) -> Any:
    """A SentencePiece model (Any: the stubs leave most of its methods out)."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore
    except RuntimeError:
        raise ValueError(
            f"A SentencePiece model of {len(model)} bytes cannot be read: it is "
            "damaged, or no such model. Restore it from the run that made it."
        ) from None


def _special_ids(model: Any) -> tuple[int, int, int, int]:
    return model.pad_id(), model.bos_id(), model.eos_id(), model.unk_id()
