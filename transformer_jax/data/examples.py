"""One pair of sentences as what the model reads and what it must predict.

Teacher forcing is made here, before any batching: `decoder_inputs` is `targets` moved
one place to the right behind the start token. The tutorials' enc_input, dec_input and
dec_output are `inputs`, `decoder_inputs` and `targets`.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import numpy as np

from transformer_jax.config import DataConfig, ModelConfig

if TYPE_CHECKING:
    from transformer_jax.data.tokenizer import Tokenizer

Verdict = Literal["kept", "too_long", "too_uneven", "empty"]


class Example(TypedDict):
    """A pair as ids: three one-dimensional int32 arrays."""

    inputs: np.ndarray
    """[S] start (if `source_bos`), source ids, end (if `source_eos`)."""
    decoder_inputs: np.ndarray
    """[T] start, then target ids."""
    targets: np.ndarray
    """[T] target ids, then end."""


class FilterCounts(NamedTuple):
    """What the training filter did with the pairs it has read, each counted once."""

    kept: int = 0
    too_long: int = 0
    too_uneven: int = 0
    empty: int = 0

    def add(self, verdict: Verdict) -> "FilterCounts":
        """With one more pair of that verdict.

        >>> FilterCounts(kept=3).add("empty")
        FilterCounts(kept=3, too_long=0, too_uneven=0, empty=1)
        """
        return self._replace(**{verdict: getattr(self, verdict) + 1})


def make_example(
    pair: tuple[str, str],
    tokenizer: "Tokenizer",
    model: ModelConfig,
    *,
    seed: int | None = None,
) -> Example:
    """Pair of texts → ids; with a seed, one sampled segmentation into pieces."""
    source, target = pair
    inputs = list(tokenizer.encode_source(source, seed=seed))
    if model.source_bos:
        inputs.insert(0, tokenizer.bos_id)
    if model.source_eos:
        inputs.append(tokenizer.eos_id)
    ids = list(tokenizer.encode_target(target, seed=seed))
    start = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "pad": tokenizer.pad_id,
    }[model.decoder_start]
    return Example(
        inputs=np.array(inputs, np.int32),
        decoder_inputs=np.array([start, *ids], np.int32),
        targets=np.array([*ids, tokenizer.eos_id], np.int32),
    )


def check_positions(example: Example, model: ModelConfig, *, name: str) -> None:
    """A learned position table must hold a pair that may not be left out."""
    longest = max(len(example["inputs"]), len(example["targets"]))
    if longest > model.num_positions:
        raise ValueError(
            f"{name} has {longest} pieces on a side, but the learned position table "
            f"has {model.num_positions}: shorten the pair or leave it out, or train "
            "with a larger model.max_positions."
        )


def judge(example: Example, data: DataConfig) -> Verdict:
    """What the training filter says of a pair; lengths count the end tokens."""
    inputs, targets = example["inputs"], example["targets"]
    S, T = len(inputs), len(targets)
    if T == 1 or (S <= 2 and {*inputs} <= {example["decoder_inputs"][0], targets[-1]}):
        return "empty"  # nothing but start and end tokens on a side
    if max(S, T) > data.max_length:
        return "too_long"
    if max(S, T) > data.max_length_ratio * min(S, T):
        return "too_uneven"
    return "kept"


def fits(example: Example, data: DataConfig) -> bool:
    """Whether training uses the pair. Evaluation never asks."""
    return judge(example, data) == "kept"
