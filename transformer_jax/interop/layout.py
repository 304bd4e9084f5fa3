"""The same model with the numbers of its residual stream in another order.

Sines and cosines alternate in some libraries and stand in two halves in others. With
the same exponents that is a matter of order: when every weight that reads or writes the
residual stream is reordered alike, the model computes what it did.
"""

import dataclasses
import re
from typing import Literal

import jax
import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.types import Params

Layout = Literal["interleaved", "halves", "halves_paper"]
SAME_WAVES = ("interleaved", "halves_paper")
"""Layouts with the exponents 2i/d of the paper."""
STREAM_AXES: tuple[tuple[str, int | None], ...] = (
    (r".*embedding/embedding", 1),  # [V, D]
    (r".*/(query|key|value)/kernel", 0),  # [D, N, H]
    (r".*/(query|key|value)/bias", None),
    (r".*/out/kernel", 2),  # [N, H, D]
    (r".*/out/bias", 0),
    (r".*/(up|gate)/kernel", 0),  # [D, F]
    (r".*/(up|gate)/bias", None),
    (r".*/down/kernel", 1),  # [F, D]
    (r".*/down/bias", 0),
    (r".*norm/(scale|bias)", 0),
    (r"output/kernel", 0),  # [D, V]
    (r"output/bias", None),
)
"""Which axis of a parameter is the residual stream."""


def with_layout(
    config: ModelConfig, params: Params, layout: Layout
) -> tuple[ModelConfig, Params]:
    """A model with sinusoids of another layout that computes the same.

    Raises ValueError where the exponents differ ("halves"), which no order mends.
    """
    if config.positions != "sinusoidal" or config.sinusoid_layout == layout:
        return config, params
    if not {config.sinusoid_layout, layout} <= set(SAME_WAVES):
        raise ValueError(
            f"Sinusoids of the layout {config.sinusoid_layout!r} have other "
            f"wavelengths than {layout!r}: no order of the numbers mends that."
        )
    alternating = np.arange(config.d_model).reshape(-1, 2).T.reshape(-1)
    order = alternating if layout == "halves_paper" else np.argsort(alternating)

    def reorder(path: tuple, x: np.ndarray) -> np.ndarray:
        axis = stream_axis(jax.tree_util.keystr(path, simple=True, separator="/"))
        return x if axis is None else np.take(np.asarray(x), order, axis=axis)

    config = dataclasses.replace(config, sinusoid_layout=layout)
    return config, jax.tree_util.tree_map_with_path(reorder, params)


def stream_axis(path: str) -> int | None:
    """The axis of the residual stream; None where a parameter does not touch it.

    >>> stream_axis("encoder/layer_0/self_attention/out/kernel")
    2
    """
    for pattern, axis in STREAM_AXES:
        if re.fullmatch(pattern, path):
            return axis
    raise ValueError(f"No rule says which axis of {path} is the residual stream.")
