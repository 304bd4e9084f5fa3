"""What each way of doing the same costs: the measurements behind the defaults.

python benchmarks/train_choices.py attention programs layers projections long \
    --output benchmarks/results/train_choices.json

- attention: forward and gradients, all weights at once and in chunks, over lengths;
- programs: operations in the program of loss and gradients that XLA has to compile,
  with and without scan_layers;
- layers: seconds to compile a train step, and to run it, with and without scan_layers;
- projections: queries, keys and values by three products or by one, with gradients;
- long: a train step of the tiny model on one row of 8 192 source and target tokens.

Ways are timed in turns; numbers are medians, and compilation is not in them unless they
say so. Results are added to those that the file holds, each as soon as it is there.
"""

import dataclasses
import functools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from transformer_jax.config import OptimizerConfig, sized_model
from transformer_jax.models.attention import dot_product_attention
from transformer_jax.models.chunked_attention import chunked_attention
from transformer_jax.models.functions import init_params
from transformer_jax.models.masks import Segments
from transformer_jax.models.transformer import Transformer
from transformer_jax.testing import tiny_batch
from transformer_jax.trainer.reporting import environment
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import init_state
from transformer_jax.training.step import make_train_step
from transformer_jax.trees import stack_layers

Times = dict[str, float]
"""Seconds by name; of programs, operations."""
VOCAB_SIZE = 8000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    what: Annotated[
        tuple[
            Literal["attention", "programs", "layers", "projections", "long"],
            ...,
        ],
        tyro.conf.Positional,
    ]
    """What to measure."""
    output: Path
    """JSON file for the numbers."""
    sizes: tuple[str, ...] = ("tiny", "small", "base")
    """Of the models, for projections."""
    repeats: int = 5
    """Runs of each way, besides a first that is not counted."""


def in_turns(ways: Mapping[str, Callable[[], Any]], repeats: int) -> Times:
    """Median seconds of each, run one after the other again and again."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def normal(*shape: int) -> jax.Array:
    """Random numbers."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def attention(args: Args) -> Iterator[tuple[str, Times]]:
    """2 048 tokens, in rows of each length; from 2 048 on one row."""
    for heads, size in ((4, 32), (8, 64)):
        for length in (64, 128, 256, 512, 768, 1024, 2048, 4096, 8192):
            rows = max(2048 // length, 1)
            q = normal(rows, length, heads, size)
            k = v = q.transpose(0, 2, 1, 3)
            ids = jnp.ones((rows, length), jnp.int32)
            for causal in (False, True):
                segments = Segments(ids, ids, causal=causal)

                def plain(q, k, v, segments):
                    return dot_product_attention(q, k, v, segments.mask())[0].sum()

                def chunked(q, k, v, segments):
                    return chunked_attention(q, k, v, segments).sum()

                ways = {"plain": plain, "chunked": chunked}
                if length > 4096:
                    del ways["plain"]  # gigabytes of weights
                runs = {
                    name: functools.partial(
                        jax.jit(jax.grad(way, argnums=(0, 1, 2))), q, k, v, segments
                    )
                    for name, way in ways.items()
                }
                kind = "causal" if causal else "full"
                name = f"{heads} heads of {size}, {rows} × {length}, {kind}"
                yield name, in_turns(runs, args.repeats)


def steps(*, rows: int, length: int, size: str, **settings):
    """Seconds to compile a train step, and the step as a function of nothing."""
    config = sized_model(
        size,
        source_vocab_size=VOCAB_SIZE,
        target_vocab_size=VOCAB_SIZE,
        **settings,
    )
    model = Transformer(config)
    optimizer = make_optimizer(OptimizerConfig(), config.d_model)
    objective = make_objective(model, 0.1, deterministic=False)
    stacked = config.scan_layers
    step = make_train_step(objective, optimizer, stacked=stacked)
    step = jax.jit(step, donate_argnums=0)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    held = [init_state(params, optimizer, stacked=stacked)]
    batch = tiny_batch(
        source_lengths=(length,) * rows,
        target_lengths=(length,) * rows,
        source_width=length,
        target_width=length,
        vocab_size=VOCAB_SIZE,
    )
    rng = jax.random.key(1)
    start = time.perf_counter()
    compiled = step.lower(held[0], batch, rng).compile()
    seconds = time.perf_counter() - start

    def run() -> Any:
        held[0], metrics = compiled(held[0], batch, rng)
        return metrics

    return seconds, run


def programs(args: Args) -> Iterator[tuple[str, Times]]:
    """Tiny; n layers in each stack. Nothing is run."""
    del args
    batch = tiny_batch(vocab_size=VOCAB_SIZE)
    rng = jax.random.key(0)
    for depth in (2, 6, 12, 24):
        counts = {}
        for name, scan in (("list", False), ("scan", True)):
            config = sized_model(
                "tiny",
                source_vocab_size=VOCAB_SIZE,
                target_vocab_size=VOCAB_SIZE,
                num_encoder_layers=depth,
                num_decoder_layers=depth,
                scan_layers=scan,
            )
            model = Transformer(config)
            gradient = jax.grad(
                make_objective(model, 0.1, deterministic=False), has_aux=True
            )
            params = jax.eval_shape(functools.partial(init_params, model), rng)
            if scan:
                params = jax.eval_shape(stack_layers, params)  # as a train step does
            text = jax.jit(gradient).lower(params, batch, rng).as_text()
            counts[name] = float(text.count(" = "))
        yield f"{depth}+{depth}", counts


def layers(args: Args) -> Iterator[tuple[str, Times]]:
    """Tiny's width, 2 048 tokens; n layers in each stack."""
    for depth in (2, 6, 12, 24):
        runs, compiling = {}, {}
        for name, scan in (("list", False), ("scan", True)):
            seconds, runs[name] = steps(
                rows=16,
                length=128,
                size="tiny",
                num_encoder_layers=depth,
                num_decoder_layers=depth,
                scan_layers=scan,
            )
            compiling[f"compile {name}"] = seconds
        yield f"{depth}+{depth}", compiling | in_turns(runs, args.repeats)


def projections(args: Args) -> Iterator[tuple[str, Times]]:
    """4 096 tokens: x [B, T, D] → q, k, v [B, T, N, H], and k, v alone."""
    for name in args.sizes:
        config = sized_model(name)
        width, heads = config.d_model, config.num_heads
        x = normal(32, 128, width)
        for parts in (3, 2):
            kernels = [normal(width, heads, width // heads)] * parts

            def apart(x, kernels):
                outs = [jnp.einsum("BTD,DNH->BTNH", x, each) for each in kernels]
                return sum(jnp.sin(out).sum() for out in outs)

            def together(x, kernels):
                kernel = jnp.stack(kernels, axis=1)  # [D, P, N, H]
                out = jnp.einsum("BTD,DPNH->BTPNH", x, kernel)
                parts = out.shape[2]
                return sum(jnp.sin(out[:, :, part]).sum() for part in range(parts))

            runs = {
                way.__name__: functools.partial(
                    jax.jit(jax.grad(way, argnums=(0, 1))), x, kernels
                )
                for way in (apart, together)
            }
            point = f"{name}, {'q k v' if parts == 3 else 'k v'}"
            yield point, in_turns(runs, 4 * args.repeats)


def long(args: Args) -> Iterator[tuple[str, Times]]:
    """Attention as auto chooses it: in chunks, on a CPU."""
    del args  # half a minute each
    seconds, run = steps(rows=1, length=8192, size="tiny")
    yield "1 × 8192", {"compile": seconds, **in_turns({"step": run}, 2)}


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    ways = {
        "attention": attention,
        "programs": programs,
        "layers": layers,
        "projections": projections,
        "long": long,
    }
    known = json.loads(args.output.read_text()) if args.output.exists() else {}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for what in args.what:
        seconds = known.get(what, {}).get("seconds", {})
        for name, times in ways[what](args):
            print(name, times, flush=True)
            seconds[name] = {way: float(f"{each:.4g}") for way, each in times.items()}
            command = shlex.join(["python", *sys.argv])
            known[what] = {"seconds": seconds, "command": command, **environment()}
            text = json.dumps(known, indent=1)
            args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
