"""What the makers of golden files share: text, random weights, hooks, writing.

A golden file is a toy model of another library with the outputs that the library
itself computed: converters are tested against it without that library.
"""
# The libraries live in environments of their own (see remake.sh).
# pyright: reportMissingImports=false

import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

HERE = Path(__file__).parent
D_MODEL, D_FF, HEADS, ENCODER_LAYERS, DECODER_LAYERS = 8, 12, 2, 2, 1
POSITIONS = 16
"""Rows kept of a stored sinusoid table, which would else outweigh everything."""

SOURCE_WORDS = list("abcdefghi")  # with the four special tokens: 13
TARGET_WORDS = list("abcdefg")  # 11
JOINT_WORDS = list("abcdefgh")  # 12
PAIRS = [("a b c d e", "b c"), ("f", "d e f g a"), ("g a z", "c z b")]
"""Different lengths on both sides; z is in no vocabulary."""


def fill(model: torch.nn.Module, seed: int) -> None:
    """Give every trainable parameter random values, biases and padding rows too.

    Zero biases, unit norms and zero padding rows would hide a converter's mistakes.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        values = rng.normal(size=tuple(parameter.shape)) * 0.4
        if "norm" in name and name.endswith("weight"):
            values = 1 + values / 2
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def watch(layers: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """The outputs of `layers`, in the list returned, once the model has run."""
    outputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    for layer in layers:
        layer.register_forward_hook(keep)
    return outputs


def named(prefix: str, outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of layers, numbered."""
    return {f"{prefix}_{i}": output for i, output in enumerate(outputs)}


def cut(
    state: dict[str, torch.Tensor], tables: dict[str, int]
) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """Keep the first `POSITIONS` rows of stored sinusoids; say what shapes they had.

    Args:
        state: The library's tensors.
        tables: Names of the tables, with the axis that counts positions.
    """
    whole = {name: list(state[name].shape) for name in tables}
    rows = {
        name: state[name].narrow(axis, 0, POSITIONS) for name, axis in tables.items()
    }
    return {**state, **rows}, whole


def write(name: str, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write `<name>.safetensors` and `<name>.json` beside this file."""
    arrays = {
        key: np.ascontiguousarray(
            tensor.detach().numpy().astype(np.int32)
            if tensor.dtype == torch.int64
            else tensor.detach().numpy()
        )
        for key, tensor in tensors.items()
    }
    weights = safetensors.numpy.save(arrays)
    (HERE / f"{name}.safetensors").write_bytes(weights)
    facts = {
        **about,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": f"python {Path(sys.argv[0]).name}",
        "tensors": {
            key: f"{array.dtype}{list(array.shape)}" for key, array in arrays.items()
        },
    }
    text = json.dumps(facts, indent=1, ensure_ascii=False, default=sorted)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {len(arrays)} tensors, {len(weights)} bytes")
