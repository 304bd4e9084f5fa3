"""Memory that an update takes, as XLA reports it of the compiled train step.

python benchmarks/train_memory.py loss layers attention \
    --output benchmarks/results/train_memory.json

Nothing is run and no weights are made: each step is compiled for its shapes, and what
it holds is read from `compiled.memory_analysis()`. `temporary` is what it needs besides
state and batch; the state is donated, so the old and the new share their memory.

- loss: fused with the output projection, and plain, over vocabularies and tokens;
- layers: a model of the paper's base size, as it is, with remat, and in four
  micro-batches; as a list of layers and as a loop;
- attention: all weights at once, and in chunks, over lengths, one row of that length.

Results are added to those that the file holds, each as soon as it is there.
"""

import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

from transformer_jax.config import ModelConfig, OptimizerConfig, sized_model
from transformer_jax.data.batching import Batch
from transformer_jax.models.functions import init_params
from transformer_jax.models.output import project
from transformer_jax.models.transformer import Transformer
from transformer_jax.trainer.engine import batch_like
from transformer_jax.trainer.reporting import environment
from transformer_jax.training.losses import smoothed_cross_entropy
from transformer_jax.training.metrics import Mean, Metrics
from transformer_jax.training.objectives import (
    Objective,
    last_hidden,
    make_objective,
)
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import init_state
from transformer_jax.training.step import make_train_step
from transformer_jax.types import Array, Params, PRNGKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    what: Annotated[
        tuple[Literal["loss", "layers", "attention"], ...], tyro.conf.Positional
    ]
    """What to measure."""
    output: Path
    """JSON file for the numbers."""
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Of rows, for attention."""


Mebibytes = dict[str, float]
"""By name: state and temporary."""


def plain_objective(model: Transformer) -> Objective:
    """With full logits, as the tests' oracle."""

    def objective(
        params: Params, batch: Batch, rng: PRNGKey | None
    ) -> tuple[Array, Metrics]:
        rngs = None if rng is None else {"dropout": rng}
        hidden, table, bias = last_hidden(
            model, params, batch, deterministic=False, rngs=rngs
        )
        weights = (batch.target_segment_ids > 0).astype(jnp.float32)
        logits = project(hidden, table, bias)
        sums = smoothed_cross_entropy(logits, batch.targets, weights, 0.1)
        return sums.loss, {"loss": Mean(sums.loss, weights.sum())}

    return objective


def fused_objective(model: Transformer) -> Objective:
    """That of training."""
    return make_objective(model, 0.1, deterministic=False)


def measure(
    config: ModelConfig,
    shape: tuple[int, int, int],
    *,
    objective: Callable[[Transformer], Objective] = fused_objective,
    accumulate: int = 1,
) -> Mebibytes:
    """Those of the compiled step for a batch of this shape (B, S, T)."""
    model = Transformer(config)
    optimizer = make_optimizer(OptimizerConfig(), config.d_model)
    stacked = config.scan_layers
    step = make_train_step(
        objective(model), optimizer, accumulate=accumulate, stacked=stacked
    )
    rng = jax.random.key(0)
    params = jax.eval_shape(functools.partial(init_params, model), rng)
    init = functools.partial(init_state, optimizer=optimizer, stacked=stacked)
    state = jax.eval_shape(init, params)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    jitted = jax.jit(step, donate_argnums=0)
    compiled = jitted.lower(state, batch_like(shape, here), rng).compile()
    analysis: Any = compiled.memory_analysis()
    mib = 2**20
    found = {
        "state": analysis.alias_size_in_bytes / mib,
        "temporary": analysis.temp_size_in_bytes / mib,
    }
    return {name: round(value, 1) for name, value in found.items()}


def loss(args: Args) -> Iterator[tuple[str, Mebibytes]]:
    """Fused and plain, over V (4 096 tokens) and over tokens (V = 32 000)."""
    points = [(V, 32) for V in (8_000, 32_000, 128_000)]
    points += [(32_000, rows) for rows in (8, 128)]
    for vocab_size, rows in points:
        sizes = dict.fromkeys(("source_vocab_size", "target_vocab_size"), vocab_size)
        config = sized_model(
            "tiny", num_encoder_layers=1, num_decoder_layers=1, **sizes
        )
        for name, objective in (("fused", fused_objective), ("plain", plain_objective)):
            point = f"V {vocab_size}, {rows * 128} tokens, {name}"
            yield point, measure(config, (rows, 128, 128), objective=objective)


def layers(args: Args) -> Iterator[tuple[str, Mebibytes]]:
    """Base, 4 096 tokens: remat, accumulation, the loop over layers."""
    sizes = dict.fromkeys(("source_vocab_size", "target_vocab_size"), 8000)
    for name, settings, accumulate in (
        ("as it is", {}, 1),
        ("remat", {"remat": True}, 1),
        ("accumulate 4", {}, 4),
        ("remat, accumulate 4", {"remat": True}, 4),
        ("scan_layers", {"scan_layers": True}, 1),
        ("scan_layers, remat", {"scan_layers": True, "remat": True}, 1),
    ):
        config = sized_model("base", **sizes, **settings)
        yield name, measure(config, (32, 128, 128), accumulate=accumulate)


def attention(args: Args) -> Iterator[tuple[str, Mebibytes]]:
    """Tiny, one row: plain and chunked."""
    sizes = dict.fromkeys(("source_vocab_size", "target_vocab_size"), 8000)
    for length in args.lengths:
        for kind in ("plain", "chunked"):
            config = sized_model("tiny", attention=kind, **sizes)
            point = f"length {length}, {kind}"
            yield point, measure(config, (1, length, length))


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    ways = {"loss": loss, "layers": layers, "attention": attention}
    known = json.loads(args.output.read_text()) if args.output.exists() else {}
    found = known.get("mebibytes", {})
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for what in args.what:
        for name, sizes in ways[what](args):
            print(name, sizes, flush=True)
            found.setdefault(what, {})[name] = sizes
            command = shlex.join(["python", *sys.argv])
            result = {"mebibytes": found, "command": command}
            text = json.dumps(result | environment(), indent=1)
            args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
