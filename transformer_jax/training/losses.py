"""Label-smoothed cross-entropy, plain and fused with the output projection.

The loss of a token y with smoothing ε over a vocabulary of V (Szegedy et al., 2016;
section 5.4 of the paper), in the convention of PyTorch and Optax:

    -(1 - ε) log p(y) - ε/V Σ_v log p(v)  =  lse - (1 - ε) logit_y - ε mean_v(logit_v)

where lse = log Σ_v exp(logit_v). The mass ε is spread over all V words, y among them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.models.output import project
from transformer_jax.types import Array


class Chunk(NamedTuple):
    """What the fused loss holds at once, at most."""

    tokens: int
    """Target tokens, whose logits are formed together."""
    logits: int
    """Their logits, where a vocabulary is so large that these are fewer tokens."""


CPU_CHUNK = Chunk(512, 2**24)
"""64 MiB of logits: they should stay near the core that made them."""
CHUNK = Chunk(4096, 2**27)
"""On an accelerator, 512 MiB: the table's gradient, which each chunk reads and writes,
should not be what takes the time."""


def held_at_once() -> Chunk:
    """What suits the devices here."""
    return CPU_CHUNK if jax.default_backend() == "cpu" else CHUNK


class LossSums(NamedTuple):
    """Sums over the weighted tokens, in float32."""

    loss: Array
    """Label-smoothed cross-entropy, in nats."""
    nll: Array
    """Negative log-likelihood: the same without smoothing."""
    correct: Array
    """Tokens whose own logit is the highest."""


def smoothed_cross_entropy(
    logits: Array, targets: Array, weights: Array, smoothing: float
) -> LossSums:
    """Logits [..., V], targets and weights [...] → sums over all tokens."""
    logits = logits.astype(jnp.float32)
    lse = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = lse - (1 - smoothing) * chosen - smoothing * logits.mean(axis=-1)
    return LossSums(
        loss=jnp.sum(weights * loss),
        nll=jnp.sum(weights * (lse - chosen)),
        correct=jnp.sum(weights * (chosen >= logits.max(axis=-1))),
    )


Part = tuple[Array, Array, Array]
"""Hidden states [C, D], targets and weights [C] of some target positions."""


def fused_cross_entropy(
    hidden: Array,
    table: Array,
    bias: Array | None,
    targets: Array,
    weights: Array,
    smoothing: float,
    *,
    shards: int = 1,
) -> LossSums:
    """`smoothed_cross_entropy(hidden · tableᵀ + bias, …)` without keeping the logits.

    hidden [B, T, D], table [V, D], bias [V] or None, targets and weights [B, T] → sums.
    A few target positions at a time are projected, and under differentiation their
    gradients are formed at once, so that memory does not grow with tokens × V. Only
    `loss` is differentiated.

    Devices that share out the rows in `shards` parts each add up their own chunks, and
    add their sums and gradients once; were they not told, they would have to hand each
    other the rows of every chunk.
    """
    fused: Any = _fused
    if shards == 1:
        return fused(hidden, table, bias, targets, weights, smoothing)

    def of_shard(hidden: Array, targets: Array, weights: Array) -> LossSums:
        return fused(hidden, table, bias, targets, weights, smoothing)

    parts = (x.reshape(shards, -1, *x.shape[1:]) for x in (hidden, targets, weights))
    return jax.tree.map(jnp.sum, jax.vmap(of_shard)(*parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _fused(
    hidden: Array,
    table: Array,
    bias: Array | None,
    targets: Array,
    weights: Array,
    smoothing: float,
) -> LossSums:
    """The sums alone, where nothing is differentiated."""
    parts = _chunks(hidden, targets, weights, table.shape[0])

    def chunk_sums(sums: LossSums, part: Part):
        h, y, w = part
        logits = project(h[None], table, bias)[0]
        new = smoothed_cross_entropy(logits, y, w, smoothing)
        return jax.tree.map(jnp.add, sums, new), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(chunk_sums, LossSums(zero, zero, zero), parts)[0]


def _forward(hidden, table, bias, targets, weights, smoothing):
    """The sums, and the gradients of `loss` with respect to hidden, table and bias."""
    vocab_size = table.shape[0]
    uniform = smoothing / vocab_size
    words = table.astype(hidden.dtype)  # [V, D]
    mean_word = words.astype(jnp.float32).mean(axis=0)
    mean_bias = 0.0 if bias is None else bias.astype(jnp.float32).mean()

    def chunk_gradients(carry, part: Part):
        sums, d_table, d_bias = carry
        h, y, w = part
        logits = jnp.einsum("CD,VD->CV", h, words, preferred_element_type=jnp.float32)
        if bias is not None:
            logits += bias.astype(jnp.float32)[None, :]
        top = logits.max(axis=1)
        exp = jnp.exp(logits - top[:, None])
        total = exp.sum(axis=1)
        lse = jnp.log(total) + top
        chosen = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        mean = h.astype(jnp.float32) @ mean_word + mean_bias
        loss = lse - (1 - smoothing) * chosen - smoothing * mean
        new = LossSums(
            loss=jnp.sum(w * loss),
            nll=jnp.sum(w * (lse - chosen)),
            correct=jnp.sum(w * (chosen >= top)),
        )
        is_target = jnp.arange(vocab_size)[None, :] == y[:, None]
        wanted = jnp.where(is_target, 1 - smoothing + uniform, uniform)
        d_logits = exp * (w / total)[:, None] - wanted * w[:, None]
        d_compute = d_logits.astype(h.dtype)
        d_h = jnp.einsum("CV,VD->CD", d_compute, words)
        d_table += jnp.einsum(
            "CV,CD->VD", d_compute, h, preferred_element_type=jnp.float32
        )
        if d_bias is not None:
            d_bias += d_logits.sum(axis=0)
        return (jax.tree.map(jnp.add, sums, new), d_table, d_bias), d_h

    zero = jnp.zeros((), jnp.float32)
    start = (
        LossSums(zero, zero, zero),
        jnp.zeros(table.shape, jnp.float32),
        None if bias is None else jnp.zeros(bias.shape, jnp.float32),
    )
    parts = _chunks(hidden, targets, weights, vocab_size)
    (sums, d_table, d_bias), d_hidden = jax.lax.scan(chunk_gradients, start, parts)
    d_hidden = d_hidden.reshape(-1, hidden.shape[-1])[: targets.size]
    d_hidden = d_hidden.reshape(hidden.shape)
    d_table = d_table.astype(table.dtype)
    d_bias = None if bias is None else d_bias.astype(bias.dtype)  # pyright: ignore[reportOptionalMemberAccess]
    return sums, (d_hidden, d_table, d_bias)


def _backward(smoothing, gradients, cotangent: LossSums):
    scaled = jax.tree.map(lambda g: (g * cotangent.loss).astype(g.dtype), gradients)
    return *scaled, None, None


_fused.defvjp(_forward, _backward)


def _chunks(hidden: Array, targets: Array, weights: Array, vocab_size: int) -> Part:
    """Cut [B, T, ...] into [chunks, C, ...], zeros filling the last.

    Two axes, not three, in a chunk: gradients of the table then need no copy of logits.
    """
    tokens = targets.size
    chunk = held_at_once()
    most = max(1, min(chunk.tokens, chunk.logits // vocab_size))
    num_chunks = -(-tokens // most)
    width = -(-tokens // num_chunks)

    def cut(x: Array) -> Array:
        x = x.reshape(tokens, *x.shape[2:])
        fill = [(0, num_chunks * width - tokens)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, fill).reshape(num_chunks, width, *x.shape[1:])

    return cut(hidden), cut(targets), cut(weights)
