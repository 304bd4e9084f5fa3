"""Memory and communication of an update, on paper: bytes of one device of a mesh.

What is shared out and what is whole follows `PARAM_RULES` in parallel.py, so that the
parameters, their gradients and the optimizer's state lie as in ZeRO's third stage over
`fsdp` (Rajbhandari et al., 2020) and as in Megatron over `tensor` (Shoeybi et al.,
2019). Nothing here touches a device: the tests hold it against the shapes that jax
makes and the collectives that XLA writes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from transformer_jax.model_config import ModelConfig

BYTES = {"float32": 4, "bfloat16": 2}
LOSS_TOKENS, LOSS_LOGITS = 4096, 2**27
"""What the fused loss holds at once on an accelerator, at most: target positions, and
their logits."""
PLAIN_LENGTH = 512
"""Rows up to this long are attended to with all weights at once, by `auto`."""
ADAFACTOR_FACTORS = 128
"""Rows and columns from which on Adafactor keeps two vectors in place of a matrix."""


class MeshShape(NamedTuple):
    """Devices on each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        """Devices in all."""
        return math.prod(self)

    @property
    def shards(self) -> int:
        """Parts that rows are shared out in."""
        return self.data * self.fsdp


class Kind(NamedTuple):
    """Parameters that are alike."""

    name: str
    count: int
    shape: tuple[int, ...]
    cut: tuple[str, ...] = ()
    """Axes of the mesh that share each of them out."""

    def numbers(self, mesh: MeshShape) -> int:
        """Of all of them, on one device."""
        parts = math.prod(getattr(mesh, axis) for axis in self.cut)
        return self.count * math.prod(self.shape) // parts


BOTH = ("tensor", "fsdp")


def parameters(model: ModelConfig) -> Iterator[Kind]:
    """All parameters of a model whose vocabulary sizes are known.

    >>> model = ModelConfig(source_vocab_size=37_000, target_vocab_size=37_000)
    >>> sum(kind.numbers(MeshShape()) for kind in parameters(model))
    63082496
    """
    D, F, N = model.d_model, model.d_ff, model.num_heads
    H = D // N
    encoders, decoders = model.num_encoder_layers, model.num_decoder_layers
    attentions, layers = encoders + 2 * decoders, encoders + decoders
    yield Kind("query, key, value", 3 * attentions, (D, N, H), BOTH)
    yield Kind("attention out", attentions, (N, H, D), BOTH)
    if model.attention_bias:
        yield Kind("query, key, value bias", 3 * attentions, (N, H), ("tensor",))
        yield Kind("attention out bias", attentions, (D,))
    ups = layers * (2 if model.gated else 1)
    yield Kind("feed-forward up", ups, (D, F), BOTH)
    yield Kind("feed-forward down", layers, (F, D), BOTH)
    if model.feed_forward_bias:
        yield Kind("feed-forward up bias", ups, (F,), ("tensor",))
        yield Kind("feed-forward down bias", layers, (D,))
    norms = 2 * encoders + 3 * decoders + (2 if model.has_final_norm else 0)
    yield Kind("norm", norms * (2 if model.norm_bias else 1), (D,))
    V = model.target_vocab_size
    if not model.source_is_target_table:
        yield Kind("source embedding", 1, (model.source_vocab_size, D), BOTH)
    yield Kind("target embedding", 1, (V, D), BOTH)
    if model.positions == "learned":
        yield Kind("positions", 2, (model.max_positions, D))
    if not model.output_is_target_table:
        yield Kind("output", 1, (D, V), BOTH)
    if model.output_bias:
        yield Kind("output bias", 1, (V,), ("tensor",))


# Memory.


class Memory(NamedTuple):
    """Bytes of one device."""

    parameters: int
    """As they are stored: with param_dtype float32, the master copy."""
    optimizer: int
    gradients: int
    copies: int
    """Of the parameters in the type of computation, and whole over `fsdp`, as they are
    when used: all of them, at most."""
    activations: int
    """What the backward pass needs of the forward pass, at most."""
    loss: int
    """Logits and the gradient of the output table."""

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def memory(
    model: ModelConfig,
    mesh: MeshShape,
    *,
    batch_tokens: int,
    row_length: int,
    optimizer: str = "adam",
    accumulate: int = 1,
) -> Memory:
    """Of an update of `batch_tokens` positions on each side, over all devices, in rows
    of `row_length`."""
    stored, computed = BYTES[model.param_dtype], BYTES[model.dtype]
    numbers = sum(kind.numbers(mesh) for kind in parameters(model))
    gathered = MeshShape(tensor=mesh.tensor)
    whole = sum(kind.numbers(gathered) for kind in parameters(model))
    copied = mesh.fsdp > 1 or computed != stored
    V = model.target_vocab_size
    chunk = min(LOSS_TOKENS, LOSS_LOGITS // V)
    return Memory(
        parameters=stored * numbers,
        optimizer=stored * optimizer_numbers(model, mesh, optimizer),
        gradients=(4 if accumulate > 1 else stored) * numbers,
        copies=computed * whole if copied else 0,
        activations=activations(
            model,
            mesh.tensor,
            tokens=batch_tokens // (mesh.shards * accumulate),
            row_length=row_length,
        ),
        loss=4 * V // mesh.tensor * (3 * chunk + model.d_model),
    )


def optimizer_numbers(model: ModelConfig, mesh: MeshShape, name: str) -> int:
    """Numbers that an optimizer keeps on one device, but for a few counters.

    Moments lie as their parameters do. Adafactor's vectors are whole on every device.

    >>> model = ModelConfig(source_vocab_size=64, target_vocab_size=64)
    >>> one = MeshShape()
    >>> optimizer_numbers(model, one, "adam") // optimizer_numbers(model, one, "lion")
    2
    """
    total = 0
    for kind in parameters(model):
        if name == "adafactor":
            total += _adafactor_numbers(kind, mesh)
        elif name == "lion" or (name == "muon" and _is_kernel(kind)):
            total += kind.numbers(mesh)
        else:
            total += 2 * kind.numbers(mesh)
    return total


def _is_kernel(kind: Kind) -> bool:
    """Projections, which are Muon's; the rest are Adam's."""
    return len(kind.shape) > 1 and not kind.name.endswith(
        ("bias", "embedding", "positions")
    )


def _adafactor_numbers(kind: Kind, mesh: MeshShape) -> int:
    """Means over the longest axis, and over the second longest, where both are long;
    else the whole moment (Shazeer and Stern, 2018). A 1 stands for what is not kept."""
    longest = sorted(kind.shape)
    if len(longest) < 2 or longest[-2] < ADAFACTOR_FACTORS:
        return kind.numbers(mesh) + 2 * kind.count
    size = math.prod(kind.shape)
    return kind.count * (size // longest[-1] + size // longest[-2] + 1)


def activations(
    model: ModelConfig, tensor: int, *, tokens: int, row_length: int
) -> int:
    """Bytes that the forward pass keeps for the backward pass, of `tokens` positions on
    each side: what jax hands over, of which XLA merges a part.

    After Korthikanti et al. (2022, section 4), with what this model keeps: a sublayer
    has one array of the model's width in float32, for its norm, and with dropout one
    more and a mask; attention has its input for each of three products, and queries,
    keys, values and their mixture; the feed-forward layer has its input for each
    product and two arrays of its width, with a gate six, and a mask. Plain attention
    has its weights in float32 for each head and pair of positions, and where they are
    dropped once more, with a mask, and as they are mixed by; attention in chunks or by
    a kernel has the mixture once more, and one number for each head and position. Width
    in `d_model` is whole on each device of a tensor axis; heads and `d_ff` are shared
    out.

    With `remat` each layer keeps its input, and one layer at a time has all the rest.
    """
    c = BYTES[model.dtype]
    encoders, decoders = model.num_encoder_layers, model.num_decoder_layers
    whole = c * model.d_model
    sublayer = 4 * model.d_model + (whole + model.d_model if model.dropout else 0)
    if has_plain_attention(model, row_length):
        dropped = 4 + 1 if model.attention_dropout else 0
        mixed_by = c if dropped or c < 4 else 0  # else the weights themselves
        weights = model.num_heads * row_length * (4 + dropped + mixed_by)
    else:
        weights = whole + 4 * model.num_heads
    attention = sublayer + 3 * whole + (4 * whole + weights) / tensor
    inputs, widths = (2, 6) if model.gated else (1, 2)
    feed_forward = sublayer + inputs * whole + model.d_ff * (widths * c + 1) / tensor
    encoder, decoder = attention + feed_forward, 2 * attention + feed_forward
    if model.remat:
        kept = (encoders + decoders) * c * model.d_model + decoder
    else:
        kept = encoders * encoder + decoders * decoder
    return round(tokens * kept)


def has_plain_attention(model: ModelConfig, row_length: int) -> bool:
    """Whether training keeps the weights of attention, where a device has no kernel.

    >>> has_plain_attention(ModelConfig(), 64), has_plain_attention(ModelConfig(), 4096)
    (True, False)
    """
    if model.attention_dropout > 0:
        return True
    if model.attention == "auto":
        return row_length <= PLAIN_LENGTH
    return model.attention == "plain"


# Communication.


class Communication(NamedTuple):
    """Bytes that one device sends in an update, by what they are."""

    gradients: int
    """Added up over the devices that share out the rows."""
    parameters: int
    """Gathered over `fsdp`, for the forward pass and again for the backward pass."""
    activations: int
    """Added up over `tensor`."""

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def all_reduce(size: float, devices: int) -> float:
    """Bytes that each of some devices in a ring sends to add up arrays of `size` bytes:
    a reduce-scatter and an all-gather.

    >>> all_reduce(8, 1), all_reduce(8, 2), all_reduce(8, 4)
    (0.0, 8.0, 12.0)
    """
    return 2 * all_gather(size, devices)


def all_gather(size: float, devices: int) -> float:
    """So to gather an array of `size` bytes from its parts; and to add up arrays of
    `size` bytes of which each keeps a part (reduce-scatter).

    >>> all_gather(8, 2)
    4.0
    """
    return size * (devices - 1) / devices


def communication(
    model: ModelConfig, mesh: MeshShape, *, batch_tokens: int, accumulate: int = 1
) -> Communication:
    """Of an update of `batch_tokens` positions on each side, over all devices.

    Gradients are added over `data` by an all-reduce; over `fsdp` by a reduce-scatter,
    for which parameters are gathered twice (ZeRO). Over `tensor` the outputs of each
    sublayer are added up in the forward pass and those of its gradient in the backward
    pass (Megatron), and so are the embeddings and the gradients of the encoder's output
    and of the last hidden states. Each of `accumulate` parts does all of this.
    """
    stored, computed = BYTES[model.param_dtype], BYTES[model.dtype]
    gathered = MeshShape(tensor=mesh.tensor)
    gradients = moved = 0.0
    for kind in parameters(model):
        size = stored * kind.numbers(gathered)
        if "fsdp" in kind.cut:
            gradients += all_gather(size, mesh.fsdp)
            gradients += all_reduce(size / mesh.fsdp, mesh.data)
            moved += 2 * all_gather(size, mesh.fsdp)
        else:
            gradients += all_reduce(size, mesh.shards)
    array = computed * model.d_model * batch_tokens / mesh.shards
    return Communication(
        gradients=round(accumulate * gradients),
        parameters=round(accumulate * moved),
        activations=round(all_reduce(sums_of_activations(model) * array, mesh.tensor)),
    )


def sums_of_activations(model: ModelConfig) -> int:
    """Arrays [B, T, D] that devices of a tensor axis add up in an update.

    >>> sums_of_activations(ModelConfig(num_encoder_layers=1, num_decoder_layers=1))
    14
    """
    encoders, decoders = model.num_encoder_layers, model.num_decoder_layers
    forward = 2 * encoders + 3 * decoders
    backward = forward + decoders
    again = forward if model.remat else 0
    return forward + backward + again + 3
