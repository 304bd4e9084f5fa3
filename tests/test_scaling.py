"""What scaling.py says on paper, against shapes, shardings and compiled programs."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from test_parallel import VARIANTS

from transformer_jax import parallel, scaling
from transformer_jax.config import ModelConfig, OptimizerConfig, ParallelConfig
from transformer_jax.models import attention
from transformer_jax.models.functions import init_params
from transformer_jax.models.transformer import Transformer
from transformer_jax.scaling import MeshShape
from transformer_jax.trainer.engine import batch_like
from transformer_jax.training import losses
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import init_state
from transformer_jax.training.step import make_train_step
from transformer_jax.trees import leaves_by_path

SIZES: dict[str, Any] = {
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "d_model": 32,
    "d_ff": 64,
    "num_heads": 8,
    "source_vocab_size": 64,
    "target_vocab_size": 64,
}
OPTIMIZERS = ("adam", "adamw", "adafactor", "lion", "muon")


def make_mesh(shape: MeshShape) -> jax.sharding.Mesh:
    config = ParallelConfig(data=shape.data, fsdp=shape.fsdp, tensor=shape.tensor)
    return parallel.make_mesh(config, jax.devices()[: shape.size])


def params_like(model: ModelConfig) -> Any:
    init = functools.partial(init_params, Transformer(model))
    return jax.eval_shape(init, jax.random.key(0))


def state_like(params: Any, optimizer: Any, mesh: jax.sharding.Mesh) -> Any:
    """The shapes of a state and where they lie."""
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        parallel.state_shardings(shapes, mesh),
    )


def bytes_here(leaves: Any) -> int:
    """Of arrays, on one device."""
    return sum(
        x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape))) for x in leaves
    )


@pytest.mark.parametrize(
    "more",
    [
        *VARIANTS.values(),
        {"param_dtype": "bfloat16"},
        # Adafactor factors most of this one, heads too.
        {"d_model": 256, "d_ff": 256, "num_heads": 2},
    ],
    ids=[*VARIANTS, "bfloat16", "factored"],
)
def test_parameters_and_optimizer_are_those_of_the_state(more):
    shape = MeshShape(2, 2, 2)
    mesh = make_mesh(shape)
    model = ModelConfig(**{**SIZES, **more})
    params = params_like(model)
    for name in OPTIMIZERS:
        rule = make_optimizer(OptimizerConfig(name=name), model.d_model)
        state = state_like(params, rule, mesh)
        paths = tuple("/" + path for path in leaves_by_path(params))
        kept = [
            x
            for path, x in leaves_by_path(state.opt_state).items()
            if path.endswith(paths)
        ]
        paper = scaling.memory(
            model, shape, batch_tokens=0, row_length=0, optimizer=name
        )
        assert paper.parameters == bytes_here(jax.tree.leaves(state.params))
        assert paper.optimizer == bytes_here(kept), name
        assert len(jax.tree.leaves(state.opt_state)) - len(kept) <= 8  # Counters.


def kept_for_backward(model: ModelConfig, rows: int, length: int) -> int:
    """Bytes that jax hands from the forward pass to the backward pass, parameters and
    their copies left out."""
    net = Transformer(model)
    objective = make_objective(net, 0.1, deterministic=not model.dropout)
    params = params_like(model)

    def backward(params: Any, batch: Any, rng: jax.Array) -> Any:
        return jax.vjp(lambda p: objective(p, batch, rng)[0], params)[1]

    batch = batch_like((rows, length, length), None)  # pyright: ignore[reportArgumentType]
    kept = jax.eval_shape(backward, params, batch, jax.random.key(0))
    return sum(
        int(np.prod(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(kept)
        # Dense layers have [B·T, ...], attention in chunks [chunks, B, ...].
        if rows in x.shape[:2] or x.shape[:1] == (rows * length,)
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"dtype": "bfloat16"},
        {"dropout": 0.0},
        {"attention_dropout": 0.1},
        {"attention_dropout": 0.1, "dtype": "bfloat16"},
        {"gated": True, "activation": "silu"},
        {"norm_position": "pre"},
        {"remat": True},
        {"attention": "chunked"},
        {"attention": "chunked", "dtype": "bfloat16"},
    ],
    ids=lambda more: "-".join(map(str, more.values())) or "plain",
)
def test_activations_are_about_what_jax_keeps(more):
    rows, length = 7, 24
    layers = []
    for extra in (0, 3):
        counts = {"num_encoder_layers": 1 + extra, "num_decoder_layers": 1 + extra}
        model = ModelConfig(**{**SIZES, **counts, **more})
        paper = scaling.activations(model, 1, tokens=rows * length, row_length=length)
        layers.append((paper, kept_for_backward(model, rows, length)))
    # Of the layers alone: embeddings and the loss keep a little besides.
    on_paper, in_jax = np.subtract(layers[1], layers[0])
    assert on_paper == pytest.approx(in_jax, rel=0.15)


def test_what_is_held_at_once_is_what_the_modules_say():
    assert (scaling.LOSS_TOKENS, scaling.LOSS_LOGITS) == losses.CHUNK
    assert attention.CHUNKED_LENGTH == scaling.PLAIN_LENGTH
    for length in (1, 512, 513, 4096):
        for kind in ("auto", "plain", "chunked"):
            model = ModelConfig(**{**SIZES, "attention": kind})
            lengths = (2 * length, length)
            path = attention.attention_path(
                model, lengths, weights=False, kernel=False, training=True
            )
            plain = scaling.has_plain_attention(model, max(lengths))
            assert plain == (path == "plain")


CALLS = r"(?:calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)"
ITEM = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}


def sent(program: str) -> dict[str, float]:
    """Bytes that one of eight devices, all on one axis, sends in a compiled program, by
    kind of collective; loops are counted as often as they run."""
    parts: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line):
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif name:
            parts[name].append(line)
    found = {"all-reduce": 0.0, "all-gather": 0.0, "reduce-scatter": 0.0}
    for line, times in _lines(parts, entry, 1):
        if op := re.search(rf"= (.*?) ({'|'.join(found)})(?:-start)?\(", line):
            found[op[2]] += times * _sent(op[1], op[2])
    return found


def _lines(
    parts: dict[str, list[str]], name: str, times: int
) -> Iterator[tuple[str, int]]:
    """The lines of a computation and of those it calls, and how often they run."""
    for line in parts.get(name, []):
        yield line, times
        if loop := re.search(r"while\(.*body=%?([\w.\-]+)", line):
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            assert count
            yield from _lines(parts, loop[1], times * int(count[1]))
        else:
            for called in re.findall(CALLS, line):
                for each in re.findall(r"[\w.\-]+", called):
                    yield from _lines(parts, each, times)


def _sent(shapes: str, op: str, devices: int = 8) -> float:
    size = sum(
        ITEM[kind] * int(np.prod([int(n) for n in dims.split(",") if n]))
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        if kind in ITEM
    )
    if op == "all-reduce":
        return scaling.all_reduce(size, devices)
    return scaling.all_gather(
        size * (devices if op == "reduce-scatter" else 1), devices
    )


def exchanged(
    shape: MeshShape, model: ModelConfig, *, accumulate: int = 1
) -> dict[str, float]:
    """What a compiled update sends; 4096 positions on each side."""
    mesh = make_mesh(shape)
    rule = make_optimizer(OptimizerConfig(), model.d_model)
    like = state_like(params_like(model), rule, mesh)
    objective = make_objective(
        Transformer(model), 0.1, deterministic=True, shards=shape.shards
    )
    train_step = make_train_step(objective, rule, accumulate=accumulate)
    step = parallel.jit_train_step(train_step, mesh, like)
    batch = batch_like((64, 64, 64), parallel.batch_sharding(mesh))
    lowered = step.lower(like, batch, jax.random.key(0))
    return sent(lowered.compile({"xla_backend_optimization_level": 0}).as_text())


WIDE = ModelConfig(
    **{**SIZES, "d_model": 64, "d_ff": 256, "num_decoder_layers": 2, "dropout": 0.0}
)


def on_paper(shape: MeshShape, *, accumulate: int = 1) -> scaling.Communication:
    return scaling.communication(WIDE, shape, batch_tokens=4096, accumulate=accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_added_up_once_for_each_part_of_a_batch(accumulate):
    shape = MeshShape(data=8)
    found = exchanged(shape, WIDE, accumulate=accumulate)
    paper = on_paper(shape, accumulate=accumulate)
    assert (paper.parameters, paper.activations) == (0, 0)
    # On a CPU, XLA adds up what the source, the target and the output contribute to the
    # one table of all three each by itself.
    table = scaling.all_reduce(4 * WIDE.target_vocab_size * WIDE.d_model, 8)
    assert 0.99 * paper.gradients < found["all-reduce"]
    assert found["all-reduce"] < 1.01 * (paper.gradients + 2 * accumulate * table)
    assert found["all-gather"] + found["reduce-scatter"] == 0


def test_parameters_are_gathered_where_they_are_shared_out():
    shape = MeshShape(fsdp=8)
    found, paper = exchanged(shape, WIDE), on_paper(shape)
    # On a CPU, XLA writes a reduce-scatter as an all-reduce, of which each device keeps
    # a part: twice the bytes.
    assert 0.9 < found["all-reduce"] / (2 * paper.gradients) < 1.3
    assert 0.4 < found["all-gather"] / paper.parameters < 1.5


def test_activations_are_added_up_where_heads_are_shared_out():
    shape = MeshShape(tensor=8)
    found, paper = exchanged(shape, WIDE), on_paper(shape)
    total = paper.activations + paper.gradients
    assert paper.parameters == 0
    assert 0.9 < found["all-reduce"] / total < 1.5
