"""Settings of the model: the Transformer of the paper, and its named variants."""

from typing import Annotated, Any, Literal

from pydantic import Field

from transformer_jax.validation import Count, Fraction, Positive, settings


@settings
class ModelConfig:
    """The Transformer (Vaswani et al., 2017) and its named variants."""

    num_encoder_layers: Positive = 6
    """Layers of the encoder."""
    num_decoder_layers: Positive = 6
    """Layers of the decoder."""
    d_model: Positive = 512
    """Width of the residual stream."""
    d_ff: Positive = 2048
    """Width inside the feed-forward layers."""
    num_heads: Positive = 8
    """Attention heads; must divide d_model."""
    dropout: Fraction = 0.1
    """On embeddings and on each sublayer's output (section 5.4 of the paper)."""
    attention_dropout: Fraction = 0.0
    """On attention weights."""
    activation_dropout: Fraction = 0.0
    """Inside the feed-forward layers, after the activation."""
    norm_position: Literal["post", "pre"] = "post"
    """post: norm(x + f(x)), the paper's; pre: x + f(norm(x)), steadier when deep."""
    final_norm: bool | None = None
    """A norm after the last layer of each stack. Default: with pre-norm only."""
    norm: Literal["layer_norm", "std"] = "layer_norm"
    """layer_norm: (x - mean) / sqrt(variance + eps) (Ba et al., 2016). std: (x - mean)
    / (std + eps) with the unbiased std (the Annotated Transformer)."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance, or to the std (1e-5: PyTorch, fairseq, Marian)."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """Of the feed-forward layers (gelu: the exact one, with erf)."""
    gated: bool = False
    """Feed-forward as (act(x W) * x U) Z (Shazeer, 2020): GEGLU with gelu, SwiGLU
    with silu."""
    attention_bias: bool = True
    """Biases on query, key, value and output projections (the paper has none)."""
    feed_forward_bias: bool = True
    """Biases in the feed-forward layers (the paper; torch's bias=False has none)."""
    norm_bias: bool = True
    """Biases of the norms (torch's bias=False has none)."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Position encodings; learned ones end at `max_positions`."""
    sinusoid_layout: Literal["interleaved", "halves", "halves_paper"] = "interleaved"
    """interleaved: sin, cos, sin, … with exponent 2i/d (the paper, Annotated
    Transformer, OpenNMT-py, Joey NMT). halves: all sines, then all cosines, exponent
    i/(d/2 - 1) (tensor2tensor, fairseq). halves_paper: halves with 2i/d (Sockeye,
    Marian)."""
    max_positions: Positive = 1024
    """Rows of a learned position table."""
    position_offset: Count = 0
    """Number of the first position (fairseq: pad id + 1)."""
    scale_embeddings: bool = True
    """Multiply token embeddings by sqrt(d_model) (section 3.4 of the paper)."""
    tied_embeddings: Literal["all", "target_output", "source_target", "none"] = "all"
    """Which of source table, target table and output projection are one matrix (all:
    section 3.4 of the paper; source and target then need a joint vocabulary)."""
    output_bias: bool = False
    """A bias on the output logits (Marian has one)."""
    decoder_start: Literal["bos", "eos", "pad"] = "bos"
    """First decoder input (bos: OpenNMT-py, Joey; eos: fairseq; pad: Marian)."""
    source_bos: bool = False
    """Begin the source with the begin-of-sentence token, as the Annotated Transformer
    and PyTorch's translation tutorial do."""
    source_eos: bool = True
    """End the source with the end-of-sentence token, as fairseq and Marian do."""
    source_vocab_size: Count = 0
    """Rows of the source table. Default: the tokenizer's size."""
    target_vocab_size: Count = 0
    """Rows of the target table. Default: the tokenizer's size."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type; softmax, norms and loss stay in float32."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage type of the parameters."""
    attention: Literal["auto", "plain", "chunked", "fused"] = "auto"
    """How attention is computed in training, and by the encoder. plain: all weights at
    once. chunked: block by block, in memory that grows with the length and not with its
    square. fused: by cuDNN, or not at all in training. auto: fused where there is a
    kernel, else chunked for long rows. Dropout on attention weights, and showing them,
    takes plain."""
    scan_layers: bool = False
    """Compile one layer of each stack and run it in a loop: compilation grows far
    less with depth. The parameters stay a subtree per layer; what the optimizer
    remembers of them is stacked."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, about 30 % more time. On
    a CPU it needs `scan_layers`: of a list of layers the compiler keeps everything."""

    def __post_init__(self) -> None:
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads} and d_model is {self.d_model}: the "
                "width must be a multiple of the heads. Change one of them."
            )
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(
                f"d_model is {self.d_model}: sinusoidal positions pair sines with "
                "cosines, so it must be even (or use positions='learned')."
            )

    @property
    def has_final_norm(self) -> bool:
        """Whether each stack ends with a norm of its own."""
        return (
            self.norm_position == "pre" if self.final_norm is None else self.final_norm
        )

    @property
    def num_positions(self) -> int:
        """Longest sequence, in tokens; practically endless with sinusoids."""
        if self.positions == "sinusoidal":
            return 2**31 - 1
        return self.max_positions - self.position_offset

    @property
    def source_specials(self) -> int:
        """Special tokens around the words of a source."""
        return self.source_bos + self.source_eos

    @property
    def source_is_target_table(self) -> bool:
        """Whether source and target tokens share one embedding table."""
        return self.tied_embeddings in ("all", "source_target")

    @property
    def output_is_target_table(self) -> bool:
        """Whether the output projection is the target embedding table."""
        return self.tied_embeddings in ("all", "target_output")


MODEL_SIZES: dict[str, dict[str, int]] = {
    name: {
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "d_model": d_model,
        "d_ff": d_ff,
        "num_heads": num_heads,
    }
    for name, (layers, d_model, d_ff, num_heads) in {
        "tiny": (4, 128, 256, 4),
        "small": (3, 256, 1024, 8),
        "base": (6, 512, 2048, 8),
        "big": (6, 1024, 4096, 16),
    }.items()
}
"""Sizes by name: tiny (Wu et al., 2021), small, and the paper's base and big."""


def sized_model(name: str, **overrides: Any) -> ModelConfig:
    """A model of a named size.

    >>> sized_model("tiny", dropout=0.3).d_model
    128
    """
    if name not in MODEL_SIZES:
        raise ValueError(f"No model size {name!r}: choose from {list(MODEL_SIZES)}.")
    return ModelConfig(**{**MODEL_SIZES[name], **overrides})
