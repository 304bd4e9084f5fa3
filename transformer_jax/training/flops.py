"""How much arithmetic an update is, and how much of it a device could do."""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.data.batching import Batch

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("V100", 125e12),
    ("TPU v6", 918e12),  # v6e, which jax calls "TPU v6 lite"
    ("TPU v5p", 459e12),
    ("TPU v5e", 197e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("TPU v3", 61.5e12),  # a device is one of the chip's two cores
)
"""Floating-point operations a second of one device, by a part of its kind: its makers'
number for dense products of bfloat16 (V100: float16). The first match counts."""


class Work(NamedTuple):
    """What a batch asks for, padding left out."""

    source: float
    """Source tokens."""
    target: float
    source_pairs: float
    """Query and key tokens of one sentence, Σ s² over sentences of s tokens."""
    target_pairs: float
    """Σ t²; a causal mask is not deducted."""
    cross_pairs: float
    """Σ t·s."""


def work_of(batch: Batch) -> Work:
    """The work in a batch of numpy arrays.

    >>> ids = np.array([[1, 1, 2, 0]])
    >>> work_of(Batch(ids, ids, ids, ids, ids, ids, ids))
    Work(source=3.0, target=3.0, source_pairs=5.0, target_pairs=5.0, cross_pairs=5.0)
    """
    s, t = (_lengths(x) for x in (batch.input_segment_ids, batch.target_segment_ids))
    width = min(s.shape[1], t.shape[1])
    cross = (s[:, :width] * t[:, :width]).sum()
    sums = (s.sum(), t.sum(), (s * s).sum(), (t * t).sum(), cross)
    return Work(*(float(x) for x in sums))


def _lengths(segment_ids: np.ndarray) -> np.ndarray:
    """Tokens of each sentence: [B, L] → [B, highest segment]."""
    rows, most = len(segment_ids), int(segment_ids.max(initial=0)) + 1
    places = np.asarray(segment_ids) + most * np.arange(rows)[:, None]
    counts = np.bincount(places.ravel(), minlength=rows * most)
    return counts.reshape(rows, most)[:, 1:]


def forward_flops(config: ModelConfig, work: Work) -> float:
    """Floating-point operations of one pass over a batch, from input ids to logits.

    A product of [m, k] and [k, n] is 2 m k n; all else is left out, as are embeddings,
    which are looked up. With A = 4 D² (query, key, value, out of an attention) and
    M = 2 D F, or 3 D F where gated (feed-forward),

        2 s L_e (A + M)              encoder, s source tokens
      + 2 t L_d (A + A/2 + M)        decoder, t target tokens: its self-attention, and
                                     query and out of cross-attention
      + 2 s L_d A/2                  key and value of cross-attention
      + 4 D (L_e Σs² + L_d Σt² + L_d Σt·s)   q kᵀ and weights · v
      + 2 t D V                      output projection.

    This is the counting of Kaplan et al. (2020, table 1) and of PaLM (Chowdhery et al.,
    2022, appendix B) for two stacks: padding, masks, dropout, and what is computed
    twice to save memory are not work of the model.
    """
    D, F = config.d_model, config.d_ff
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    attention = 4 * D * D
    feed_forward = (3 if config.gated else 2) * D * F
    weights = (
        work.source * encoder * (attention + feed_forward)
        + work.target * decoder * (1.5 * attention + feed_forward)
        + work.source * decoder * 0.5 * attention
        + work.target * D * config.target_vocab_size
    )
    pairs = encoder * work.source_pairs + decoder * (
        work.target_pairs + work.cross_pairs
    )
    return 2 * weights + 4 * D * pairs


def train_flops(config: ModelConfig, work: Work) -> float:
    """Of an update: the backward pass multiplies twice for each forward product, once
    for the gradient of either factor.

    >>> config = ModelConfig(target_vocab_size=100)
    >>> work = Work(8, 8, 64, 64, 64)
    >>> train_flops(config, work) == 3 * forward_flops(config, work)
    True
    """
    return 3 * forward_flops(config, work)


def peak_flops(devices: Sequence[Any]) -> float | None:
    """Operations a second that these equal devices can do; None where not known.

    Model FLOPs utilisation (MFU) is `train_flops` a second over this. There is no such
    number for a CPU: how fast it multiplies large matrices is measured, once.
    """
    kind = devices[0].device_kind.lower()
    if devices[0].platform == "cpu":
        return _measured(devices[0])  # its devices share the cores
    for name, peak in PEAK_FLOPS:
        if name.lower() in kind:
            return len(devices) * peak
    return None


@functools.cache
def _measured(device: Any, size: int = 1024, repeats: int = 5) -> float:
    """The best of a few products of square matrices in float32."""
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
