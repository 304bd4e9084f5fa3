"""Training on one GPU in bfloat16: ours and `torch.compile`, tokens a second and MFU.

python benchmarks/train_step.py --device gpu --output benchmarks/results/train_gpu.json

Random tokens fill whole rows, source as long as target: 32 768 places a side in an
update, whatever the length. Parameters and Adam are float32; products are bfloat16
(autocast in PyTorch). Each timing is of several updates with one wait at the end; the
two take turns; medians are kept; compilation is not counted.

MFU is the share of the device's dense bfloat16 peak that goes into the model's own
products, counted as in `transformer_jax/training/flops.py`: masked attention counts in
full, recomputed products do not.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from transformer_jax.config import ModelConfig, OptimizerConfig, sized_model
from transformer_jax.data.batching import Batch
from transformer_jax.training.flops import peak_flops, train_flops, work_of

PLACES = 32_768
VOCABULARY = 32_768
REPEATS, UPDATES = 7, 5
"""Timings, and updates in each."""
OPTIMIZER = OptimizerConfig(schedule="constant", warmup_steps=0, learning_rate=1e-4)
SMOOTHING = 0.1


def random_batch(rows: int, length: int, vocab_size: int) -> Batch:
    """Rows without padding."""
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(4, vocab_size, (2, rows, length), dtype=np.int32)
    ones = np.ones((rows, length), np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), ones.shape).copy()
    shifted = np.concatenate([ones[:, :1], targets[:, :-1]], axis=1)
    return Batch(inputs, ones, places, shifted, targets, ones, places)


def makers(model: ModelConfig, batch: Batch, device: str) -> dict[str, Callable]:
    """Both contenders, to be made."""
    import torch
    from peers.ours import Ours
    from peers.torch_sdpa import HandWritten
    from peers.torch_training import TorchPeer

    torch.compiler.reset()

    return {
        "ours": lambda: Ours(model, OPTIMIZER, SMOOTHING, [batch], one_per_row=True),
        "torch_compile": lambda: TorchPeer(
            HandWritten(model),
            OPTIMIZER,
            SMOOTHING,
            [batch],
            device=device,
            compiled=True,
            autocast=True,
        ),
    }


def measure_length(
    model: ModelConfig, length: int, places: int, device: str, peak: float | None
) -> dict[str, dict[str, Any]]:
    """Numbers of both at one length."""
    rows = max(places // length, 1)
    batch = random_batch(rows, length, model.target_vocab_size)
    peers: dict[str, Any] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, make in makers(model, batch, device).items():
        start = time.perf_counter()
        peers[name] = make()
        losses = [peers[name].step(0) for _ in range(3)]
        numbers[name] = {
            "parameters": peers[name].parameters,
            "first_seconds": round(time.perf_counter() - start, 1),
            "losses": [round(loss, 3) for loss in losses],
        }
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(REPEATS):
        for name, peer in peers.items():
            start = time.perf_counter()
            for _ in range(UPDATES - 1):
                peer.update(0)
            peer.step(0)
            seconds[name].append((time.perf_counter() - start) / UPDATES)
    operations = train_flops(model, work_of(batch))
    for name, each in seconds.items():
        median = statistics.median(each)
        numbers[name] |= {
            "target_tokens_per_second": round(rows * length / median, 1),
            "mfu": round(operations / median / peak, 4) if peak else None,
            "seconds": [round(s, 5) for s in each],
        }
    return numbers


def measure_gpu(
    sizes: Sequence[str], lengths: Sequence[int], found: dict[str, Any], *, smoke: bool
) -> Iterator[dict[str, Any]]:
    """All sizes and lengths: after each, the numbers so far, and those `found` before.
    With `smoke`, toy sizes on whatever device is there."""
    # Both libraries share the memory: jax must not take it all at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not smoke and (device == "cpu" or jax.default_backend() != "gpu"):
        raise ValueError(
            f"PyTorch computes on {device} here and jax on {jax.default_backend()}: "
            "install both for the GPU, or look at --smoke."
        )
    kind = jax.devices()[0].device_kind
    peak = peak_flops(jax.devices()[:1])
    for size in sizes[:1] if smoke else sizes:
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_ff": 64}
        vocabulary = 1000 if smoke else VOCABULARY
        model = sized_model(
            size,
            dropout=0.1,
            dtype="bfloat16",
            source_vocab_size=vocabulary,
            target_vocab_size=vocabulary,
            **(layers if smoke else {}),
        )
        for length in lengths[:2] if smoke else lengths:
            places = 128 if smoke else PLACES
            numbers = measure_length(model, length, places, device, peak)
            found.setdefault(size, {})[str(length)] = numbers
            gc.collect()
            ratio = ratios(found)[size][str(length)]
            for name, each in numbers.items():
                speed, mfu = each["target_tokens_per_second"], each["mfu"]
                print(f"{size} {length:5} {name:14} {speed:9,.0f} tokens/s, MFU {mfu}")
            print(f"{size} {length:5} ours is {ratio} times as fast", flush=True)
            yield {
                "ratio_to_torch_compile": ratios(found),
                "sizes": found,
                "device": kind,
                "peak_operations_per_second": peak,
                "vocabulary": VOCABULARY,
                "places_per_update": PLACES,
            }


def ratios(sizes: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Ours by `torch.compile`, by size and length."""

    def ratio(numbers: dict[str, Any]) -> float:
        ours, theirs = (
            numbers[name]["target_tokens_per_second"]
            for name in ("ours", "torch_compile")
        )
        return round(ours / theirs, 3)

    return {
        size: {length: ratio(numbers) for length, numbers in by_length.items()}
        for size, by_length in sizes.items()
    }
