"""The Annotated Transformer, written again in numpy from its published definition."""

import json
from typing import Any

import numpy as np
import pytest
from comparing import TOLERANCE, largest_difference, our_logits

from transformer_jax.data.batching import Batch
from transformer_jax.interop import annotated
from transformer_jax.interop.files import write_tensors
from transformer_jax.interop.library import (
    NO_OPTIONS,
    export_state,
    import_state,
)
from transformer_jax.interop.rules import TableError
from transformer_jax.testing import tiny_batch

N, HEADS, WIDTH, INNER, VOCAB = 2, 4, 16, 20, 24
SETTINGS: dict[str, Any] = {
    "h": HEADS,
    "N": N,
    "d_model": WIDTH,
    "d_ff": INNER,
    "src_vocab": VOCAB,
    "tgt_vocab": VOCAB,
}
TIED = {
    "none": (),
    "all": ("src_embed.0.lut.weight", "generator.proj.weight"),
    "target_output": ("generator.proj.weight",),
    "source_target": ("src_embed.0.lut.weight",),
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of `make_model(VOCAB, VOCAB, N, WIDTH, INNER, HEADS)`."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        found[f"{name}.a_2"], found[f"{name}.b_2"] = (WIDTH,), (WIDTH,)

    blocks = {"encoder": ("self_attn",), "decoder": ("self_attn", "src_attn")}
    for stack, attentions in blocks.items():
        for i in range(N):
            layer = f"{stack}.layers.{i}"
            for block in attentions:
                for number in range(4):
                    linear(f"{layer}.{block}.linears.{number}", WIDTH, WIDTH)
            linear(f"{layer}.feed_forward.w_1", INNER, WIDTH)
            linear(f"{layer}.feed_forward.w_2", WIDTH, INNER)
            for number in range(len(attentions) + 1):
                norm(f"{layer}.sublayer.{number}.norm")
        norm(f"{stack}.norm")
    linear("generator.proj", VOCAB, WIDTH)
    for side in ("src", "tgt"):
        found[f"{side}_embed.0.lut.weight"] = (VOCAB, WIDTH)
    return found


def sinusoids(rows: int) -> np.ndarray:
    """[1, rows, WIDTH], in float32 throughout."""
    waves = np.zeros((rows, WIDTH), np.float32)
    for i in range(0, WIDTH, 2):
        frequency = np.exp(np.float32(i) * np.float32(-np.log(10000.0) / WIDTH))
        angles = np.arange(rows, dtype=np.float32) * frequency
        waves[:, i], waves[:, i + 1] = np.sin(angles), np.cos(angles)
    return waves[None]


def random_state(tied: str = "none", rows: int = 5000) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    state = {
        name: (0.3 * draw.normal(size=shape) + name.endswith("a_2")).astype(np.float32)
        for name, shape in shapes().items()
    }
    for name in TIED[tied]:
        state[name] = state["tgt_embed.0.lut.weight"]
    return {
        **state,
        "src_embed.1.pe": sinusoids(rows),
        "tgt_embed.1.pe": sinusoids(rows),
    }


class Reference:
    """Its forward pass up to the generator's `proj`, in float64."""

    def __init__(self, state: dict[str, np.ndarray]):
        self.state = {name: x.astype(np.float64) for name, x in state.items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        scale, bias = self.state[f"{name}.a_2"], self.state[f"{name}.b_2"]
        return scale * (x - mean) / (std + 1e-6) + bias

    def attention(
        self, name: str, x: np.ndarray, memory: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """Mask [B, T or 1, S], as in its batches."""

        def heads(number: int, y: np.ndarray) -> np.ndarray:
            y = self.linear(f"{name}.linears.{number}", y)
            return y.reshape(*y.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

        q, k, v = heads(0, x), heads(1, memory), heads(2, memory)
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(WIDTH // HEADS)
        scores = np.where(mask[:, None], scores, -1e9)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        joined = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        return self.linear(f"{name}.linears.3", joined)

    def feed(self, name: str, x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(self.linear(f"{name}.w_1", x), 0)
        return self.linear(f"{name}.w_2", hidden)

    def embed(self, side: str, ids: np.ndarray) -> np.ndarray:
        table, waves = (self.state[f"{side}.{n}"] for n in ("0.lut.weight", "1.pe"))
        return table[ids] * np.sqrt(WIDTH) + waves[:, : ids.shape[1]]

    def encode(self, inputs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        x = self.embed("src_embed", inputs)
        for i in range(N):
            layer = f"encoder.layers.{i}"
            y = self.norm(f"{layer}.sublayer.0.norm", x)
            x = x + self.attention(f"{layer}.self_attn", y, y, mask)
            y = self.norm(f"{layer}.sublayer.1.norm", x)
            x = x + self.feed(f"{layer}.feed_forward", y)
        return self.norm("encoder.norm", x)

    def logits(self, batch: Batch) -> np.ndarray:
        source = (np.asarray(batch.input_segment_ids) > 0)[:, None]
        target = (np.asarray(batch.target_segment_ids) > 0)[:, None]
        length = target.shape[-1]
        target = target & np.tril(np.ones((1, length, length), bool))
        memory = self.encode(np.asarray(batch.inputs), source)
        x = self.embed("tgt_embed", np.asarray(batch.decoder_inputs))
        for i in range(N):
            layer = f"decoder.layers.{i}"
            y = self.norm(f"{layer}.sublayer.0.norm", x)
            x = x + self.attention(f"{layer}.self_attn", y, y, target)
            y = self.norm(f"{layer}.sublayer.1.norm", x)
            x = x + self.attention(f"{layer}.src_attn", y, memory, source)
            y = self.norm(f"{layer}.sublayer.2.norm", x)
            x = x + self.feed(f"{layer}.feed_forward", y)
        return self.linear("generator.proj", self.norm("decoder.norm", x))


@pytest.mark.parametrize("tied", ["none", "all"])
def test_imported_weights_give_the_same_logits(tied):
    state, batch = random_state(tied), tiny_batch()
    settings = {**SETTINGS, "tied_embeddings": tied}
    config, params = import_state("annotated", state, settings)
    ours, theirs = our_logits(config, params, batch), Reference(state).logits(batch)
    assert largest_difference(ours, theirs, batch) <= TOLERANCE


@pytest.mark.parametrize("tied", TIED)
def test_exported_weights_are_those_that_were_imported(tied):
    state = random_state(tied)
    settings = {**SETTINGS, "tied_embeddings": tied}
    settings, exported = export_state(
        "annotated", *import_state("annotated", state, settings)
    )
    assert settings.items() >= SETTINGS.items()
    assert exported.keys() == state.keys()
    for name, array in state.items():
        assert exported[name].shape == array.shape
        tolerance = annotated.FLOAT32_ERROR if name.endswith(".pe") else 0
        np.testing.assert_allclose(exported[name], array, rtol=0, atol=tolerance)


@pytest.mark.parametrize("tied", TIED)
def test_tied_tables_are_found_in_a_folder_of_weights(tmp_path, tied):
    write_tensors(tmp_path / "model.safetensors", random_state(tied, rows=9))
    (tmp_path / "config.json").write_text(json.dumps({"h": HEADS}))
    found = annotated.read(tmp_path, NO_OPTIONS)
    assert found.settings["tied_embeddings"] == tied
    assert found.settings.items() >= SETTINGS.items()
    import_state("annotated", found.state, found.settings)


def test_tables_said_to_be_tied_must_be_equal():
    settings = {**SETTINGS, "tied_embeddings": "all"}
    with pytest.raises(TableError, match=r"src_embed\.0\.lut\.weight should be tgt_"):
        import_state("annotated", random_state("target_output"), settings)
