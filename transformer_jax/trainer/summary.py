"""What a run is about to do, in a few lines."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from transformer_jax.checkpoint import count_params
from transformer_jax.config import Config, DataConfig
from transformer_jax.data.examples import fits, make_example
from transformer_jax.data.sources import PairSource
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.trainer.engine import Engine, Shape
from transformer_jax.trainer.preparation import Prepared

SAMPLE = 1000


class Estimate(NamedTuple):
    """What a sample of the training pairs tells about all of them."""

    kept: float
    """Share of pairs that pass the length filter."""
    source_length: float
    """Mean pieces of the pairs that are kept."""
    target_length: float
    steps_per_epoch: float


def estimate(
    pairs: PairSource, tokenizer: Tokenizer, config: Config
) -> Estimate | None:
    """Tokenises up to 1000 evenly spaced pairs; None when none of them is kept."""
    count = min(len(pairs), SAMPLE)
    places = [i * len(pairs) // count for i in range(count)]
    examples = [make_example(pairs[i], tokenizer, config.model) for i in places]
    lengths = [
        (len(example["inputs"]), len(example["targets"]))
        for example in examples
        if fits(example, config.data)
    ]
    if not lengths:
        return None
    kept = len(lengths) / count
    rows = kept * len(pairs)
    source, target = (sum(side) / len(lengths) for side in zip(*lengths, strict=True))
    per_pair = positions_per_pair(lengths, config.data)
    steps = rows * per_pair / config.data.batch_tokens
    return Estimate(kept, source, target, steps)


def positions_per_pair(lengths: Sequence[tuple[int, int]], data: DataConfig) -> float:
    """Positions of a batch's budget that one pair takes up, on average.

    A packed row is full when either side is; a bucketed pair takes its bucket.

    >>> buckets = DataConfig(batching="bucket", bucket_lengths=(8, 16, 128))
    >>> positions_per_pair([(3, 5), (3, 9)], buckets)
    12.0
    >>> positions_per_pair([(3, 5), (6, 2)], DataConfig(batching="pack"))
    4.5
    """
    if data.batching == "pack":
        return max(sum(side) / len(lengths) for side in zip(*lengths, strict=True))
    places = [
        min(size for size in data.bucket_lengths if size >= max(pair))
        for pair in lengths
    ]
    return sum(places) / len(places)


def summary(prepared: Prepared, engine: Engine) -> str:
    """Model, devices, data, batches and length of the run."""
    config, model = prepared.config, prepared.config.model
    device = engine.mesh.devices.flat[0]
    guess = estimate(prepared.train_pairs, prepared.tokenizer, config)
    if guess is None:
        raise ValueError(
            f"None of {min(len(prepared.train_pairs), SAMPLE)} sampled training pairs "
            f"passes the length filter: raise data.max_length ({config.data.max_length}"
            f") or data.max_length_ratio ({config.data.max_length_ratio})."
        )
    epochs = config.train.steps / guess.steps_per_epoch
    mesh = ", ".join(f"{name} {size}" for name, size in engine.mesh.shape.items())
    lines = {
        "model": f"{model.num_encoder_layers}+{model.num_decoder_layers} layers, "
        f"d_model {model.d_model}, d_ff {model.d_ff}, {model.num_heads} heads, "
        f"{model.norm_position}-norm, {model.dtype}; "
        f"{count_params(engine.state_like.params):,} parameters",
        "devices": f"{engine.mesh.size} × {device.device_kind} ({mesh})"
        + (f", in {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        "vocabulary": f"{model.source_vocab_size:,} source, "
        f"{model.target_vocab_size:,} target"
        + (", joint" if config.tokenizer.joint else ""),
        "pairs": f"{len(prepared.train_pairs):,} for training, about "
        f"{1 - guess.kept:.1%} left out by length; {len(prepared.dev_pairs):,} for "
        f"evaluation; {guess.source_length:.1f} source and {guess.target_length:.1f} "
        "target pieces on average",
        "batches": f"{config.data.batching}, {shapes_in_words(engine.shapes())}",
        "steps": f"{config.train.steps:,}, which is about {epochs:,.1f} epochs of "
        f"{guess.steps_per_epoch:,.0f}",
    }
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items())


def shapes_in_words(shapes: Sequence[Shape]) -> str:
    """Batch shapes, shortly.

    >>> shapes_in_words([(32, 128, 128)])
    'one shape: 32 × 128 | 128'
    """
    texts = [f"{rows} × {source} | {target}" for rows, source, target in shapes]
    if len(texts) == 1:
        return f"one shape: {texts[0]}"
    shown = [*texts[:2], "…", texts[-1]] if len(texts) > 4 else texts
    return f"{len(texts)} shapes: {', '.join(shown)}"
