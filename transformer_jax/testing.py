"""Toy configurations, models, batches and tokenizers, for our tests and for yours."""

import functools
import itertools
import random
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)
from transformer_jax.data.batching import Batch, Batcher, Placed
from transformer_jax.data.examples import Example
from transformer_jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from transformer_jax.models import Transformer
from transformer_jax.models.functions import init_params
from transformer_jax.types import Params

TINY_VOCAB_SIZE = 24

SENTENCES = (
    ("ein Mann liest ein Buch", "a man reads a book"),
    ("eine Frau liest eine Zeitung", "a woman reads a newspaper"),
    ("der Mann trinkt ein Bier", "the man drinks a beer"),
    ("die Frau trinkt einen Kaffee", "the woman drinks a coffee"),
    ("das Kind spielt im Garten", "the child plays in the garden"),
    ("die Kinder spielen im Park", "the children play in the park"),
    ("der Hund schläft unter dem Tisch", "the dog sleeps under the table"),
    ("zwei Hunde laufen über die Straße", "two dogs run across the street"),
)
"""German and English, eight small pairs."""


def tiny_model_config(**overrides: Any) -> ModelConfig:
    """Two layers on each side, 16 wide, two heads, no dropout."""
    settings: dict[str, Any] = {
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "d_model": 16,
        "d_ff": 32,
        "num_heads": 2,
        "dropout": 0.0,
        "source_vocab_size": TINY_VOCAB_SIZE,
        "target_vocab_size": TINY_VOCAB_SIZE,
    }
    return ModelConfig(**{**settings, **overrides})


def tiny_config(**overrides: Any) -> Config:
    """A whole run in small; `overrides` replace its parts (`model=…`, `train=…`)."""
    parts: dict[str, Any] = {
        "model": tiny_model_config(source_vocab_size=0, target_vocab_size=0),
        "tokenizer": TokenizerConfig(vocab_size=100),
        "data": DataConfig(
            batch_tokens=256, pack_length=32, max_length=32, bucket_lengths=(8, 16, 32)
        ),
        "train": TrainConfig(
            steps=4, checkpoint_every=2, evaluate_every=4, log_every=1, curves=False
        ),
    }
    return Config(**{**parts, **overrides})


def tiny_model(seed: int = 0, **overrides: Any) -> tuple[Transformer, Params]:
    """A toy model with random numbers everywhere, biases and norms included.

    `overrides` are fields of `ModelConfig`. Only shapes are traced and the numbers are
    numpy's, so that nothing is compiled.
    """
    model = Transformer(tiny_model_config(**overrides))
    draw = np.random.default_rng(seed)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        spread = 0.25 if name in ("kernel", "embedding") else 0.1
        values = spread * draw.normal(size=leaf.shape) + (name == "scale")
        return jnp.asarray(values, leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(fill, _shapes(model.config))


@functools.cache
def _shapes(config: ModelConfig) -> Any:
    """Of the parameters; each kind of model is traced once."""
    init = functools.partial(init_params, Transformer(config))
    return jax.eval_shape(init, jax.random.key(0))


def tiny_batch(
    seed: int = 0,
    *,
    source_lengths: tuple[int, ...] = (5, 3, 4),
    target_lengths: tuple[int, ...] = (4, 6, 2),
    source_width: int = 6,
    target_width: int = 7,
    vocab_size: int = TINY_VOCAB_SIZE,
) -> Batch:
    """Random sentences of the given lengths, one a row, padded to the given widths."""
    draw = np.random.default_rng(seed)
    rows = len(source_lengths)
    inputs = draw.integers(4, vocab_size, (rows, source_width))
    targets = draw.integers(4, vocab_size, (rows, target_width))
    input_segments = _segments(source_lengths, source_width)
    target_segments = _segments(target_lengths, target_width)
    start = np.ones((rows, 1), np.int64)
    shifted = np.concatenate([start, targets[:, :-1]], axis=1)
    parts = {
        "inputs": inputs * input_segments,
        "input_segment_ids": input_segments,
        "input_positions": np.arange(source_width) * input_segments,
        "decoder_inputs": shifted * target_segments,
        "targets": targets * target_segments,
        "target_segment_ids": target_segments,
        "target_positions": np.arange(target_width) * target_segments,
    }
    return Batch(**{name: part.astype(np.int32) for name, part in parts.items()})


class NumberTokenizer:
    """Ids written out: "7 8" ↔ [7, 8]. Unlike pieces, text and ids are one to one.

    A seed cuts some words in two: 8 may become [4, 8].
    """

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3
    source_vocab_size = target_vocab_size = TINY_VOCAB_SIZE

    def encode_source(self, text: str, *, seed: int | None = None) -> list[int]:
        """The numbers in a text."""
        ids = [int(word) for word in text.split()]
        if seed is None:
            return ids
        draw = random.Random(seed)
        pieces = ([i] if draw.random() < 0.7 else [4, i] for i in ids)
        return list(itertools.chain.from_iterable(pieces))

    def decode_target(self, ids: Sequence[int]) -> str:
        """The numbers as text, without the end token."""
        return " ".join(str(i) for i in ids if i != self.eos_id)

    def target_pieces(self, ids: Sequence[int]) -> list[str]:
        """Each number as text."""
        return [str(i) for i in ids]

    def files(self) -> dict[str, bytes]:
        """There is nothing to keep."""
        return {}

    encode_target, source_pieces = encode_source, target_pieces


def tiny_tokenizer(**overrides: Any) -> SentencePieceTokenizer:
    """SentencePiece on `SENTENCES`; `overrides` are fields of `TokenizerConfig`."""
    config = TokenizerConfig(**{"vocab_size": 100, **overrides})
    sources, targets = zip(*SENTENCES, strict=True)
    return train_sentencepiece(config, sources, targets, seed=0)


def log_normal_lengths(
    num_pairs: int, mean: float, spread: float, *, longest: int = 128, seed: int = 0
) -> np.ndarray:
    """Source and target lengths [2, pairs] of a corpus that does not exist.

    The logarithm of a source length is normal with this mean and spread; that of target
    over source is, with 0.02 and 0.15. Longer pairs are left out. (2.65, 0.3) is much
    like Multi30k with 15 pieces a sentence; (3.18, 0.6) is like news, with 29.
    """
    draw = np.random.default_rng(seed)
    source = mean + spread * draw.normal(size=num_pairs)
    target = source + 0.02 + 0.15 * draw.normal(size=num_pairs)
    sides = np.exp(np.stack([source, target])).round().astype(int).clip(1)
    return sides[:, sides.max(axis=0) <= longest]


def real_share(batcher: Batcher, lengths: np.ndarray) -> tuple[float, float]:
    """Of the source and the target places in the batches that pairs of these lengths
    [2, pairs] form, the share that holds tokens."""
    real, places = np.zeros(2), 0
    for position, (S, T) in enumerate(lengths.T):
        ids = np.zeros(T, np.int32)
        example = Example(inputs=np.zeros(S, np.int32), decoder_inputs=ids, targets=ids)
        batcher.add(Placed(position, example))
        while ready := batcher.pop(position):
            for placed in itertools.chain.from_iterable(ready.rows):
                parts = placed.example["inputs"], placed.example["targets"]
                real += [len(part) for part in parts]
            places += ready.num_rows * ready.length
    source, target = (float(side) / places for side in real)
    return source, target


def _segments(lengths: tuple[int, ...], width: int) -> np.ndarray:
    return (np.arange(width)[None, :] < np.array(lengths)[:, None]).astype(np.int64)
