"""The encoder-decoder Transformer in JAX and Flax: readable, complete, fast."""

__version__ = "0.1.0"
