"""Multi30k as tight length buckets and as packed rows."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer_jax.config import Config, DataConfig, TokenizerConfig
from transformer_jax.data.batching import Batch, Packer, Placed, lengths, stack_rows
from transformer_jax.data.examples import Example, fits, make_example
from transformer_jax.data.sources import open_split
from transformer_jax.trainer.preparation import new_tokenizer


class Text(NamedTuple):
    """Training sentences as ids."""

    examples: list[Example]
    vocab_size: int
    pad_id: int


class Batches(NamedTuple):
    """Samples of one text in two forms, with about as many real target tokens each."""

    bucketed: list[Batch]
    """One pair a row, padded to the longest of the batch on each side."""
    packed: list[Batch]
    """Several pairs a row, one shape: as training does by default."""


def read_text(folder: Path, max_length: int = 64) -> Text:
    """Multi30k en-de, tokenised, with the recipe's joint BPE of 10 000."""
    data = DataConfig(
        name="multi30k",
        source_language="en",
        target_language="de",
        tokenized=True,
        dir=folder,
        pack_length=max_length,
        max_length=max_length,
    )
    tokens = TokenizerConfig(vocab_size=10_000, normalization="identity")
    config = Config(tokenizer=tokens, data=data)
    with tempfile.TemporaryDirectory() as workdir:
        pairs = open_split(data, "train", workdir=Path(workdir))
        tokenizer = new_tokenizer(config, pairs, print)
        examples = [
            make_example(pairs[i], tokenizer, config.model) for i in range(len(pairs))
        ]
    kept = [example for example in examples if fits(example, data)]
    return Text(kept, tokenizer.target_vocab_size, tokenizer.pad_id)


def make_batches(text: Text, count: int, positions: int, row_length: int) -> Batches:
    """`count` batches in each form: packed rows of `positions` places in all, and
    buckets with as many real target tokens as there are in these."""
    packed = packed_batches(text, count, (positions // row_length, row_length))
    tokens = sum(map(real_tokens, packed)) / count
    return Batches(tight_batches(text, count, tokens), packed)


def tight_batches(text: Text, count: int, tokens: float) -> list[Batch]:
    """All sentences, sorted by their lengths and cut into batches of so many target
    tokens, so that hardly a place is padding: every n-th of these batches."""
    order = sorted(text.examples, key=lambda each: lengths(each)[::-1])
    sizes = np.cumsum([len(each["targets"]) for each in order])
    cut = np.searchsorted(sizes, np.arange(0, sizes[-1], tokens))
    groups = [order[a:b] for a, b in itertools.pairwise(cut)]
    places = ((np.arange(count) + 0.5) / count * len(groups)).astype(int)
    return [tight_batch(groups[place], text.pad_id) for place in places]


def tight_batch(group: Sequence[Example], pad_id: int) -> Batch:
    """One pair a row, padded to the longest on each side."""
    longest = np.max([lengths(each) for each in group], axis=0)
    S, T = (int(each) for each in longest)
    return stack_rows([[each] for each in group], (len(group), S, T), pad_id)


def packed_batches(text: Text, count: int, shape: tuple[int, int]) -> list[Batch]:
    """The first batches of the shuffled text, as training packs them."""
    B, length = shape
    packer, found = Packer((B, length, length)), []
    order = np.random.default_rng(0).permutation(len(text.examples))
    for position, place in enumerate(order.tolist()):
        packer.add(Placed(position, text.examples[place]))
        if ready := packer.pop(position):
            rows = [[placed.example for placed in row] for row in ready.rows]
            found.append(stack_rows(rows, (B, length, length), text.pad_id))
        if len(found) == count:
            return found
    raise ValueError(
        f"{len(text.examples)} sentence pairs make {len(found)} packed batches, and "
        f"{count} are asked for: give more text."
    )


def real_tokens(batch: Batch) -> int:
    """Target tokens that are not padding."""
    return int(np.count_nonzero(batch.target_segment_ids))


def filled(batches: Sequence[Batch]) -> float:
    """Share of the target places that hold a token."""
    places = sum(batch.targets.size for batch in batches)
    return sum(map(real_tokens, batches)) / places
